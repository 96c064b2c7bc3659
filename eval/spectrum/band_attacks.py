"""Attacks inside a band: the smallest perturbation that breaks an image, and PGD, both with every gradient projected.

Both are Euclidean, since only then does a projected gradient keep the perturbation in its band. The smallest norms are taken
without the box [0, 1], as geometry of the decision function: clipping would move the perturbation into other bands. PGD clips,
as an image must, and says which share of its energy thereby left the band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.gradient import Model
from purify.attacks.result import margin
from purify.eval.intervals import wilson_interval
from purify.eval.spectrum.bases import Band

__all__ = ["BandCurve", "band_accuracy", "margin_slopes", "smallest_norms"]


@dataclass(frozen=True)
class BandCurve:
    """Robust accuracy under PGD inside one band, against the Euclidean radius."""

    band: str
    size: int
    """Dimension of the band."""
    radius: list[float]
    accuracy: list[float]
    low: list[float]
    """95 % Wilson interval, lower bound."""
    high: list[float]
    leak: list[float]
    """Share of the perturbations' energy that clipping to [0, 1] moved out of the band, among those that broke an image first at
    this radius; NaN where none did."""


def _climb(model: Model, images: Tensor, labels: Tensor, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """−margin (n,), whose rise breaks the image, and its gradient (n, C, H, W)."""
    at = images.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        logits = model(at).float()
        value = -margin(logits, labels)
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient


def _length(changes: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3))
    return length


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def smallest_norms(
    model: Model, images: Tensor, labels: Tensor, band: Band, *, steps: int = 40, bfloat16: bool = False
) -> Tensor:
    """Euclidean norm (n,) of the smallest perturbation in ``band`` found to break each image; infinite where none was.

    The fast minimum-norm attack (Pintor et al. 2021, algorithm 1) with its gradient projected onto the band, without the box.
    Of a linear classifier it is the margin over the length of the projected weight difference.

    Args:
        model: images to logits, defined outside [0, 1] too.
        images: (n, C, H, W), classified rightly.
        labels: (n,).
        band: a subspace of image space.
        steps: gradient evaluations.
        bfloat16: take the steps in it; what they find is confirmed in the images' own type.
    """
    change = torch.zeros_like(images)
    best, smallest = change.clone(), images.new_full((len(images),), float("inf"))
    radius = smallest.clone()
    for k in range(steps):
        share = (1 + torch.cos(torch.tensor(torch.pi * k / steps)).item()) / 2
        # the first in float32: an image whose margin is within bfloat16's rounding would be taken for broken by nothing
        value, gradient = _climb(model, images + change, labels, bfloat16 and k > 0)
        gradient = torch.nan_to_num(band.project(gradient))
        slope, distance = _length(gradient), _length(change)
        broken = (value > 0) & (distance < smallest)
        smallest = torch.where(broken, distance, smallest)
        best = torch.where(_wide(broken), change, best)
        boundary = distance + (-value).clamp_min(0) / slope.clamp_min(1e-12)
        first = torch.maximum(distance * 1.2, boundary * 1.01)  # beyond the boundary's first-order estimate
        grown = torch.where(torch.isfinite(smallest), radius * (1 + 0.05 * share), first)
        radius = torch.where(value > 0, torch.minimum(radius * (1 - 0.05 * share), smallest), grown)
        radius = torch.where(slope > 0, radius, distance).clamp_max(1e4)
        alpha = torch.where(torch.isfinite(smallest), radius * share, radius - distance + 0.1 * radius).clamp_min(0)
        moved = change + _wide(alpha / slope.clamp_min(1e-12)) * gradient
        change = moved * _wide((radius / _length(moved).clamp_min(1e-12)).clamp_max(1))
    return _confirm(model, images, labels, best, smallest)


def _confirm(model: Model, images: Tensor, labels: Tensor, best: Tensor, smallest: Tensor) -> Tensor:
    """The norms at which the perturbations really break: lengthened a little where rounding had decided, shortened by
    bisection."""
    found = torch.isfinite(smallest)
    direction = best / _wide(_length(best).clamp_min(1e-12))

    def breaks(length: Tensor) -> Tensor:
        with torch.no_grad():
            value = -margin(model(images + _wide(length) * direction), labels)
        return (value > 0) & found

    reach = torch.where(found, smallest, torch.zeros_like(smallest))
    high = torch.full_like(smallest, float("inf"))
    for factor in (1.0, 1.01, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0):
        trial = reach * factor
        high = torch.where(breaks(trial) & ~torch.isfinite(high), trial, high)
        if bool((torch.isfinite(high) | ~found).all()):
            break
    low = torch.zeros_like(smallest)
    known = torch.isfinite(high)
    for step in range(8):  # the attack was near already: look a fifth below first
        middle = torch.where(known, 0.8 * high if step == 0 else (low + high) / 2, low)
        hit = breaks(middle) & known
        high, low = torch.where(hit, middle, high), torch.where(hit | ~known, low, middle)
    return high


def band_accuracy(
    model: Model,
    images: Tensor,
    labels: Tensor,
    band: Band,
    radii: Sequence[float],
    *,
    steps: int = 10,
    bfloat16: bool = False,
) -> BandCurve:
    """Robust accuracy under PGD whose perturbation lies in ``band`` before it is clipped to [0, 1], at rising radii.

    What a radius breaks stays broken at the larger ones; each radius begins where the one before ended.

    Args:
        model: images to logits.
        images: (n, C, H, W) in [0, 1].
        labels: (n,).
        band: a subspace of image space.
        radii: Euclidean, rising; those beyond the first with nothing left standing cost nothing.
        steps: of PGD at each radius, with a step of 2.5 · radius / steps.
        bfloat16: take the steps in it; verdicts are float32's.
    """
    with torch.no_grad():
        standing = model(images).argmax(1) == labels
    change = torch.zeros_like(images)
    rows_so_far: list[tuple[float, float, float, float, float]] = []
    for radius in radii:
        rows = standing.nonzero().flatten()
        leak = float("nan")
        if len(rows):
            x, y, delta = images[rows], labels[rows], change[rows]
            best, highest = delta.clone(), x.new_full((len(rows),), -float("inf"))
            for _ in range(steps):
                value, gradient = _climb(model, (x + delta).clamp(0, 1), y, bfloat16)
                best = torch.where(_wide(value > highest), delta, best)
                highest = torch.maximum(highest, value)
                gradient = torch.nan_to_num(band.project(gradient))
                delta = delta + _wide(2.5 * radius / steps / _length(gradient).clamp_min(1e-12)) * gradient
                delta = delta * _wide((radius / _length(delta).clamp_min(1e-12)).clamp_max(1))
            with torch.no_grad():
                last = -margin(model((x + delta).clamp(0, 1)), y)
                best = torch.where(_wide(last > highest), delta, best)
                attacked = (x + best).clamp(0, 1)
                right = model(attacked).argmax(1) == y
            change[rows], standing[rows] = best, right
            if bool((~right).any()):
                done = (attacked - x)[~right]
                outside = done - band.project(done)
                leak = float(outside.square().sum() / done.square().sum().clamp_min(1e-30))
        share = float(standing.float().mean())
        low, high = wilson_interval(int(standing.sum()), len(images))
        rows_so_far.append((radius, share, low, high, leak))
    return BandCurve(band.name, band.size, *(list(column) for column in zip(*rows_so_far, strict=True)))


def margin_slopes(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logit margin (n,) and the length of its gradient (n,), the local Lipschitz constant: their quotient is the first-order
    estimate of the smallest norm (Hein & Andriushchenko 2017)."""
    value, gradient = _climb(model, images, labels, False)
    return -value, _length(gradient)
