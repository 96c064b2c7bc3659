"""What an evaluation found: read from its store, shown as a table, written as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purify.attacks import ThreatModel
from purify.autoencoder import CodeStatistics
from purify.eval.curves import Curve
from purify.eval.margin import MarginSummary, NormSummary
from purify.eval.paired import PairedComparison
from purify.eval.plain import from_plain, to_plain
from purify.eval.recovery import Accuracy, Recovery
from purify.eval.sanity import Check, check_line
from purify.eval.store import RunStore, StageRecord, Trial

__all__ = ["COLUMNS", "Report", "markdown_table"]

_NOT_PLAIN = ("per_image", "gallery", "audit")
COLUMNS = (
    "defence",
    "clean",
    "FGSM, oblivious",
    "PGD, oblivious",
    "recovered from PGD",
    "adaptive",
    "worst case",
    "margin: clean / attacked / purified / adaptive",
    "smallest norm",
    "L0",
    "MACs",
    "parameters",
    "ms",
    "checks",
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One defence under one threat model. Accuracies are of the defended model unless they are called ``undefended``."""

    name: str
    threat: ThreatModel
    seed: int
    suite: str
    """The attacks with their settings, one a line."""
    clean: Accuracy
    undefended_clean: Accuracy
    undefended: dict[str, Accuracy]
    """The bare classifier under each attack that was made on it."""
    oblivious: dict[str, Accuracy]
    """The defended model under the same images."""
    recovered: dict[str, Recovery]
    """For each oblivious attack; empty for the bare classifier."""
    adaptive: Accuracy
    """Per-image minimum over every attack of the suite along every gradient path."""
    worst_case: Accuracy
    """Per-image minimum over the adaptive and the oblivious attacks."""
    broken_by: dict[str, int]
    """How many images fell first to what, in the order tried."""
    margins: dict[str, MarginSummary]
    """clean: defended, clean images; attacked: bare classifier under oblivious PGD; purified: defended under the same; adaptive:
    defended, lowest margin found for each image, broken or not."""
    norms: NormSummary | None
    """Smallest adversarial norms that any attack found, among the images on which FMN looked for them."""
    checks: list[Check]
    """S1 to S13, on the first images."""
    curve: Curve | None
    """Accuracy against eps, on the first images."""
    errors: dict[int, str]
    """Images to which the model's answer was no number somewhere inside the threat: wrong wherever that was, and in the adaptive
    and the worst case."""
    code: CodeStatistics | None
    """Of the sparse code on clean images, for purifiers that have one."""
    classifier_macs: int
    purifier_macs: int
    purifier_parameters: int
    milliseconds: float
    """Purifier and classifier together, for each image in a batch of 32."""
    undefended_milliseconds: float | None = None
    """The classifier alone, in the same run; None in tables that were made before this was measured."""
    configuration: dict[str, Any] = field(repr=False)
    """All that decided the figures, library versions included."""
    seconds: dict[str, float] = field(repr=False)
    """Wall time of each stage."""
    per_image: dict[str, Tensor] = field(repr=False)
    """One value an image: label, margins, lowest share, smallest norm (NaN where not measured)."""
    gallery: list[dict[str, Any]] = field(repr=False)
    """See :func:`purify.eval.gallery.gallery`."""
    audit: dict[str, Any] | None = field(repr=False, default=None)
    """The spectral audit, if `purify audit` was run on the store: words and exhibits."""

    @classmethod
    def of(cls, store: RunStore) -> Report:
        """Everything from a store, and nothing else: the figures of a finished run can be had again without its model.

        Raises:
            ValueError: the run is not finished.
        """
        return _read(store)

    @property
    def failed(self) -> list[str]:
        """Ids of the checks that failed."""
        return [check.id for check in self.checks if check.verdict == "fail"]

    def versus(self, other: Report) -> PairedComparison:
        """This defence against another one on the same images, worst case (exact McNemar test).

        Raises:
            ValueError: they were shown other images, another threat model, or other attacks (the weaker one would count for the
                defence); or one of them has no rows for each image (it was read from a JSON file).
        """
        for key in ("images", "threat", "suite", "draws"):
            if self.configuration[key] != other.configuration[key]:
                raise ValueError(f"not comparable: {key} {self.configuration[key]} and {other.configuration[key]}")
        if empty := [report.name for report in (self, other) if "worst_share" not in report.per_image]:
            raise ValueError(
                f"{' and '.join(empty)} has no rows for each image: compare reports of finished runs, not of JSON files"
            )
        return PairedComparison.of(self.per_image["worst_share"], other.per_image["worst_share"])

    def cells(self) -> tuple[str, ...]:
        """One table row, in the order of ``COLUMNS``."""
        medians = {stage: f"{self.margins[stage].median:+.1f}" for stage in ("clean", "attacked", "purified", "adaptive")}
        if not self.recovered:
            medians["purified"] = "–"
        return (
            self.name,
            str(self.clean),
            str(self.oblivious["FGSM"]),
            str(self.oblivious["PGD"]),
            str(self.recovered["PGD"]) if self.recovered else "–",
            str(self.adaptive),
            str(self.worst_case),
            " / ".join(medians.values()),
            f"{self.norms.median:.3g}" if self.norms else "–",
            f"{self.code.l0:.0f} ({100 * self.code.density:.1f} %)" if self.code else "–",
            f"+{self.purifier_macs / self.classifier_macs:.2f}" if self.purifier_macs else "–",
            f"{self.purifier_parameters:,}" if self.purifier_parameters else "–",
            self._time(),
            ("FAILED: " + ", ".join(self.failed) if self.failed else "passed") if self.checks else "not run",
        )

    def _time(self) -> str:
        bare = self.undefended_milliseconds
        return f"{self.milliseconds:.2f}" + (f" (×{self.milliseconds / bare:.2f})" if self.recovered and bare else "")

    def head(self) -> str:
        """One line for the head of a table: what was evaluated, and whether it can be believed."""
        failed = f" – CHECKS FAILED: {', '.join(self.failed)}" if self.failed else ""
        errors = f"; errors: {len(self.errors)} images ({', '.join(map(str, list(self.errors)[:8]))})" if self.errors else ""
        title = f"{self.name}, {self.threat}, n = {self.clean.n}, seed {self.seed}{failed}"
        return f"{title}\n\nChecks: {check_line(self.checks)}{errors}"

    def table(self) -> str:
        """Head, and a Markdown table of one row."""
        return f"{self.head()}\n\n{markdown_table([self])}"

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, without the images and the rows for each image."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_PLAIN}
        return {key: to_plain(value) for key, value in kept.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Report:
        """What :meth:`to_dict` gave: all figures, no images, and no rows for each image."""
        return from_plain(cls, {**plain, "per_image": {}, "gallery": []})

    def to_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    def to_csv(self, path: str | Path) -> Path:
        """Write one row an image: label, margins, shares, smallest norm, error."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *self.per_image, "error"])
            for index, row in enumerate(zip(*(v.tolist() for v in self.per_image.values()), strict=True)):
                writer.writerow([index, *(f"{value:.6g}" for value in row), self.errors.get(index, "")])
        return path


def markdown_table(reports: list[Report]) -> str:
    """Several defences side by side, accuracies in % with their 95 % intervals."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(report.cells() for report in reports)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _read(store: RunStore) -> Report:
    configuration, stages, labels = store.configuration, {s.name: s for s in store.stages()}, store.labels()
    costs = store.finding("costs")
    n, draws, seed = configuration["images"]["n"], configuration["draws"], configuration["settings"]["seed"]
    if costs is None or len(labels) < n:
        raise ValueError(
            f"the run in {store.path} is not finished ({len(labels)} of {n} images begun): run the same command again"
        )

    def share(stage: StageRecord) -> Tensor:
        return _spread(store, stage, n, 1, missing=0.0)

    def margin(stage: StageRecord) -> Tensor:
        return _spread(store, stage, n, 2, missing=float("nan"))

    clean, bare = stages["clean"], stages["undefended, clean"]
    attacks = [name.removeprefix("oblivious, ") for name in stages if name.startswith("oblivious, ")]
    own = {name: stages[f"oblivious, {name}"] for name in attacks}
    theirs = {name: stages[f"undefended, {name}"] for name in attacks}
    adaptive = [stage for stage in stages.values() if stage.claim == "adaptive"]
    lowest, robust, broken_by = margin(clean), share(clean), {"clean": int((share(clean) <= 0).sum())}
    for stage in adaptive:
        numbers, shares, margins = store.outcome(stage)
        broken_by[stage.name] = len(store.fallen(stage))
        robust[numbers] = torch.minimum(robust[numbers], shares)
        lowest[numbers] = torch.fmin(lowest[numbers], margins)
    if draws > 1:
        robust, lowest = share(stages["verdict"]), margin(stages["verdict"])
    robust[list(store.errors())] = 0  # also where only the bare classifier says nothing
    shares = torch.stack([robust, *(share(stage) for stage in own.values())])
    # of several noisy shares of an image the least would be too low: a random defence has the column that is lowest in the mean
    worst = shares.amin(0) if draws == 1 else shares[int(shares.mean(1).argmin())].clone()
    worst[list(store.errors())] = 0
    how = f"suite {configuration['suite'].partition(':')[0]}, {len(adaptive)} stages, per-image minimum"
    # a random defence's shares are noisy: an image that an attack did not bring down in the end may have come out low once
    finding = ("norm",) if draws > 1 else ("norm", "adaptive", "oblivious")
    norms = _norms(store, [stage for stage in stages.values() if stage.claim in finding], n)
    per_image = {
        "label": labels,
        "undefended_clean_margin": margin(bare),
        "clean_margin": margin(clean),
        **{f"undefended_{name}_margin": margin(stage) for name, stage in theirs.items()},
        **{f"oblivious_{name}_margin": margin(stage) for name, stage in own.items()},
        "adaptive_margin": lowest,
        "adaptive_share": robust,
        "worst_share": worst,
        "smallest_norm": norms,
    }
    return Report(
        name=configuration["name"],
        threat=ThreatModel(**configuration["threat"]),
        seed=seed,
        suite=configuration["suite"],
        clean=Accuracy.of(share(clean), "clean"),
        undefended_clean=Accuracy.of(share(bare), "clean"),
        undefended={name: Accuracy.of(share(stage), "oblivious", stage.attack, seed) for name, stage in theirs.items()},
        oblivious={name: Accuracy.of(share(stage), "oblivious", stage.attack, seed) for name, stage in own.items()},
        recovered={name: Recovery.of(share(bare), share(theirs[name]), share(own[name])) for name in own}
        if costs["wrapped"]
        else {},
        adaptive=Accuracy.of(robust, "adaptive", how, seed),
        worst_case=Accuracy.of(worst, "worst case", f"{how}; and the oblivious attacks", seed),
        broken_by=broken_by,
        margins={
            "clean": MarginSummary.of(per_image["clean_margin"]),
            "attacked": MarginSummary.of(per_image["undefended_PGD_margin"]),
            "purified": MarginSummary.of(per_image["oblivious_PGD_margin"]),
            "adaptive": MarginSummary.of(lowest),
        },
        norms=NormSummary.of(norms[torch.isfinite(norms)]) if bool(torch.isfinite(norms).any()) else None,
        checks=[Check(**found) for number in range(1, 14) if (found := store.finding(f"check S{number}")) is not None],
        curve=_curve(store.finding("curve")),
        errors=store.errors(),
        code=CodeStatistics(**costs["code"]) if costs["code"] else None,
        classifier_macs=costs["classifier_macs"],
        purifier_macs=costs["purifier_macs"],
        purifier_parameters=costs["purifier_parameters"],
        milliseconds=costs["milliseconds"],
        undefended_milliseconds=costs.get("undefended_milliseconds"),
        configuration=configuration,
        seconds={stage.name: store.seconds(stage) for stage in stages.values()},
        per_image=per_image,
        gallery=store.finding("gallery") or [],
        audit=store.finding("audit"),
    )


def _spread(store: RunStore, stage: StageRecord, n: int, which: int, *, missing: float) -> Tensor:
    """A stage's shares (1) or margins (2), one an image (n,)."""
    found = store.outcome(stage)
    values = torch.full((n,), missing, dtype=torch.float64)
    values[found[0]] = found[which]
    return values


def _norms(store: RunStore, stages: Sequence[StageRecord], n: int) -> Tensor:
    """Distance of the nearest adversarial image that any stage found, misclassified in at least half of the draws, for the images
    on which FMN looked for it; 0 for those misclassified as they are; NaN where none was found or nothing was measured."""
    values = torch.full((n,), float("nan"), dtype=torch.float64)
    looked_for = torch.zeros(n, dtype=torch.bool)
    for stage in stages:
        trials: defaultdict[tuple[int, int], list[Trial]] = defaultdict(list)
        for trial in store.trials(stage):
            trials[trial.image, trial.restart].append(trial)
        for (image, _), draws in trials.items():
            looked_for[image] |= stage.claim == "norm"
            if 2 * sum(trial.correct for trial in draws) <= len(draws):
                values[image] = torch.fmin(values[image], torch.tensor(draws[0].distance, dtype=torch.float64))
    values[~looked_for] = float("nan")
    return values


def _curve(found: dict[str, Any] | None) -> Curve | None:
    if found is None:
        return None
    return Curve(found["eps"], *([Accuracy(**a) for a in found[claim]] for claim in ("oblivious", "adaptive")))
