"""Figures of what the purifier lets through: gains, energies, singular values, Fourier map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from purify.eval.exhibit import COLOURS, INK, Cell, Exhibit, inline_svg
from purify.eval.intervals import mean_interval
from purify.eval.spectrum.gains import wiener_gain
from purify.eval.spectrum.measure import Ground, Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["energy_exhibit", "fourier_exhibit", "gains_exhibit", "jacobian_exhibit"]


def gains_exhibit(found: list[Measured], ground: Ground) -> Exhibit | None:
    """Gain against natural variance, beside the Wiener curve; None where no purifier has a gradient."""
    shown = [m for m in found if m.gains]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for colour, one in zip(cycle(COLOURS[1:]), shown, strict=False):
            curve = one.gains[0]
            variances = np.array(curve.variances)
            floor = max(float(variances[variances > 0].min()), 1e-9 * float(variances.max()))
            places = np.maximum(variances, floor)
            axis.plot(places, curve.gains, ".", color=colour, markersize=3, label=one.subject.name)
            axis.fill_between(places, curve.low, curve.high, color=colour, alpha=0.15)
            line = np.geomspace(places.min(), places.max(), 100)
            axis.plot(line, wiener_gain(line, curve.noise), color=colour, linewidth=1)
        axis.set_xscale("log")
        axis.set_xlabel("natural variance λ along the direction")
        axis.set_ylabel("gain uᵀ J u")
        axis.legend(frameon=False, fontsize=9)

    rows: list[tuple[Cell, ...]] = []
    said = []
    for one in shown:
        for curve in one.gains:
            rows += [
                (one.subject.name, curve.basis, k, v, g, low, high, float(wiener_gain(np.array([v]), curve.noise)[0]))
                for k, v, g, low, high in zip(curve.directions, curve.variances, curve.gains, curve.low, curve.high, strict=True)
            ]
        natural, chance = one.gains
        r = natural.correlation
        said.append(
            f"{one.subject.name}: Spearman {r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}], over random directions "
            f"{chance.correlation.value:+.2f}; nearest Wiener curve σ = {natural.noise:.3g}, {natural.wiener_error:.2f} "
            "away (r.m.s.)"
        )
    return Exhibit(
        id="gain",
        title="Gain against natural variance",
        reading=(
            "Each dot is a principal direction of natural images: from left to right more natural variance, upwards more of a "
            "small change along it that comes through (1: all, 0: none). Lines: the Wiener filter λ/(λ+σ²) nearest to the "
            "dots. The claim predicts dots that rise from 0 to 1 as the line does. Dots at the left edge have no measured "
            "variance at all."
        ),
        found="; ".join(said) + ".",
        columns=("purifier", "basis", "direction", "variance", "gain", "low", "high", "Wiener"),
        rows=rows,
        svg=inline_svg(paint),
    )


def energy_exhibit(found: list[Measured], ground: Ground, basis: str) -> Exhibit:
    """Energy of the perturbation by groups of a basis (PCA or DCT), before and after purification."""
    shown = [m for m in found if m.subject.purifier is not None] or found

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, claim in zip(axes, ("oblivious", "adaptive"), strict=True):
            for number, one in enumerate(shown):
                spectrum = next(e for e in one.energies if e.basis == basis and e.claim == claim)
                places = np.arange(1, len(spectrum.before) + 1)
                colour = COLOURS[(number + 1) % len(COLOURS)]
                before_colour = INK if claim == "oblivious" else colour
                if claim == "adaptive" or number == 0:
                    axis.plot(places, spectrum.before, ":", color=before_colour, linewidth=1.2)
                axis.plot(places, spectrum.after, color=colour, linewidth=1.6, label=one.subject.name)
                axis.fill_between(places, spectrum.after_low, spectrum.after_high, color=colour, alpha=0.15)
            axis.set_yscale("log")
            axis.set_title(claim, fontsize=10)
            first, last = ("most variance", "least") if basis == "PCA" else ("low frequency", "high")
            axis.set_xlabel(f"group of directions: {first} → {last}")
        axes[0].set_ylabel("share of the energy")
        axes[1].legend(frameon=False, fontsize=8)

    rows: list[tuple[Cell, ...]] = []
    said = []
    for one in shown:
        for e in one.energies:
            if e.basis != basis:
                continue
            columns = (e.order, e.before, e.before_low, e.before_high, e.after, e.after_low, e.after_high, e.passed)
            rows += [(one.subject.name, e.claim, k, *row) for k, row in enumerate(zip(*columns, strict=True), start=1)]
            partial = basis == "PCA" and len(ground.natural) < ground.natural.dimension
            drawn = f", {100 * sum(e.after):.1f} % in the directions that are drawn" if partial else ""
            said.append(f"{one.subject.name}, {e.claim}: {100 * e.left:.0f} % of the energy is left{drawn}")
    where = "principal direction" if basis == "PCA" else "frequency"
    return Exhibit(
        id=f"energy-{basis.lower()}",
        title=f"Energy of the perturbation by {where}",
        reading=(
            "Dotted: the attack's perturbation; lines: what is left of it after purification, in groups of equally many "
            "directions, both as shares of the perturbation's whole energy. The claim predicts lines far below the dots on "
            "the right of the left panel (oblivious); an adaptive attack (right panel) puts its energy where it passes."
        ),
        found="; ".join(said) + ".",
        columns=(
            "purifier",
            "attack",
            "group",
            "variance" if basis == "PCA" else "frequency",
            "before",
            "before low",
            "before high",
            "after",
            "after low",
            "after high",
            "after / before",
        ),
        rows=rows,
        svg=inline_svg(paint),
    )


def jacobian_exhibit(found: list[Measured], ground: Ground) -> Exhibit | None:
    """Singular values, effective dimension, symmetry and overlap; None where no purifier has a gradient."""
    shown = [m for m in found if m.jacobians]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for colour, one in zip(cycle(COLOURS[1:]), shown, strict=False):
            for kind, style in (("clean", "-"), ("attacked", "--")):
                values = np.mean([s.values for s in one.jacobians[kind]], axis=0)
                label = one.subject.name if kind == "clean" else None
                axis.plot(np.arange(1, len(values) + 1), values, style, color=colour, label=label, linewidth=1.5)
        axis.set_xlabel("singular value, largest first (line: clean images, dashes: attacked ones)")
        axis.set_ylabel("size")
        axis.legend(frameon=False, fontsize=9)

    rows: list[tuple[Cell, ...]] = []
    said = []
    for one in shown:
        for kind, summaries in one.jacobians.items():
            figures = {
                "largest singular value": [s.values[0] for s in summaries],
                "effective dimension": [s.effective_dimension for s in summaries],
                "symmetry": [s.symmetry for s in summaries],
                "overlap": [s.overlap for s in summaries],
                "overlap by chance": [s.overlap_by_chance for s in summaries],
            }
            rows += [(one.subject.name, kind, name, *_mean_interval(values)) for name, values in figures.items()]
            if kind == "clean":
                means = {name: float(np.mean(values)) for name, values in figures.items()}
                said.append(
                    f"{one.subject.name}: {means['effective dimension']:.0f} effective dimensions of "
                    f"{ground.images[0].numel()}, symmetry "
                    f"{means['symmetry']:.2f}, overlap with as many leading principal directions {means['overlap']:.2f} "
                    "(by chance "
                    f"{means['overlap by chance']:.2f})"
                )
    return Exhibit(
        id="jacobian",
        title="Singular values of the purifier's Jacobian",
        reading=(
            "How strongly the purifier passes small changes of an image, direction by direction, in its own best basis. A "
            "projection has a step from 1 to 0; the identity a flat line at 1; values above 1 amplify. A selective filter has "
            "few effective dimensions, is nearly symmetric, and overlaps with the directions of most natural variance far "
            "more than by chance."
        ),
        found="; ".join(said) + ".",
        columns=("purifier", "images", "figure", "mean", "low", "high"),
        rows=rows,
        svg=inline_svg(paint),
    )


def fourier_exhibit(found: list[Measured], ground: Ground) -> Exhibit:
    """Error and transfer for each plane wave."""
    maps = [(m.subject.name, m.fourier) for m in found if m.fourier is not None]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(2, len(maps), squeeze=False)
        for column, (name, one) in enumerate(maps):
            for row, values in enumerate((one.error, one.transfer)):
                axis = axes[row, column]
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
                if not values:
                    axis.set_axis_off()
                    continue
                axis.imshow(_square(one.down, one.across, values), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes[0, column].set_title(name, fontsize=8)
        axes[0, 0].set_ylabel("error", fontsize=9)
        axes[1, min(1, len(maps) - 1)].set_ylabel("transfer", fontsize=9)

    rows: list[tuple[Cell, ...]] = []
    for name, one in maps:
        transfer: Sequence[float] = one.transfer or [float("nan")] * len(one.error)
        rows += [(name, *row) for row in zip(one.down, one.across, one.error, one.low, one.high, transfer, strict=True)]
    said = [f"{name}: mean error {100 * np.mean(one.error):.0f} %" for name, one in maps]
    return Exhibit(
        id="fourier",
        title="Fourier heat map",
        reading=(
            "Each cell is one plane wave, the constant in the middle, high frequencies outside. Upper row: share of images "
            "that are "
            f"misclassified when that wave is added at Euclidean length {maps[0][1].length:.3g} (dark 0, bright 1); lower "
            "row: the share of the wave that the purifier lets through. A filter of low pass kind is bright in the middle of "
            "the lower row and dark around."
        ),
        found="; ".join(said) + f" over all waves, {maps[0][1].n} images.",
        columns=("purifier", "cycles down", "cycles across", "error", "low", "high", "transfer"),
        rows=rows,
        svg=inline_svg(paint, (1.7 * max(2, len(maps)), 3.6)),
    )


def _square(down: list[int], across: list[int], values: list[float]) -> Any:
    """The half plane of waves, completed to the whole one by symmetry."""
    rows, columns = sorted({*down, *(-i for i in down)}), sorted({*across, *(-j for j in across)})
    image = np.full((len(rows), len(columns)), np.nan)
    for i, j, value in zip(down, across, values, strict=True):
        image[rows.index(i), columns.index(j)] = value
        image[rows.index(-i), columns.index(-j)] = value
    return image


def _mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    mean, low, high = mean_interval(np.array(values, dtype=np.float64))
    return float(mean), float(low), float(high)
