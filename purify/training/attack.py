"""The attacks that adversarial training learns from: cheap, and no evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purify.attacks import ThreatModel, exact
from purify.attacks.gradient import Model

__all__ = ["training_attack"]

_NOISE = 2.0
"""Of N-FGSM: the radius of the noise before the step, in units of eps."""
_LARGEST, _SMALLEST = 2.0, 0.2
"""First and last step of PGD, in units of eps."""


def training_attack(
    model: Model, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int, generator: torch.Generator
) -> Tensor:
    """Attacked images (N, C, H, W) to learn from; cheap, and not an evaluation: nothing is scored or kept in the ball's inside.

    One step is N-FGSM (de Jorge et al. 2022): uniform noise from twice the radius, then a whole eps along the gradient, without a
    projection onto the ball, cut to [0, 1]. More steps are PGD from a uniform start, the last iterate (Madry et al. 2018), with
    steps that fall geometrically from 2 eps, which reaches the ball's corners, to eps / 5: on MNIST five of them are as strong as
    fifty of equal size.

    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
    >>> threat, x, y = ThreatModel("linf", 0.1), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    >>> training_attack(model, x, y, threat, 8, torch.Generator().manual_seed(0)).item()
    0.4...
    """
    gradient = exact(model)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    if steps == 1:
        wide = ThreatModel(threat.norm, min(_NOISE * threat.eps, 1.0) if threat.norm == "linf" else _NOISE * threat.eps)
        start = wide.random_point(images, generator)
        return (start + threat.eps * threat.steepest(gradient(start, loss).gradient)).clamp(0, 1)
    x = threat.random_point(images, generator)
    for k in range(steps):
        size = threat.eps * _LARGEST * (_SMALLEST / _LARGEST) ** (k / (steps - 1))
        x = threat.project(x + size * threat.steepest(gradient(x, loss).gradient), images)
    return x
