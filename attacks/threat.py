"""Threat models: which images an attacker may submit in the place of a given one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Norm", "ThreatModel"]

Norm = Literal["linf", "l2"]

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
    """``linf``: largest change of any value; ``l2``: Euclidean length of the change of the whole image."""
    eps: float
    """Radius, in the units of the images, which run from 0 to 1."""

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(get_args(Norm))}")
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"expected eps of 0 or more, got {self.eps}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"expected an L∞ eps of at most 1 (images lie in [0, 1]), got {self.eps}; write 8 / 255, not 8")

    def __str__(self) -> str:
        name = {"linf": "L∞", "l2": "L2"}[self.norm]
        steps = self.eps * 255
        whole = steps > 0 and abs(steps - round(steps)) < 1e-6 and round(steps) < 64
        return f"{name} {round(steps)}/255" if whole else f"{name} {self.eps:g}"

    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        """The nearest allowed images: into the ball around ``images``, then into [0, 1]. All (N, C, H, W)."""
        change = candidates - images
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / _length(change).clamp_min(1e-12)).clamp_max(1)
        return (images + change).clamp(0, 1)  # images lie in the box, so this only shortens the change

    def random_point(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball around each image, cut to [0, 1]. (N, C, H, W)."""
        if self.norm == "linf":
            noise = torch.empty_like(images).uniform_(-self.eps, self.eps, generator=generator)
        else:
            noise = torch.empty_like(images).normal_(generator=generator)
            dimensions = images[0].numel()
            radius = images.new_empty(len(images), 1, 1, 1).uniform_(generator=generator) ** (1 / dimensions)
            noise = noise * (self.eps * radius / _length(noise).clamp_min(1e-12))
        return self.project(images + noise, images)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm along which the gradient rises fastest: its sign (L∞) or itself / ‖·‖₂ (L2)."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _length(gradient).clamp_min(1e-12)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """‖candidates − images‖ for each image, (N,)."""
        change = (candidates - images).flatten(1)
        return change.abs().amax(1) if self.norm == "linf" else change.norm(dim=1)

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
