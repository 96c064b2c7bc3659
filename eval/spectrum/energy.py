"""Where a perturbation's energy lies, by directions of a basis, before and after purification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from purify.eval.spectrum.bases import Basis

__all__ = ["EnergySpectrum", "energy_spectrum"]

GROUPS = 24
"""Directions are summed in so many groups of equal size, for figures and intervals."""


@dataclass(frozen=True)
class EnergySpectrum:
    """Energy of perturbations δ = x' − x, and of what is left of them, P(x') − P(x), by groups of directions in their order."""

    basis: str
    claim: str
    """oblivious or adaptive: what the attack knew."""
    order: list[float]
    """Mean natural variance (PCA) or radial frequency (DCT) of each group."""
    before: list[float]
    """Share of the perturbation's energy in the group, over all images; sums to 1 where the basis leaves no direction out."""
    before_low: list[float]
    """95 % bootstrap interval over images, lower bound."""
    before_high: list[float]
    after: list[float]
    """Energy that is left after purification, in the same units: 1 in all would be as much as before."""
    after_low: list[float]
    after_high: list[float]
    left: float
    """Energy that is left in all of image space, also in directions that the basis leaves out, in the same units."""

    @property
    def passed(self) -> list[float]:
        """Energy after over energy before, group by group."""
        return [a / b if b > 0 else float("nan") for a, b in zip(self.after, self.before, strict=True)]


def energy_spectrum(basis: Basis, claim: str, change: Tensor, left: Tensor) -> EnergySpectrum:
    """Energies by groups of directions.

    Args:
        basis: in whose order the groups are.
        claim: oblivious or adaptive.
        change: x' − x, (N, C, H, W).
        left: P(x') − P(x), (N, C, H, W).
    """
    groups = min(GROUPS, len(basis))
    edges = np.linspace(0, len(basis), groups + 1).round().astype(int)
    whole = change.flatten(1).square().sum(1).double().numpy()
    before, after = (_grouped(basis.analyse(part), edges) for part in (change, left))
    order = np.add.reduceat(basis.order.numpy(), edges[:-1]) / np.diff(edges)
    total = max(float(whole.sum()), 1e-30)
    rows = ((part.sum(0) / total, *_interval(part, whole)) for part in (before, after))
    (b, b_low, b_high), (a, a_low, a_high) = ([column.tolist() for column in row] for row in rows)
    everything = float(left.double().square().sum()) / total
    return EnergySpectrum(basis.name, claim, order.tolist(), b, b_low, b_high, a, a_low, a_high, everything)


def _grouped(coefficients: Tensor, edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, k) to energies (N, groups)."""
    found: NDArray[np.float64] = np.add.reduceat(coefficients.square().double().numpy(), edges[:-1], axis=1)
    return found


def _interval(part: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % percentile bootstrap over images of Σ part / Σ whole."""
    drawn = np.random.default_rng(0).integers(0, len(part), (1000, len(part)))
    shares = np.stack([part[rows].sum(0) / max(whole[rows].sum(), 1e-30) for rows in drawn])
    low, high = np.percentile(shares, [2.5, 97.5], axis=0)
    return low, high
