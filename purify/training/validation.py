"""Accuracies on the validation images, measured in parts, so that a large classifier on large pictures needs no more memory."""

from __future__ import annotations

import torch
from torch import Tensor

from purify.attacks import Attack, GradientPath
from purify.attacks.gradient import Model

__all__ = ["VALIDATED", "accuracy", "attack_in_parts", "part_size"]

VALIDATED = 500
"""Images of the validation split on which each epoch is judged."""
_PIXELS = VALIDATED * 32 * 32
"""In one pass: all images of 32×32, ten of 224×224."""


def part_size(images: Tensor) -> int:
    """How many of these images (N, C, H, W) go through a model in one pass."""
    return max(1, _PIXELS // (images.shape[-2] * images.shape[-1]))


@torch.no_grad()
def accuracy(model: Model, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, C, H, W) that are classified as their labels (N,) say."""
    right = [model(x).argmax(1) == y for x, y in _parts(images, labels)]
    return float(torch.cat(right).float().mean())


def attack_in_parts(
    attack: Attack, model: Model, images: Tensor, labels: Tensor, gradient: GradientPath | None = None
) -> tuple[Tensor, Tensor]:
    """Adversarial images (N, C, H, W), and bool (N,): broken."""
    found = [attack(model, x, y, gradient=gradient) for x, y in _parts(images, labels)]
    return torch.cat([result.adversarial for result in found]), torch.cat([result.success for result in found])


def _parts(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = part_size(images)
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
