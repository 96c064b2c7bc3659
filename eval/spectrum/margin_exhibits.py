"""Figures of what that does to decisions: margins by direction, PGD inside bands, margin against slope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import spearmanr

from purify.eval.exhibit import COLOURS, INK, Cell, Exhibit, inline_svg
from purify.eval.spectrum.claim import paired_ratio
from purify.eval.spectrum.measure import Ground, Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["band_pgd_exhibit", "lipschitz_exhibit", "margin_spectrum_exhibit"]


def margin_spectrum_exhibit(found: list[Measured], ground: Ground) -> Exhibit | None:
    """Smallest norms inside bands; None where nothing has a gradient."""
    shown = [m for m in found if m.norms]
    if not shown:
        return None
    names = [band.name for band in ground.bands]
    equal = ground.portion == "third"
    sizes = {band.name: band.size for band in ground.bands}

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        width = 0.8 / len(shown)
        for number, one in enumerate(shown):
            summaries = [_median_interval(one.norms[name]) for name in names]
            places = np.arange(len(names)) + (number - (len(shown) - 1) / 2) * width
            medians = [s[0] for s in summaries]
            ends = [[s[0] - s[1] for s in summaries], [s[2] - s[0] for s in summaries]]
            axis.bar(places, medians, width, color=COLOURS[number % len(COLOURS)], label=one.subject.name)
            axis.errorbar(places, medians, np.maximum(np.nan_to_num(ends), 0), fmt="none", ecolor=INK, elinewidth=0.8)
        axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8)
        axis.set_yscale("log")
        axis.set_ylabel("smallest norm (L2), median")
        axis.legend(frameon=False, fontsize=8)

    rows: list[tuple[Cell, ...]] = []
    bare = shown[0]
    said = []
    for one in shown:
        ratios = {name: paired_ratio(one.norms[name], bare.norms[name]) for name in names}
        for name in names:
            ratio, against = ratios[name], paired_ratio(one.norms[name], one.norms["all"])
            found_share = float(torch.isfinite(one.norms[name]).double().mean())
            row = (
                *_median_interval(one.norms[name]),
                ratio.median,
                ratio.low,
                ratio.high,
                against.median,
                against.low,
                against.high,
            )
            rows.append((one.subject.name, name, sizes[name], found_share, *row))
        if one is not bare:
            said.append(f"{one.subject.name}: " + ", ".join(f"{name} {ratios[name]}" for name in names))
    return Exhibit(
        id="margin-spectrum",
        title="Margin spectrum",
        reading=(
            "The length of the smallest perturbation that breaks an image, when it may use all of image space or only one "
            f"{ground.portion} of the directions: by natural variance (PCA), or by frequency (DCT). "
            + ("The bands of a basis have equal dimension. " if equal else "PCA's differ in dimension (see the table). ")
            + "The claim predicts growth, against the bare classifier, in bands of low variance and high frequency; "
            "its falsifier is that there is none in the others. Taken without the box [0, 1], as geometry of the decision."
        ),
        found="Against the bare classifier, image by image: " + ("; ".join(said) or "nothing to compare") + ".",
        columns=(
            "purifier",
            "band",
            "dimension",
            "share found",
            "median",
            "low",
            "high",
            "over bare",
            "low ",
            "high ",
            "over all",
            " low",
            " high",
        ),
        rows=rows,
        svg=inline_svg(paint),
    )


def band_pgd_exhibit(found: list[Measured], ground: Ground) -> Exhibit | None:
    """Robust accuracy under PGD inside frequency bands; None where nothing has a gradient."""
    shown = [m for m in found if m.curves]
    if not shown:
        return None
    names = [curve.band for curve in shown[0].curves]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, len(names), sharey=True)
        for axis, place in zip(np.atleast_1d(axes), range(len(names)), strict=True):
            for number, one in enumerate(shown):
                curve, colour = one.curves[place], COLOURS[number % len(COLOURS)]
                axis.plot(curve.radius, [100 * a for a in curve.accuracy], color=colour, label=one.subject.name, linewidth=1.5)
                axis.fill_between(
                    curve.radius, [100 * a for a in curve.low], [100 * a for a in curve.high], color=colour, alpha=0.12
                )
            axis.set_xscale("log")
            axis.set_title(names[place], fontsize=8)
            axis.set_xlabel("L2 radius", fontsize=8)
        np.atleast_1d(axes)[0].set_ylabel("accuracy, %")
        np.atleast_1d(axes)[0].legend(frameon=False, fontsize=7)

    rows: list[tuple[Cell, ...]] = []
    said = []
    for one in shown:
        for curve in one.curves:
            columns = (curve.radius, curve.accuracy, curve.low, curve.high, curve.leak)
            rows += [(one.subject.name, curve.band, curve.size, *row) for row in zip(*columns, strict=True)]
        last = {curve.band: 100 * curve.accuracy[-1] for curve in one.curves}
        leaks = [leak for curve in one.curves[1:] for leak in curve.leak if leak == leak]
        leak = f", at most {100 * max(leaks):.0f} % of the energy outside the band" if leaks else ""
        said.append(f"{one.subject.name} falls to " + ", ".join(f"{v:.0f} % ({k})" for k, v in last.items()) + leak)
    return Exhibit(
        id="band-pgd",
        title="Robust accuracy under PGD inside frequency bands",
        reading=(
            "Accuracy while an adaptive PGD may use all frequencies, or only the lowest, middle or highest third, against its "
            "Euclidean radius, until nothing stands. Images are clipped to [0, 1], which moves some of the energy out of the "
            "band: the table says how much. The claim predicts curves that move to the right for high frequencies."
        ),
        found="; ".join(said) + ".",
        columns=("purifier", "band", "dimension", "radius", "accuracy", "low", "high", "leak"),
        rows=rows,
        svg=inline_svg(paint, (8.2, 3.0)),
    )


def lipschitz_exhibit(found: list[Measured], ground: Ground) -> Exhibit | None:
    """Margin over slope against the smallest norm; None where nothing has a gradient."""
    shown = [m for m in found if m.clean_slope is not None and m.norms]
    if not shown:
        return None
    points, left_out = {}, {}
    for one in shown:
        assert one.clean_slope is not None
        norms = one.norms["all"]
        kept = torch.isfinite(norms) & (one.clean_margin > 0) & (one.clean_slope > 0)
        left_out[one.subject.name] = int(((one.clean_margin > 0) & ~kept).sum())
        points[one.subject.name] = [v[kept].double().cpu().numpy() for v in (one.clean_margin, one.clean_slope, norms)]

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        largest = max((float(norm.max()) for _, _, norm in points.values() if len(norm)), default=1.0)
        for number, (name, (margins, slopes, norms)) in enumerate(points.items()):
            axis.plot(np.minimum(margins / slopes, 3 * largest), norms, ".", color=COLOURS[number % len(COLOURS)], label=name)
        axis.plot([0, largest], [0, largest], color=INK, linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 3.05 * largest)
        axis.set_xlabel("margin / length of its gradient: first-order estimate (dotted: equality)")
        axis.set_ylabel("smallest norm found (L2)")
        axis.legend(frameon=False, fontsize=8)

    rows: list[tuple[Cell, ...]] = []
    said = []
    for name, (margins, slopes, lengths) in points.items():
        lacking = f", {left_out[name]} more without a gradient or a break" if left_out[name] else ""
        if len(lengths) < 3:
            said.append(f"{name}: {len(lengths)} images{lacking}")
            continue
        rank = float(spearmanr(margins / slopes, lengths).statistic)
        ratio = paired_ratio(torch.from_numpy(lengths), torch.from_numpy(margins / slopes))
        rows += [(name, k, *row) for k, row in enumerate(zip(margins.tolist(), slopes.tolist(), lengths.tolist(), strict=True))]
        said.append(
            f"{name}: median margin {np.median(margins):.2f}, median slope {np.median(slopes):.2f}, norm over estimate "
            f"{ratio}, Spearman {rank:+.2f}{lacking}"
        )
    return Exhibit(
        id="lipschitz",
        title="Margin, local Lipschitz constant and smallest norm",
        reading=(
            "A wide margin protects only where the logits do not change fast: each dot is an image, its margin over the "
            "length of the margin's gradient against the smallest perturbation really found. On the dotted line the decision "
            "is linear; dots far below it mean a gradient that hides how near the boundary is (masking); those at the right edge "
            "lie beyond it."
        ),
        found="; ".join(said) + ".",
        columns=("purifier", "image", "margin", "slope", "smallest norm"),
        rows=rows,
        svg=inline_svg(paint),
    )


def _median_interval(norms: torch.Tensor) -> tuple[float, float, float]:
    ratio = paired_ratio(norms, torch.ones_like(norms))
    return ratio.median, ratio.low, ratio.high
