"""The defence tables: for each data set at hand, no defence, the DSAE and three classical purifiers side by side."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from purify.attacks import ThreatModel
from purify.checkpoint import load, load_classifier
from purify.classifier import wrap
from purify.compatibility import check_classifier_fits
from purify.data import DataNotFoundError, ImageSet, Split, file_stem, load_dataset
from purify.eval.baselines import BASELINES, IN_EVERY_TABLE, GaussianNoise, make_baseline
from purify.eval.evaluate import EVALUATION, Settings, evaluate
from purify.eval.plain import to_plain
from purify.eval.reference import different_settings
from purify.eval.report import Report, markdown_table
from purify.eval.shared import SharedAttacks
from purify.eval.trained import TRAINED, trained_baseline, trained_classifier
from purify.fingerprint import fingerprint_images
from purify.normalization import NormalizedClassifier
from purify.versions import library_versions

__all__ = ["TABLES", "DefenceTable", "TableSpec", "defence_table"]

FORMAT = 2
"""Of the JSON file."""
_WITHOUT_TRAINING = tuple(name for name in BASELINES if name != "pca")
_LEARN: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One defence table: which data, which classifier, which purifiers, which attacker."""

    data: str
    """Name of the data set whose test split is attacked."""
    classifier: str
    """Name or path of the victim's checkpoint."""
    purifiers: tuple[str, ...]
    """Names or paths of purifier checkpoints."""
    baselines: tuple[str, ...] = IN_EVERY_TABLE
    """What they are compared with: names in ``purify.eval.baselines.BASELINES`` and ``purify.eval.trained.TRAINED``."""
    threat: ThreatModel
    images: int = 1000
    """The first so many of the test split."""
    name: str = ""
    """Of the table and its files; empty: the data set's."""
    learnt_from: str = ""
    """Data set from which baselines are fitted or trained; empty: ``data``."""
    recipes: str = ""
    """What the recipes of trained baselines are called after (``mnist-dense`` …); empty: ``data``."""
    other_classifiers: tuple[str, ...] = ()
    """Names or paths of classifiers, or of recipes that make one, that the purifiers were not trained with: each gets rows of its
    own, bare and behind each purifier."""
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if twice := {name for name in self.row_names if self.row_names.count(name) > 1}:
            raise ValueError(
                f"two rows would be called {' and '.join(sorted(twice))}: rows bear the names of the files; rename one of them"
            )

    @property
    def title(self) -> str:
        """What the table is called."""
        return self.name or self.data

    @property
    def row_names(self) -> tuple[str, ...]:
        """The rows from top to bottom: all before the table's own classifier, then before each of the others."""
        own = [Path(name).stem for name in self.purifiers]
        others = [f"{row}, {Path(other).stem}" for other in self.other_classifiers for row in ("none", *own)]
        return ("none", *own, *self.baselines, *others)

    @property
    def stem(self) -> str:
        """The same as part of a file's name."""
        return file_stem(self.title)


TABLES: dict[str, TableSpec] = {
    "digits": TableSpec(
        data="digits",
        classifier="digits-shufflenet",
        purifiers=("digits-dsae",),
        baselines=(*IN_EVERY_TABLE, "dense"),
        threat=ThreatModel("linf", 0.15),
    ),
    "mnist": TableSpec(
        data="mnist",
        classifier="mnist-resnet18",
        purifiers=("mnist-dsae",),
        baselines=(*IN_EVERY_TABLE, "dense"),
        threat=ThreatModel("linf", 0.2),
        images=500,
    ),
    "mnist-0.3": TableSpec(
        name="mnist-0.3",
        data="mnist",
        classifier="mnist-resnet18",
        purifiers=("mnist-dsae", "mnist-dsae-robust"),
        baselines=(*IN_EVERY_TABLE, "dense", "robust"),
        other_classifiers=("mnist-shufflenet",),
        threat=ThreatModel("linf", 0.3),
        images=500,
    ),
    "cifar10": TableSpec(
        name="cifar10",
        data="imagefolder:cifar10-jpeg.zip",
        classifier="cifar10-resnet18",
        purifiers=("cifar10-dsae", "cifar10-dsae-robust"),
        baselines=(*IN_EVERY_TABLE, "dense", "robust", "retrained"),
        other_classifiers=("cifar10-shufflenet",),
        threat=ThreatModel("linf", 8 / 255),
        images=500,
        recipes="cifar10",
    ),
    "cifar10-lossless": TableSpec(
        data="imagefolder:cifar10-lossless.zip",
        name="cifar10-lossless",
        classifier="cifar10-resnet18",
        purifiers=("cifar10-dsae", "cifar10-dsae-robust"),
        baselines=(),
        threat=ThreatModel("linf", 8 / 255),
        images=250,
    ),
    "cifar10-l2": TableSpec(
        name="cifar10-l2",
        data="imagefolder:cifar10-jpeg.zip",
        classifier="cifar10-resnet18",
        purifiers=("cifar10-dsae", "cifar10-dsae-robust"),
        threat=ThreatModel("l2", 0.5),
        images=500,
        recipes="cifar10",
    ),
}
"""The tables that ``purify tables`` makes, by name."""


