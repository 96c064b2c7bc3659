"""The four experiments in one run, each as an exhibit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from purify.data import ImageSet, file_stem
from purify.eval.exhibit import COLOURS, INK, Cell, Exhibit, inline_svg
from purify.eval.theory.features import FeatureSet, cut_patches, learn_features
from purify.eval.theory.landscape import critical_points, recover_atoms
from purify.eval.theory.proximal import OPERATORS, compare_with_minimiser
from purify.eval.theory.subspace import SubspaceFinding, compare_with_pca
from purify.progress_bar import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TheorySettings", "run_theory"]

PENALTY = 0.1
"""λ of the landscape."""


@dataclass(frozen=True, kw_only=True)
class TheorySettings:
    """How long the four experiments take."""

    subspace_steps: int = 20_000
    """Of gradient descent, for the linear autoencoder."""
    starts: int = 100
    """Random dictionaries from which the true atoms are sought."""
    recovery_steps: int = 1500
    """Of gradient descent, for each of them."""
    feature_steps: int = 1500
    """Of gradient descent, for each dictionary of real patches."""
    feature_seeds: int = 3
    """Dictionaries learnt by each method, for its stability."""
    seed: int = 0
    """Of everything random."""


def run_theory(
    data: Mapping[str, ImageSet], settings: TheorySettings | None = None, *, quiet: bool = False
) -> tuple[list[Exhibit], list[str]]:
    """Run all four; returns the exhibits, and what each found in a sentence.

    Args:
        data: training images by name, from whose patches subspaces and features are learnt.
        settings: None: the defaults, a few minutes.
        quiet: no progress bar.
    """
    settings = settings or TheorySettings()
    images = {name: one.first(5000).batch(slice(None))[0] for name, one in data.items()}

    def parts() -> Iterator[Exhibit]:
        yield _subspaces(images, settings)
        yield _operators(settings.seed)
        yield _landscape(settings)
        for name, pictures in images.items():
            yield _features(name, pictures, settings)

    exhibits = []
    with progress_bar(total=3 + len(images), label="theory", unit="part", quiet=quiet) as bar:
        for exhibit in parts():
            exhibits.append(exhibit)
            bar.update()
    return exhibits, [f"{exhibit.title}: {exhibit.found}" for exhibit in exhibits]


def patch_side(images: Tensor) -> int:
    """Of the patches that are learnt from: 12 pixels, or whole images where they are smaller."""
    return min(12, int(images.shape[-2]), int(images.shape[-1]))


def _subspaces(images: Mapping[str, Tensor], settings: TheorySettings) -> Exhibit:
    found: list[SubspaceFinding] = []
    for name, pictures in images.items():
        side = min(8, *pictures.shape[-2:])
        patches = pictures if pictures.shape[-1] == side else cut_patches(pictures, side, 10_000, settings.seed)
        found.append(compare_with_pca(file_stem(name), patches.flatten(1), 10, steps=settings.subspace_steps, seed=settings.seed))

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for colour, one in zip(cycle(COLOURS[1:]), found, strict=False):
            places = np.arange(len(one.losses)) * 100
            axis.plot(places, np.maximum(np.array(one.losses) / one.pca_error - 1, 1e-12), color=colour, label=one.data)
        axis.set_yscale("log")
        axis.set_xlabel("step of gradient descent")
        axis.set_ylabel("error above PCA's, share")
        axis.legend(frameon=False, fontsize=9)

    return Exhibit(
        id="subspace",
        title="A linear autoencoder finds PCA's subspace",
        reading=(
            "Reconstruction error of a linear autoencoder, trained by gradient descent from random weights, above that of PCA "
            "with as many components. Theory: it falls to zero, and the angle between both subspaces with it; the atoms "
            "themselves are no principal directions (alignment below 1), since any basis of the subspace does as well."
        ),
        found="; ".join(
            f"{one.data}: largest angle {one.largest_angle:.3f}°, error {100 * one.excess:.4f} % above PCA's, alignment "
            f"of atoms {one.alignment:.2f}"
            for one in found
        )
        + ".",
        columns=("data", "samples", "dimension", "units", "largest angle, degrees", "error", "PCA's error", "alignment"),
        rows=[(o.data, o.n, o.dimension, o.units, o.largest_angle, o.error, o.pca_error, o.alignment) for o in found],
        svg=inline_svg(paint),
    )


def _operators(seed: int) -> Exhibit:
    found = [compare_with_minimiser(name, seed=seed) for name in OPERATORS]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, len(OPERATORS), sharey=True)
        v = torch.linspace(-3, 3, 601)
        for axis, (name, operator) in zip(axes, OPERATORS.items(), strict=True):
            axis.plot(v, v, ":", color=INK, linewidth=0.8)
            axis.plot(v, operator.apply(v, torch.ones(1)), color=COLOURS[1])
            axis.set_title(name, fontsize=8)
            axis.set_xlabel("v")
        axes[0].set_ylabel("z, θ = 1")

    return Exhibit(
        id="proximal",
        title="Thresholds are proximal operators",
        reading=(
            "Each threshold solves a small problem: stay near v, but pay for not being zero. The soft ones bend at θ, and "
            "never move two points further apart; the hard ones jump, and below the jump their gradient is zero however near "
            "the jump is."
        ),
        found="; ".join(
            f"{one.name}: within {one.largest_gap:.1g} of a numerical minimiser, gradients within {one.largest_slope_gap:.1g}"
            for one in found
        )
        + f" ({found[0].draws} random points each).",
        columns=("operator", "solves argmin over z", "points", "largest gap", "largest gap of the gradient"),
        rows=[(o.name, o.problem, o.draws, o.largest_gap, o.largest_slope_gap) for o in found],
        svg=inline_svg(paint),
    )


def _landscape(settings: TheorySettings) -> Exhibit:
    points = [*critical_points(0.0), *critical_points(PENALTY)]
    recoveries = [
        recover_atoms(penalty, starts=settings.starts, steps=settings.recovery_steps, seed=settings.seed)
        for penalty in (0.0, PENALTY)
    ]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for number, point in enumerate(p for p in points if p.penalty):
            left.plot(point.eigenvalues, "o-", markersize=3, color=COLOURS[number + 1], label=f"{point.name}: {point.kind}")
        left.axhline(0, color=INK, linewidth=0.8)
        left.set_yscale("symlog", linthresh=0.01)
        left.set_xlabel("eigenvalue of the Hessian, smallest first")
        left.set_title(f"λ = {PENALTY}", fontsize=9)
        left.legend(frameon=False, fontsize=7)
        for colour, one in zip(cycle(COLOURS), recoveries, strict=False):
            right.hist(one.similarity, bins=np.linspace(0.4, 1, 31).tolist(), color=colour, alpha=0.7, label=f"λ = {one.penalty}")
        right.set_xlabel("mean |cos| to the true atoms")
        right.set_ylabel("random starts")
        right.legend(frameon=False, fontsize=8)

    rows: list[tuple[Cell, ...]] = [
        (
            p.name,
            p.penalty,
            p.kind,
            p.gradient,
            p.eigenvalues[0],
            p.eigenvalues[-1],
            sum(e < -1e-6 for e in p.eigenvalues),
            p.value,
        )
        for p in points
    ]
    rows += [
        (f"{r.starts} random starts", r.penalty, f"true atoms found in {r.recovered} of {r.starts}", *[None] * 5)
        for r in recoveries
    ]
    kinds = ", ".join(f"{p.name}: {p.kind}" for p in points if p.penalty)
    flat = ", ".join(sorted({p.kind for p in points if not p.penalty}))
    return Exhibit(
        id="landscape",
        title="The L1 penalty turns rotated dictionaries into saddles",
        reading=(
            "A tied autoencoder learns four atoms from codes with one active unit. Left: curvatures at three critical points; "
            "all above zero is a strict minimum, any below it a saddle. Right: how near random starts come to the true atoms "
            "(here eight, each active in 15 % of the samples). "
            "Theory: without the penalty every rotation of the atoms is as good (flat); with it only the true atoms are a "
            "minimum."
        ),
        found=(
            f"with λ = {PENALTY} {kinds}; without it all three are {flat}. The true atoms are found from "
            f"{recoveries[1].recovered} of "
            f"{recoveries[1].starts} random starts with the penalty, from {recoveries[0].recovered} without."
        ),
        columns=("point", "λ", "kind", "gradient", "smallest curvature", "largest", "directions downhill", "loss"),
        rows=rows,
        svg=inline_svg(paint),
    )


def _features(name: str, images: Tensor, settings: TheorySettings) -> Exhibit:
    found = learn_features(
        file_stem(name), images, side=patch_side(images), steps=settings.feature_steps, seeds=settings.feature_seeds
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, len(found))
        for axis, one in zip(axes, found, strict=True):
            axis.imshow(_sheet(one), cmap="gray", interpolation="nearest")
            axis.set_title(one.method, fontsize=9)
            axis.set_axis_off()

    columns = ("L0", "density", "code sparsity", "dead units", "part-basedness", "explained variance", "stability")
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        figures = (one.l0, one.density, one.code_sparsity, one.dead_units, one.part_basedness, one.explained_variance)
        rows.append((one.method, *figures, one.stability))
    return Exhibit(
        id=f"features-{file_stem(name)}",
        title=f"Dense and sparse features of {file_stem(name)}",
        reading=(
            "The atoms of each method, those used most first (grey is zero). PCA's are waves over the whole patch; a dense "
            "code mixes; a sparse one specialises. Code sparsity and part-basedness are Hoyer's measure (0 spread evenly, 1 a "
            "single entry); stability is the mean |cos| between dictionaries learnt from other seeds, matched one to one "
            "(PCA: from two halves of the patches)."
        ),
        found="; ".join(
            f"{o.method}: {o.l0:.1f} of {len(o.atoms)} units active, part-basedness {o.part_basedness:.2f}, explained variance "
            f"{o.explained_variance:.2f}, stability {o.stability:.2f}"
            for o in found
        )
        + ".",
        columns=("method", *columns),
        rows=rows,
        svg=inline_svg(paint, (8.0, 3.0)),
    )


def _sheet(features: FeatureSet, across: int = 8) -> np.ndarray:
    """Atoms side by side, each stretched to its own largest value; three channels in colour."""
    atoms = features.atoms[: across * across]
    side = atoms.shape[-1]
    sheet = np.full((across * (side + 1), across * (side + 1), atoms.shape[1]), 0.5)
    for number, atom in enumerate(atoms):
        row, column = divmod(number, across)
        picture = 0.5 + 0.5 * (atom / atom.abs().max().clamp_min(1e-12)).permute(1, 2, 0).numpy()
        sheet[row * (side + 1) :, column * (side + 1) :][:side, :side] = picture
    return sheet[..., 0] if sheet.shape[-1] == 1 else sheet
