"""Threat models: which images an attacker may submit in the place of a given one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Norm", "ThreatModel"]

Norm = Literal["linf", "l2", "l1"]

_ROUNDING = 1e-5


@dataclass(frozen=True)
class ThreatModel:
    """All images x' in [0, 1] with ‖x' − x‖ ≤ eps.

    Raises:
        ValueError: unknown norm, eps negative or not finite, or an L∞ eps above 1 (write 8 / 255, not 8).

    >>> ThreatModel("linf", 8 / 255)
    ThreatModel(norm='linf', eps=0.03137...)
    """

    norm: Norm
    """``linf``: largest change of any value; ``l2``: Euclidean length of the change of the whole image; ``l1``: sum of all
    absolute changes."""
    eps: float
    """Radius, in the units of the images, which run from 0 to 1."""

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(get_args(Norm))}")
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"expected eps of 0 or more, got {self.eps}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"expected an L∞ eps of at most 1 (images lie in [0, 1]), got {self.eps}; write 8 / 255, not 8")

    @property
    def norm_name(self) -> str:
        """As it is written in text: L∞, L2 or L1."""
        return {"linf": "L∞", "l2": "L2", "l1": "L1"}[self.norm]

    def __str__(self) -> str:
        name = self.norm_name
        steps = self.eps * 255
        whole = steps > 0 and abs(steps - round(steps)) < 1e-6 and round(steps) < 64
        return f"{name} {round(steps)}/255" if whole and self.norm != "l1" else f"{name} {self.eps:g}"

    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Allowed images near the candidates: into the ball around ``images`` and into [0, 1]. All (N, C, H, W).

        L∞ and L1: the nearest allowed image. L2: first into the ball, then into [0, 1], as every attack of the literature does.
        """
        change = candidates - images
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        elif self.norm == "l2":
            change = change * (self.eps / _length(change).clamp_min(1e-12)).clamp_max(1)
        else:
            change = _soft_threshold(change, _l1_threshold(change, images, self.eps))
        return (images + change).clamp(0, 1)  # images lie in the box, so this only shortens the change

    def random_point(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball around each image, cut to [0, 1]. (N, C, H, W)."""
        if self.norm == "linf":
            noise = torch.empty_like(images).uniform_(-self.eps, self.eps, generator=generator)
        elif self.norm == "l2":
            noise = torch.empty_like(images).normal_(generator=generator)
            dimensions = images[0].numel()
            radius = images.new_empty(len(images), 1, 1, 1).uniform_(generator=generator) ** (1 / dimensions)
            noise = noise * (self.eps * radius / _length(noise).clamp_min(1e-12))
        else:  # shares of a sum of exponentials are uniform on the simplex; one more of them is what stays unspent
            noise = torch.empty_like(images).exponential_(generator=generator)
            spare = images.new_empty(len(images), 1, 1, 1).exponential_(generator=generator)
            signs = torch.randint(0, 2, images.shape, generator=generator, device=images.device).to(images.dtype) * 2 - 1
            noise = self.eps * signs * noise / (noise.sum((1, 2, 3), keepdim=True) + spare)
        return self.project(images + noise, images)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm along which the gradient rises fastest: its sign (L∞), itself / ‖·‖₂ (L2), or the sign
        of its largest value (L1)."""
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / _length(gradient).clamp_min(1e-12)
        flat = gradient.flatten(1)
        first = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, first, flat.gather(1, first).sign()).view_as(gradient)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """‖candidates − images‖ for each image, (N,)."""
        change = (candidates - images).flatten(1)
        if self.norm == "linf":
            return change.abs().amax(1)
        return change.norm(dim=1) if self.norm == "l2" else change.abs().sum(1)

    def verify(self, candidates: Tensor, images: Tensor) -> None:
        """Raise unless every candidate is inside its ball and inside [0, 1], up to rounding.

        Raises:
            RuntimeError: the attack that made them is wrong; nothing it found may be counted.
        """
        outside = self.distance(candidates, images) > self.eps + _ROUNDING * max(1.0, self.eps)
        outside |= ((candidates < -_ROUNDING) | (candidates > 1 + _ROUNDING)).flatten(1).any(1)
        outside |= ~torch.isfinite(candidates).flatten(1).all(1)
        if bool(outside.any()):
            where = outside.nonzero().flatten().tolist()
            raise RuntimeError(f"adversarial images outside {self} or outside [0, 1]: rows {where[:8]} of {len(images)}")


def _length(change: Tensor) -> Tensor:
    """Euclidean length of each image, (N, 1, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return length


def _soft_threshold(change: Tensor, threshold: Tensor) -> Tensor:
    """sign(change) · max(|change| − threshold, 0)."""
    return change.sign() * (change.abs() - threshold).clamp_min(0)


def _l1_threshold(change: Tensor, images: Tensor, eps: float) -> Tensor:
    """The λ (N, 1, 1, 1) for which images + soft_threshold(change, λ), cut to [0, 1], is the projection onto ball and box.

    The box leaves a value the room r = 1 − x upwards or x downwards, so the projection's norm is f(λ) = Σ min(max(|δ| − λ, 0), r)
    (Croce & Hein 2021, section 2). It is piecewise linear: falling from λ = |δ| − r on, flat again from λ = |δ| on. So the
    corners are sorted, f is summed up from corner to corner, and λ lies on the piece on which f passes eps; 0 inside the ball.
    """
    size = change.abs().flatten(1).double()  # sums of 10⁵ values and more
    room = torch.where(change > 0, 1 - images, images).flatten(1).double().clamp_min(0)
    corners = torch.cat([(size - room).clamp_min(0), size], 1)
    turns = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1)  # how the slope changes there
    corners, order = corners.sort(1)
    slopes = turns.gather(1, order).cumsum(1)  # after each corner
    drops = slopes * (corners.roll(-1, 1) - corners)
    drops[:, -1] = 0
    at_zero = torch.minimum(size, room).sum(1, keepdim=True)
    after = at_zero + drops.cumsum(1)  # f at the next corner
    piece = (after > eps).sum(1, keepdim=True).clamp_max(corners.shape[1] - 1)
    left = corners.gather(1, piece)
    f_left = torch.where(piece > 0, after.gather(1, (piece - 1).clamp_min(0)), at_zero)
    slope = slopes.gather(1, piece).clamp_max(-1)
    threshold = torch.where(at_zero > eps, left + (eps - f_left) / slope, torch.zeros_like(left))
    return threshold.to(change.dtype)[:, :, None, None]
