"""FGSM: one step along the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem, hits
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import LossName, make_objective

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow, Shlens & Szegedy 2015), and its L2 form.

    x' = clip(x + eps · d),  d = sign(∇ₓ L) for L∞,  ∇ₓ L / ‖∇ₓ L‖₂ for L2.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
    >>> result = FGSM(ThreatModel("linf", 0.1))(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0]))
    >>> result.success, result.distance
    (tensor([True]), tensor([0.1000]))
    """

    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Leave images alone that are misclassified from the start."""

    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        objective = make_objective(self.loss)
        queries = torch.zeros_like(problem.labels)
        rows = torch.arange(len(queries), device=queries.device)
        if self.early_stop:
            rows = rows[~hits(logits, problem)]
        candidates = problem.images.clone()
        if len(rows):
            here = problem.rows(rows)
            step = gradient(here.images, lambda z: objective(z, here.labels, here.targets))
            moved = here.images + self.threat.eps * self.threat.steepest(step.gradient)
            candidates[rows] = self.threat.project(moved, here.images)
            queries[rows] = 1
        return candidates, queries
