"""FGSM: one step along the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.iterates import BestIterate
from purify.attacks.objective import LossName, make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow, Shlens & Szegedy 2015), and its L2 form.

    x' = clip(x + eps · d),  d = sign(∇ₓ L) for L∞,  ∇ₓ L / ‖∇ₓ L‖₂ for L2.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> result = FGSM(ThreatModel("linf", 0.1))(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0]))
    >>> result.success, result.distance
    (tensor([True]), tensor([0.1000]))
    """

    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Leave images alone that are misclassified from the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_objective(self.loss)

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        candidates = problem.images.clone()
        here = BestIterate(problem, logits).standing(self.early_stop)
        if len(here):
            step = oracle.climb(here, make_objective(self.loss), late=True)
            moved = here.images + self.threat.eps * self.threat.steepest(step.gradient)
            candidates[here.rows] = self.threat.project(moved, here.images)
        return candidates
