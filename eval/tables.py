"""The defence tables: for each data set at hand, no defence, the DSAE and three classical purifiers side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from purify.attacks import ThreatModel
from purify.checkpoint import load, load_classifier
from purify.classifier import wrap
from purify.data import DataNotFoundError, ImageSet, Split, file_stem, load_dataset
from purify.eval.baselines import BASELINES, IN_EVERY_TABLE, GaussianNoise, make_baseline
from purify.eval.evaluate import Settings, evaluate
from purify.eval.report import Report, markdown_table
from purify.eval.shared import SharedAttacks
from purify.eval.trained import TRAINED, trained_baseline, trained_classifier
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

    @property
    def title(self) -> str:
        """What the table is called."""
        return self.name or self.data

    @property
    def stem(self) -> str:
        """The same as part of a file's name."""
        return file_stem(self.title)


TABLES: dict[str, TableSpec] = {
    "digits": TableSpec(
        data="digits", classifier="digits-shufflenet", purifiers=("digits-dsae",), threat=ThreatModel("linf", 0.15)
    ),
    "mnist": TableSpec(
        data="mnist",
        classifier="mnist-resnet18",
        purifiers=("mnist-dsae",),
        threat=ThreatModel("linf", 0.2),
        images=500,
    ),
    "mnist-0.3": TableSpec(
        name="mnist-0.3",
        data="mnist",
        classifier="mnist-resnet18",
        purifiers=("mnist-dsae", "mnist-dsae-robust"),
        threat=ThreatModel("linf", 0.3),
        images=500,
    ),
    "cifar10": TableSpec(
        name="cifar10",
        data="imagefolder:cifar10-jpeg.zip",
        classifier="cifar10-resnet18",
        purifiers=("cifar10-dsae", "cifar10-dsae-robust"),
        threat=ThreatModel("linf", 8 / 255),
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
        skipped = f" {len(self.skipped)} unreadable images were skipped." if self.skipped else ""
        errors = sum(len(report.errors) for report in self.reports)
        wrong = f" {errors} answers were no number and count as wrong." if errors else ""
        note = (
            f"Classifier {self.spec.classifier}; n = {first.clean.n} test images, seed {first.seed}. Accuracies in % with "
            f"95 % Wilson intervals; recovered = (purified − attacked) / (clean − attacked), 95 % bootstrap interval. "
            f"Oblivious: PGD with {settings.oblivious_steps} steps and FGSM, made on the bare classifier. Adaptive: made "
            f"on purifier and classifier together, suite {settings.suite}, per-image minimum over its attacks and gradient "
            f"paths; worst case: over these and the oblivious ones. Margins: medians, in logits. Smallest norm: median of "
            f"what FMN found, in units of eps. MACs: the purifier's over the classifier's. ms: for an image, both "
            f"together, in batches of 32. Checks: S1 to S13, on the first {settings.check_images} images.{skipped}{wrong}"
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
        """Write ``<table>.md``, ``<table>.json`` and ``<table>.<defence>.csv`` (one row an image); returns what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.spec.stem
        table, figures = folder / f"{stem}.md", folder / f"{stem}.json"
        table.write_text(self.markdown() + "\n", encoding="utf-8")
        figures.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return [table, figures, *(report.to_csv(folder / f"{stem}.{file_stem(report.name)}.csv") for report in self.reports)]


def defence_table(
    spec: TableSpec,
    *,
    load_split: Callable[[str, Split], ImageSet] = load_dataset,
    classifier: nn.Module | None = None,
    baselines: tuple[str, ...] | None = None,
    stores: Path | None = None,
    quiet: bool = False,
) -> DefenceTable:
    """Make one table. A data set that is not at hand gives a table that says so.

    Args:
        spec: what to measure.
        load_split: gives a split of a data set by both names.
        classifier: in eval mode, normalisation inside: takes the place of the checkpoint that ``spec.classifier`` names.
        baselines: in place of the table's own.
        stores: folder with one store a row: a table that was stopped goes on where it was; None: nothing is kept.
        quiet: no progress bars.
    """
    purifiers: dict[str, nn.Module] = {Path(name).stem: load(name) for name in spec.purifiers}
    try:
        test = load_split(spec.data, "test").first(spec.images)
    except DataNotFoundError as missing:
        return DefenceTable(spec, not_run=str(missing))
    classifiers = {name: trained_classifier(name, load_split, quiet=quiet) for name in spec.other_classifiers}
    classifiers[spec.classifier] = load_classifier(spec.classifier) if classifier is None else classifier
    for name in spec.baselines if baselines is None else baselines:
        if name in _WITHOUT_TRAINING:
            purifiers[name] = make_baseline(name)
            continue
        training, validation = (load_split(spec.learnt_from or spec.data, split) for split in _LEARN)
        if name in TRAINED:
            purifiers[name] = trained_baseline(name, spec.recipes or spec.data, training, validation, quiet=quiet)
        else:
            purifiers[name] = make_baseline(name, training)
    return _measure(spec, classifiers, purifiers, test, stores, quiet)


def _measure(
    spec: TableSpec,
    classifiers: dict[str, nn.Module],
    purifiers: dict[str, nn.Module],
    test: ImageSet,
    stores: Path | None,
    quiet: bool,
) -> DefenceTable:
    reports, shared = [], {name: SharedAttacks() for name in classifiers}
    for name, classifier, purifier in _rows(spec, purifiers):
        bare = classifiers[classifier]
        if purifier is None:
            model: nn.Module = bare
        else:  # one row is no purifier but another classifier
            model = purifier if isinstance(purifier, NormalizedClassifier) else wrap(bare, purifier.eval())
        report = evaluate(
            model,
            test,
            None,
            spec.threat,
            settings=_suited(spec.settings, purifier),
            name=name,
            about={"data": spec.data, "split": test.split, "classifier": classifier, "purifier": name},
            store=":memory:" if stores is None else stores / f"{spec.stem}.{file_stem(name)}.sqlite",
            shared=None if isinstance(purifier, NormalizedClassifier) else shared[classifier],
            quiet=quiet,
        )
        reports.append(report)
    return DefenceTable(spec, reports, test.skipped)


def _rows(spec: TableSpec, purifiers: dict[str, nn.Module]) -> list[tuple[str, str, nn.Module | None]]:
    """Name, classifier and purifier of each row: all before the table's own classifier, then the DSAEs before the others."""
    rows: list[tuple[str, str, nn.Module | None]] = [("none", spec.classifier, None)]
    rows += [(name, spec.classifier, purifier) for name, purifier in purifiers.items()]
    for other in spec.other_classifiers:
        rows.append((f"none, {Path(other).stem}", other, None))
        rows += [(f"{Path(name).stem}, {Path(other).stem}", other, purifiers[Path(name).stem]) for name in spec.purifiers]
    return rows


def _suited(settings: Settings, purifier: nn.Module | None) -> Settings:
    """The settings, with 20 draws for a random purifier."""
    return dataclasses.replace(settings, draws=20) if isinstance(purifier, GaussianNoise) else settings
