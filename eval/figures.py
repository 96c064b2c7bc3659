"""Figures of a defence table: example images, margins before and after, accuracy against eps."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from purify.eval.report import Report
from purify.eval.tables import DefenceTable
from purify.figure_text import read_literally

matplotlib.use("Agg")  # files only: works without a screen
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_examples", "draw_margins", "save_figures"]

_COLOURS = ("#6b7280", "#0f766e", "#b45309", "#7c3aed", "#be185d", "#1d4ed8", "#65a30d", "#0891b2", "#111827", "#f472b6")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def save_figures(table: DefenceTable, folder: Path, stem: str) -> list[Path]:
    """Draw ``<stem>-examples.png`` and ``-margins.png``, if a purifier was measured in this run, and ``-eps.png``, if curves
    were; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"examples": draw_examples, "margins": draw_margins} if _first_purifier(table) else {}
    if any(report.curve is not None for report in table.reports):
        drawings["eps"] = draw_curves
    written = []
    with plt.rc_context(_STYLE):  # type: ignore[arg-type]
        for name, draw in drawings.items():
            figure = draw(table)
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path)
            plt.close(figure)
            written.append(path)
    return written


def draw_examples(table: DefenceTable, count: int = 8) -> Figure:
    """Columns: images that the oblivious PGD broke; rows: clean, attacked, purified, what was removed ×10 (grey is nothing)."""
    report = _first_purifier(table)
    if report is None:
        raise ValueError("no purifier of this table was measured in this run: there are no images to show")
    chosen = [entry for entry in report.gallery if _fell(entry)][:count]
    rows = {"clean": ("clean", "attacked"), "attacked": ("oblivious", "attacked")}
    rows |= {"purified": ("oblivious", "purified"), "removed ×10": ("oblivious", "removed")}
    figure, axes = plt.subplots(len(rows), max(1, len(chosen)), figsize=(1.15 * max(1, len(chosen)), 5.2), squeeze=False)
    for axis_row, (title, (view, picture)) in zip(axes, rows.items(), strict=True):
        for axis, entry in zip(axis_row, chosen, strict=False):
            shown = entry["views"][view]
            _show(axis, shown[picture])
            if picture != "removed":
                predicted = int(np.argmax(shown["defended" if picture == "purified" else "undefended"]))
                right = predicted == entry["label"]
                axis.set_title(f"{predicted} {'✓' if right else '✗'}", color="#15803d" if right else "#b91c1c", fontsize=9)
        axis_row[0].set_ylabel(title)
    figure.suptitle(f"{table.spec.title}: PGD on the bare classifier (oblivious), {table.spec.threat}, purified by {report.name}")
    read_literally(figure)
    figure.tight_layout()
    return figure


def _first_purifier(table: DefenceTable) -> Report | None:
    """The first row of a purifier that has its images with it."""
    return next((report for report in table.reports if report.recovered and report.per_image), None)


def _fell(entry: dict[str, Any]) -> bool:
    """Whether the bare classifier was right, and fell to PGD."""
    said = {view: int(np.argmax(entry["views"][view]["undefended"])) for view in ("clean", "oblivious")}
    return bool(said["clean"] == entry["label"] != said["oblivious"])


def draw_margins(table: DefenceTable) -> Figure:
    """For the first purifier: margins of clean images, of images under oblivious PGD without it and with it, and the lowest that
    the adaptive suite found."""
    report = _first_purifier(table)
    if report is None:
        raise ValueError("no purifier of this table was measured in this run: there are no margins to show")
    rows = report.per_image
    shown = {
        "clean, no defence": rows["undefended_clean_margin"],
        "PGD, no defence": rows["undefended_PGD_margin"],
        f"oblivious PGD, {report.name}": rows["oblivious_PGD_margin"],
        f"adaptive, lowest found, {report.name}": rows["adaptive_margin"],
    }
    everything = torch.nan_to_num(torch.cat(list(shown.values()))).numpy()
    low, high = np.percentile(everything, [0.5, 99.5])
    bins = list(np.linspace(float(low), float(high), 60))
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for colour, style, (title, margins) in zip(_COLOURS, ("-", ":", "-", "--"), shown.items(), strict=False):
        values = np.clip(margins[torch.isfinite(margins)].numpy(), bins[0], bins[-1])
        axis.hist(values, bins, histtype="step", color=colour, linestyle=style, linewidth=1.6, label=title)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("margin: logit of the true class − largest other (negative: misclassified)")
    axis.set_ylabel("images")
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(f"{table.spec.title}: decision margins, {table.spec.threat}, n = {report.clean.n}")
    read_literally(figure)
    return figure


def draw_curves(table: DefenceTable) -> Figure:
    """Accuracy against eps, oblivious on the left and adaptive on the right, with 95 % bands. A line for each row: a defence
    keeps its colour in front of another classifier, where its line is dashed."""
    rows = [(report.name, report.curve) for report in table.reports if report.curve is not None]
    defences = list(dict.fromkeys(name.partition(", ")[0] for name, _ in rows))
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    shown, largest = 0, 0.0
    for axis, claim in zip(axes, ("oblivious", "adaptive"), strict=True):
        for name, curve in rows:
            accuracies = getattr(curve, claim)
            if not accuracies:
                continue
            defence, _, other = name.partition(", ")
            colour = _COLOURS[defences.index(defence) % len(_COLOURS)]
            shown, low, high = accuracies[0].n, [100 * a.low for a in accuracies], [100 * a.high for a in accuracies]
            largest = max(largest, curve.eps[-1])
            line = [100 * a.share for a in accuracies]
            style = "--" if other else "-"
            axis.plot(curve.eps, line, color=colour, linestyle=style, marker="o", markersize=3, label=name)
            axis.fill_between(curve.eps, low, high, color=colour, alpha=0.08, linewidth=0)
        axis.axvline(table.spec.threat.eps, color="black", linewidth=0.8, linestyle=":")
        made_on = "the bare classifier" if claim == "oblivious" else "purifier and classifier"
        axis.set_title(f"{claim}: made on {made_on}", fontsize=9)
        axis.set_xlabel(f"eps, {table.spec.threat.norm_name}; dotted: the table's")
        axis.set_ylim(-2, 102)
    for axis in axes:
        axis.set_xlim(0, min(4.2 * table.spec.threat.eps, 1.02 * largest))
    axes[0].set_ylabel("accuracy, %")
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.02))
    figure.suptitle(f"{table.spec.title}: accuracy against eps, n = {shown}", y=1.01)
    read_literally(figure)
    return figure


def _show(axis: Any, png: str) -> None:
    axis.imshow(Image.open(io.BytesIO(base64.b64decode(png))), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