@dataclass(frozen=True)
class DefenceTable:
    """The rows of one data set, or the reason why there are none."""

    spec: TableSpec
    reports: list[Report] = field(default_factory=list)
    """Its rows, from top to bottom; those that were taken from an earlier table hold figures alone."""
    skipped: tuple[str, ...] = ()
    """Unreadable image files."""
    not_run: str = ""
    """Why there are no rows."""

    def markdown(self) -> str:
        """Title line, table, and what each column's claim is."""
        title = f"### {self.spec.title}, {self.spec.threat}"
        if self.not_run:
            return f"{title}\n\nNot run: {self.not_run}"
        failed = [f"{report.name}: {', '.join(report.failed)}" for report in self.reports if report.failed]
        title += f" – CHECKS FAILED ({'; '.join(failed)})" if failed else ""
        first, settings = self.reports[0], self.spec.settings
        shown = {report.name for report in self.reports}
        left = [name for name in self.spec.row_names if name not in shown]
        missing = f" Not measured yet: {', '.join(left)}." if left else ""
        skipped = f" {len(self.skipped)} unreadable images were skipped." if self.skipped else ""
        errors = sum(len(report.errors) for report in self.reports)
        wrong = f" {errors} answers were no number and count as wrong." if errors else ""
        old = [report.name for report in self.reports if report.configuration.get("evaluation", 1) < EVALUATION]
        which = "all rows" if len(old) == len(self.reports) else "; ".join(old)
        older = f" Measured by an earlier version of this evaluation (docs/evaluation.md): {which}." if old else ""
        note = (
            f"Classifier {self.spec.classifier}; n = {first.clean.n} test images, seed {first.seed}. Accuracies in % with "
            f"95 % Wilson intervals; recovered = (purified − attacked) / (clean − attacked), 95 % bootstrap interval. "
            f"Oblivious: PGD with {settings.oblivious_steps} steps and FGSM, made on the bare classifier. Adaptive: made "
            f"on purifier and classifier together, suite {settings.suite}, per-image minimum over its attacks and gradient "
            f"paths; worst case: over these and the oblivious ones. Margins: medians, in logits. Smallest norm: median of "
            f"the least that any attack found, of the images that FMN was put to, measured as eps is. MACs: the purifier's over "
            f"the classifier's. ms: for an image, both together, in batches of 32, on the machine that measured the row (×: over "
            f"the classifier alone, in the same run). "
            f"Checks: S1 to S13, on the first {settings.check_images} images.{skipped}{wrong}{older}{missing}"
        )
        return f"{title}\n\n{markdown_table(self.reports)}\n\n{note}"

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "format": FORMAT,
            "spec": dataclasses.asdict(self.spec),
            "rows": [report.to_dict() for report in self.reports],
            "skipped": list(self.skipped),
            "not_run": self.not_run,
            "versions": library_versions(),
        }

    def save(self, folder: Path) -> list[Path]:
        """Write ``<table>.md``, ``<table>.json`` and ``<table>.<defence>.csv`` (one row an image); returns what was written:
        nothing for a table that was not run where there is one already."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.spec.stem
        table, figures = folder / f"{stem}.md", folder / f"{stem}.json"
        if self.not_run and figures.exists():
            return []  # what was measured when the data were at hand stays
        table.write_text(self.markdown() + "\n", encoding="utf-8")
        figures.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        measured = (report for report in self.reports if report.per_image)
        return [table, figures, *(report.to_csv(folder / f"{stem}.{file_stem(report.name)}.csv") for report in measured)]


def defence_table(
    spec: TableSpec,
    *,
    load_split: Callable[[str, Split], ImageSet] = load_dataset,
    classifier: nn.Module | None = None,
    rows: tuple[str, ...] = (),
    earlier: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    stores: Path | None = None,
    quiet: bool = False,
) -> DefenceTable:
    """Make one table. A data set that is not at hand gives a table that says so.

    Args:
        spec: what to measure.
        load_split: gives a split of a data set by both names.
        classifier: in eval mode, normalisation inside: takes the place of the checkpoint that ``spec.classifier`` names.
        rows: names of those to measure (``spec.row_names``); none: all of them.
        earlier: a table as plain values (:meth:`DefenceTable.to_dict`), from which the other rows are taken; None: they are left
            out, and the table says so.
        about: plain values that each row's run says of itself, beside its data, classifier and purifier.
        stores: folder with one store a row: a table that was stopped goes on where it was; None: nothing is kept.
        quiet: no progress bars.

    Raises:
        ValueError: a row that the table does not have, or an earlier table of something else.
    """
    unknown = [name for name in rows if name not in spec.row_names]
    if unknown:
        raise ValueError(f"{spec.title} has no row {', '.join(unknown)}; its rows: {', '.join(spec.row_names)}")
    found = _taken_over(spec, earlier) if rows and earlier is not None else {}
    wanted = [name for name in spec.row_names if name in (rows or spec.row_names)]
    try:
        test = load_split(spec.data, "test").first(spec.images)
    except DataNotFoundError as missing:
        return DefenceTable(spec, not_run=str(missing))
    if found and (differing := _of_other_images(found.values(), test)):
        raise ValueError(f"the rows {', '.join(differing)} are of other images than {spec.data} holds now: measure all rows")
    # All that the rows need is made before the first attack: a name that is not known is not found out an hour later.
    defences = dict.fromkeys(_parts(row)[0] for row in wanted)
    purifiers = {name: _purifier(name, spec, load_split, quiet) for name in defences}
    shared: defaultdict[str, SharedAttacks] = defaultdict(SharedAttacks)
    classifiers = {"": load_classifier(spec.classifier) if classifier is None else classifier}
    classifiers |= {
        Path(path).stem: trained_classifier(path, load_split, quiet=quiet)
        for path in spec.other_classifiers
        if any(_parts(name)[1] == Path(path).stem for name in wanted)
    }
    for other, module in classifiers.items():
        check_classifier_fits(module, test, other or spec.classifier)
    own, others = ({Path(path).stem: path for path in given} for given in (spec.purifiers, spec.other_classifiers))
    for name in wanted:
        defence, other = _parts(name)
        purifier = purifiers[defence]
        if purifier is None:
            model: nn.Module = classifiers[other]
        else:  # one row is no purifier but another classifier
            model = purifier if isinstance(purifier, NormalizedClassifier) else wrap(classifiers[other], purifier.eval())
        found[name] = evaluate(
            model,
            test,
            None,
            spec.threat,
            settings=_suited(spec.settings, purifier),
            name=name,
            about={
                "data": spec.data,
                "split": test.split,
                "classifier": others.get(other, spec.classifier),
                "purifier": own.get(defence, defence),
                **(about or {}),
            },
            store=":memory:" if stores is None else stores / f"{spec.stem}.{file_stem(name)}.sqlite",
            shared=None if isinstance(purifier, NormalizedClassifier) else shared[other],
            quiet=quiet,
        )
    return DefenceTable(spec, [found[name] for name in spec.row_names if name in found], test.skipped)


def _parts(row: str) -> tuple[str, str]:
    """What stands in front, and the classifier behind it; an empty word for the table's own."""
    defence, _, classifier = row.partition(", ")
    return defence, classifier


