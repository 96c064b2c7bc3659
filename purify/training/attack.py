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


def training_attack(
    model: Model, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int, generator: torch.Generator
) -> Tensor:
    """Attacked images (N, C, H, W) to learn from; cheap, and not an evaluation: nothing is scored or kept in the ball's inside.

    One step is N-FGSM (de Jorge et al. 2022): uniform noise from twice the radius, then a whole eps along the gradient, without a
    projection onto the ball, cut to [0, 1]. More steps are PGD from a uniform start, the last iterate (Madry et al. 2018).

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
    x, size = threat.random_point(images, generator), 2.5 * threat.eps / steps
    for _ in range(steps):
        x = threat.project(x + size * threat.steepest(gradient(x, loss).gradient), images)
    return x
