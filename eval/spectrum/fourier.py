"""The Fourier heat map: what a perturbation along each single frequency does, at one fixed length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.gradient import Model
from purify.eval.intervals import wilson_interval

__all__ = ["FourierMap", "fourier_direction", "fourier_map"]


@dataclass(frozen=True)
class FourierMap:
    """One figure for each frequency (i, j); (0, 0) is the constant, and (i, j) and (−i, −j) are the same wave."""

    length: float
    """Euclidean, of the perturbations."""
    n: int
    """Images."""
    down: list[int]
    """i of each wave, cycles over the height."""
    across: list[int]
    """j of each wave, cycles over the width."""
    error: list[float]
    """Share of images misclassified."""
    low: list[float]
    """95 % Wilson interval, lower bound."""
    high: list[float]
    transfer: list[float]
    """Σ ⟨P(x') − P(x), U⟩ / Σ ⟨x' − x, U⟩ over images, x' the clipped x + vU: the share of the wave that the purifier lets
    through. Empty without one."""


def fourier_direction(i: int, j: int, height: int, width: int, channels: int) -> Tensor:
    """A real plane wave (C, H, W) of unit Euclidean norm with i cycles down and j across.

    >>> round(fourier_direction(1, 2, 8, 8, 3).norm().item(), 5)
    1.0
    """
    down, across = torch.arange(height)[:, None] / height, torch.arange(width) / width
    wave = torch.cos(2 * math.pi * (i * down + j * across)).expand(channels, height, width)
    unit: Tensor = wave / wave.norm().clamp_min(1e-12)
    return unit


def fourier_map(
    model: Model,
    purifier: Model | None,
    images: Tensor,
    labels: Tensor,
    length: float,
    *,
    most: int = 15,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> FourierMap:
    """Add every wave up to the Nyquist frequency, at a fixed length and with a random sign for each image, and clip to [0, 1]
    (Yin, Gontijo Lopes, Shlens, Cubuk & Gilmer 2019, section 4.1).

    Args:
        model: images to logits.
        purifier: images to images; None: no transfer function.
        images: (N, C, H, W).
        labels: (N,).
        length: Euclidean norm of a perturbation before it is clipped.
        most: larger images get a grid of at most so many frequencies in each quadrant.
        seed: of the signs.
        tick: called after each wave.
    """
    n, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (_grid(side, most) for side in (height, width))
    places = [(i, j) for i in rows for j in (*(-c for c in reversed(columns[1:])), *columns) if (i, j) >= (0, 0)]
    found: dict[str, list[float]] = {name: [] for name in ("error", "low", "high", "transfer")}
    with torch.no_grad():
        before = None if purifier is None else purifier(images)
        for i, j in places:
            wave = fourier_direction(i, j, height, width, channels).to(images)
            sign = (torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * 2 - 1).to(images)
            moved = (images + length * sign * wave).clamp(0, 1)
            if purifier is not None and before is not None:
                passed = ((purifier(moved) - before) * wave * sign).flatten(1).sum(1)
                came = ((moved - images) * wave * sign).flatten(1).sum(1)  # less than the length where it was clipped
                found["transfer"].append(float(passed.sum() / came.sum().clamp_min(1e-12)))
            wrong = int((model(moved).argmax(1) != labels).sum())
            found["error"].append(wrong / n)
            low, high = wilson_interval(wrong, n)
            found["low"].append(low)
            found["high"].append(high)
            if tick is not None:
                tick()
    return FourierMap(length, n, [i for i, _ in places], [j for _, j in places], **found)


def _grid(side: int, most: int) -> list[int]:
    """Frequencies 0 … side/2, thinned to at most ``most``."""
    top = side // 2
    return sorted({round(i * top / min(top, most - 1)) for i in range(min(top, most - 1) + 1)}) if top else [0]
