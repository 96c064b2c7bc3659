"""What an evaluation found, as an object, as Markdown and as JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from purify.attacks import ThreatModel
from purify.autoencoder import CodeStatistics
from purify.eval.margin import MarginSummary
from purify.eval.recovery import Accuracy, Recovery
from purify.versions import library_versions

__all__ = ["COLUMNS", "Report", "markdown_table"]

COLUMNS = (
    "defence",
    "clean",
    "FGSM, oblivious",
    "PGD, oblivious",
    "recovered from PGD",
    "PGD, adaptive",
    "margin: clean / attacked / purified / adaptive",
    "L0",
    "MACs",
    "ms",
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One defence under one threat model. Accuracies are of the defended model unless they are called ``undefended``."""

    name: str
    threat: ThreatModel
    seed: int
    clean: Accuracy
    undefended_clean: Accuracy
    undefended: dict[str, Accuracy]
    """The bare classifier under each attack that was made on it."""
    oblivious: dict[str, Accuracy]
    """The defended model under the same images."""
    recovered: dict[str, Recovery]
    """For each oblivious attack; empty for the bare classifier."""
    adaptive: Accuracy
    """Worst case: per-image minimum over transferred examples and PGD along every gradient path."""
    broken_by: dict[str, int]
    """How many images fell first to what, in the order tried."""
    margins: dict[str, MarginSummary]
    """clean: defended, clean images; attacked: bare classifier under oblivious PGD; purified: defended under the same; adaptive:
    defended, lowest margin found."""
    code: CodeStatistics | None
    """Of the sparse code on clean images, for purifiers that have one."""
    classifier_macs: int
    purifier_macs: int
    purifier_parameters: int
    milliseconds: float
    """Purifier and classifier together, for each image in a batch of 32."""
    per_image: dict[str, Tensor] = field(repr=False)
    """One value an image: label and margins."""
    adaptive_images: Tensor = field(repr=False)
    """(N, C, H, W): the image that gave the lowest margin; the clean one where transfer or nothing did."""

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
            " / ".join(medians.values()),
            f"{self.code.l0:.0f} ({100 * self.code.density:.1f} %)" if self.code else "–",
            f"+{self.purifier_macs / self.classifier_macs:.2f}" if self.purifier_macs else "–",
            f"{self.milliseconds:.2f}",
        )

    def table(self) -> str:
        """A Markdown table of one row."""
        return markdown_table([self])

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, without the images and the rows for each image."""
        left_out = {"per_image", "adaptive_images"}
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        return {key: _plain(value) for key, value in kept.items()}

    def to_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` with the library versions."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self.to_dict(), "versions": library_versions()}, indent=2) + "\n", encoding="utf-8")
        return path

    def to_csv(self, path: str | Path) -> Path:
        """Write one row an image: label and margins."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *self.per_image])
            for index, row in enumerate(zip(*(v.tolist() for v in self.per_image.values()), strict=True)):
                writer.writerow([index, *(f"{value:.6g}" for value in row)])
        return path


def markdown_table(reports: list[Report]) -> str:
    """Several defences side by side, accuracies in % with their 95 % intervals."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(report.cells() for report in reports)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return None if value != value else round(value, 6)
    return value
