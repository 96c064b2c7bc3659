"""Intervals: a figure without one is not reported."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # scipy.stats would take two seconds to import

__all__ = ["bootstrap_interval", "mean_interval", "wilson_interval"]


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927, equation 1), as shares in [0, 1].

    ``successes`` may be a sum of shares, as of random defences: a share varies no more than a yes or no of the same mean, so the
    interval is no narrower than it should be.

    Raises:
        ValueError: n of 0, or successes outside 0 … n.

    >>> tuple(round(bound, 3) for bound in wilson_interval(95, 100))
    (0.888, 0.978)
    """
    if n < 1 or not -1e-9 <= successes <= n + 1e-9:
        raise ValueError(f"expected 0 to n successes of n ≥ 1 images, got {successes} of {n}")
    z, share = float(ndtri(0.975)), min(max(successes / n, 0.0), 1.0)
    centre = share + z * z / (2 * n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # exactly, where rounding would leave 1e-17


def mean_interval(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over images of rows (N, …) and its 95 % interval by Student's t (Student 1908), which few images make wide: each (…).
    The bounds of a single image are NaN.

    >>> [round(float(value), 2) for value in mean_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.48, 4.48]
    """
    n, mean = len(rows), rows.mean(0)
    half = float(stdtrit(n - 1, 0.975)) * rows.std(0, ddof=1) / n**0.5 if n > 1 else np.full_like(mean, np.nan)
    return mean, mean - half, mean + half


def bootstrap_interval(
    rows: NDArray[np.float64], statistic: str = "recovered", draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap over images (Efron 1979).

    Args:
        rows: for ``recovered`` (N, 3), whether each image was right when clean, attacked, and purified; for ``median`` (N,).
        statistic: ``recovered`` = (purified − attacked) / (clean − attacked), or ``median``.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        Lower and upper bound; NaN where more than a tenth of the resamples have nothing to recover: the attack took nothing.
    """
    if statistic not in ("median", "recovered"):
        raise ValueError(f"unknown statistic {statistic!r}; known: recovered, median")
    generator = np.random.default_rng(seed)
    parts = []
    for done in range(0, draws, 50):  # few at a time: 2,000 resamples of 10,000 images are half a gigabyte
        resampled = rows[generator.integers(0, len(rows), size=(min(50, draws - done), len(rows)))]
        parts.append(np.median(resampled, axis=1) if statistic == "median" else resampled.mean(axis=1))
    values = np.concatenate(parts)
    if statistic == "recovered":
        clean, attacked, purified = values[values[:, 0] > values[:, 1]].T
        values = (purified - attacked) / (clean - attacked)
        if len(values) < 0.9 * draws:
            return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