def _taken_over(spec: TableSpec, earlier: Mapping[str, Any]) -> dict[str, Report]:
    differences = different_settings(to_plain(dataclasses.asdict(spec)), to_plain(earlier["spec"]))
    if differences:
        raise ValueError(f"the other rows cannot be taken from a table that differs ({'; '.join(differences)}): measure all rows")
    return {row["name"]: Report.from_dict(row) for row in earlier["rows"]}


def _of_other_images(reports: Iterable[Report], test: ImageSet) -> list[str]:
    """Names of the rows that were measured on other images than these."""
    digest = fingerprint_images(test)
    return [report.name for report in reports if report.configuration["images"]["digest"] != digest]


def _purifier(name: str, spec: TableSpec, load_split: Callable[[str, Split], ImageSet], quiet: bool) -> nn.Module | None:
    """What stands in front of the classifier in a row, or, of ``robust`` and ``retrained``, in its place; None: nothing."""
    for path in spec.purifiers:
        if Path(path).stem == name:
            return load(path)
    if name == "none" or name in _WITHOUT_TRAINING:
        return None if name == "none" else make_baseline(name)
    training, validation = (load_split(spec.learnt_from or spec.data, split) for split in _LEARN)
    if name in TRAINED:
        return trained_baseline(name, spec.recipes or spec.data, training, validation, quiet=quiet)
    return make_baseline(name, training)


def _suited(settings: Settings, purifier: nn.Module | None) -> Settings:
    """The settings, with 20 draws for a random purifier."""
    return dataclasses.replace(settings, draws=20) if isinstance(purifier, GaussianNoise) else settings
