"""Gain against natural variance: which directions of image space does a purifier let through?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from torch import Tensor

from purify.eval.intervals import mean_interval

__all__ = ["Correlation", "GainCurve", "fit_wiener", "wiener_gain"]

_DRAWS = 1000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GainCurve:
    """Gains uₖᵀ J uₖ along the directions of a basis, beside the variance of natural images along them."""

    basis: str
    directions: list[int]
    """Which of the basis, counted from 1 (PCA: most natural variance first)."""
    variances: list[float]
    """λ, one a direction."""
    gains: list[float]
    """Mean over the images."""
    low: list[float]
    """95 % interval of the mean, lower bound."""
    high: list[float]
    correlation: Correlation
    """Of gain with variance, over directions."""
    noise: float
    """σ of the Wiener curve λ/(λ+σ²) that fits the gains best."""
    wiener_error: float
    """Root mean squared distance of the gains from that curve."""

    @classmethod
    def of(cls, basis: str, places: Tensor, variances: Tensor, gains: Tensor) -> GainCurve:
        """From places in the basis (k,), counted from 0, variances (k,) and gains (images, k)."""
        values, rows = variances.double().numpy(), gains.double().numpy()
        mean, low, high = mean_interval(rows)
        noise = fit_wiener(values, mean)
        return cls(
            basis=basis,
            directions=(places + 1).tolist(),
            variances=values.tolist(),
            gains=mean.tolist(),
            low=low.tolist(),
            high=high.tolist(),
            correlation=_correlate(values, rows),
            noise=noise,
            wiener_error=float(np.sqrt(np.square(mean - wiener_gain(values, noise)).mean())),
        )


def wiener_gain(variances: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """λ / (λ + σ²): the gains of the best linear filter against white noise of standard deviation σ (Wiener 1949)."""
    return variances / np.maximum(variances + noise**2, 1e-30)


def fit_wiener(variances: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """The σ in 1e-4 … 10 whose Wiener curve is nearest to the gains, by least squares."""

    def distance(log_noise: float) -> float:
        return float(np.square(gains - wiener_gain(variances, np.exp(log_noise))).sum())

    grid = np.linspace(np.log(1e-4), np.log(10), 60)
    best = grid[int(np.argmin([distance(point) for point in grid]))]
    found = minimize_scalar(distance, bounds=(best - 0.3, best + 0.3), method="bounded")
    return float(np.exp(found.x))


def _constant(gains: NDArray[np.float64]) -> bool:
    """Whether they differ by no more than float32's rounding, whose ranks mean nothing."""
    return bool(np.ptp(gains) <= 1e-5 * max(float(np.abs(gains).max()), 1e-4))


def _correlate(variances: NDArray[np.float64], rows: NDArray[np.float64]) -> Correlation:
    """Spearman of variance with mean gain; the interval resamples images."""
    mean = rows.mean(0)
    if _constant(mean) or np.ptp(variances) < 1e-12:
        return Correlation(float("nan"), float("nan"), float("nan"))  # one of them is constant
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS if len(rows) > 1 else 0):
        again = rows[generator.integers(0, len(rows), len(rows))].mean(0)
        if not _constant(again):
            drawn.append(float(spearmanr(variances, again).statistic))
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (float("nan"), float("nan"))
    return Correlation(float(spearmanr(variances, mean).statistic), float(low), float(high))
