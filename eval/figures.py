"""Figures of a defence table: example images, margins before and after, accuracy against eps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch

from purify.classifier import PurifiedClassifier
from purify.eval.tables import DefenceTable

matplotlib.use("Agg")  # files only: works without a screen
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_examples", "draw_margins", "save_figures"]

_COLOURS = ("#6b7280", "#0f766e", "#b45309", "#7c3aed", "#be185d", "#1d4ed8")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def save_figures(table: DefenceTable, defended: PurifiedClassifier, folder: Path, stem: str) -> list[Path]:
    """Draw all three into ``<stem>-examples.png``, ``-margins.png`` and ``-eps.png``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(_STYLE):  # type: ignore[arg-type]
        for name, figure in (
            ("examples", draw_examples(table, defended)),
            ("margins", draw_margins(table)),
            ("eps", draw_curves(table)),
        ):
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path)
            plt.close(figure)
            written.append(path)
    return written


def draw_examples(table: DefenceTable, defended: PurifiedClassifier, count: int = 8) -> Figure:
    """Columns: images that the oblivious PGD broke; rows: clean, attacked, purified, what was removed ×10 (grey is nothing)."""
    if table.images is None or table.attacked is None:
        raise ValueError("this table was not run: there are no images to show")
    report = next(r for r in table.reports if r.recovered)
    rows = report.per_image
    was_broken = (rows["undefended_clean_margin"] > 0) & (rows["undefended_PGD_margin"] <= 0)
    index = was_broken.nonzero().flatten()[:count]
    clean, attacked, labels = table.images[index], table.attacked[index], rows["label"][index]
    with torch.no_grad():
        purified = defended.purify(attacked)
        said = {
            "clean": defended.undefended(clean).argmax(1),
            "attacked": defended.undefended(attacked).argmax(1),
            "purified": defended.undefended(purified).argmax(1),
        }
    removed = torch.tanh(10 * (attacked - purified)) / 2 + 0.5  # ten-fold, and soft where that leaves the range
    lines = {"clean": clean, "attacked": attacked, "purified": purified, "removed ×10": removed}
    figure, axes = plt.subplots(len(lines), max(1, len(index)), figsize=(1.15 * max(1, len(index)), 5.2), squeeze=False)
    for axis_row, (title, pictures) in zip(axes, lines.items(), strict=True):
        for column, (axis, picture) in enumerate(zip(axis_row, pictures, strict=False)):
            _show(axis, picture)
            if title in said:
                predicted = int(said[title][column])
                right = predicted == int(labels[column])
                axis.set_title(f"{predicted} {'✓' if right else '✗'}", color="#15803d" if right else "#b91c1c", fontsize=9)
        axis_row[0].set_ylabel(title)
    figure.suptitle(f"{table.spec.data}: PGD on the bare classifier (oblivious), {table.spec.threat}, purified by {report.name}")
    figure.tight_layout()
    return figure


def draw_margins(table: DefenceTable) -> Figure:
    """For the first purifier: margins of clean, attacked, purified (oblivious) and adaptively attacked images."""
    report = next(r for r in table.reports if r.recovered)
    rows = report.per_image
    shown = {
        "clean, no defence": rows["undefended_clean_margin"],
        "attacked, no defence": rows["undefended_PGD_margin"],
        f"attacked, {report.name} (oblivious)": rows["oblivious_PGD_margin"],
        f"attacked, {report.name} (adaptive, stopped when broken)": rows["adaptive_margin"],
    }
    everything = torch.cat(list(shown.values())).numpy()
    low, high = np.percentile(everything, [0.5, 99.5])
    bins = list(np.linspace(float(low), float(high), 60))
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for colour, style, (title, margins) in zip(_COLOURS, ("-", ":", "-", "--"), shown.items(), strict=False):
        values = np.clip(margins.numpy(), bins[0], bins[-1])
        axis.hist(values, bins, histtype="step", color=colour, linestyle=style, linewidth=1.6, label=title)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("margin: logit of the true class − largest other (negative: misclassified)")
    axis.set_ylabel("images")
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(f"{table.spec.data}: decision margins, PGD, {table.spec.threat}, n = {report.clean.n}")
    return figure


def draw_curves(table: DefenceTable) -> Figure:
    """Accuracy against eps, oblivious on the left and adaptive on the right, with 95 % bands."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    for axis, claim in zip(axes, ("oblivious", "adaptive"), strict=True):
        for colour, curve in zip(_COLOURS, table.curves, strict=False):
            accuracies = getattr(curve, claim)
            axis.plot(curve.eps, [100 * a.share for a in accuracies], color=colour, marker="o", markersize=3, label=curve.name)
            axis.fill_between(
                curve.eps, [100 * a.low for a in accuracies], [100 * a.high for a in accuracies], color=colour, alpha=0.12
            )
        axis.axvline(table.spec.threat.eps, color="black", linewidth=0.8, linestyle=":")
        made_on = "the bare classifier" if claim == "oblivious" else "purifier and classifier"
        axis.set_title(f"{claim}: made on {made_on}", fontsize=9)
        axis.set_xlabel(f"eps ({table.spec.threat.norm})")
        axis.set_ylim(-2, 102)
    axes[0].set_ylabel("accuracy, %")
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{table.spec.data}: accuracy against eps, PGD, n = {table.curves[0].adaptive[0].n}", y=1.01)
    return figure


def _show(axis: Any, picture: torch.Tensor) -> None:
    values = picture.detach().clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(values.squeeze(-1) if values.shape[-1] == 1 else values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
