"""MI-FGSM: iterative FGSM with momentum, made to carry over to other models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.iterates import BestIterate, climb
from purify.attacks.objective import LossName, make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["MIFGSM"]


@dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative FGSM (Dong et al. 2018, algorithm 1), L∞ and L2.

    g_{t+1} = μ g_t + ∇L / ‖∇L‖₁,  x_{t+1} = Π( x_t + eps / T · d(g_{t+1}) ), d as in :class:`FGSM`, from x₀ = x.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> MIFGSM(ThreatModel("linf", 0.1))(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    steps: int = 10
    momentum: float = 1.0
    """μ."""
    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.momentum < 0:
            raise ValueError(f"expected at least one step and a momentum of 0 or more, got {self.steps} and {self.momentum}")
        make_objective(self.loss)

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best = BestIterate(problem, logits)
        here = best.standing(self.early_stop)
        here.velocity = torch.zeros_like(here.x)
        for _, step in climb(here, best, oracle, make_objective(self.loss), self.steps, early_stop=self.early_stop):
            length = step.gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
            here.velocity = self.momentum * here.velocity + step.gradient / length
            moved = here.x + self.threat.eps / self.steps * self.threat.steepest(here.velocity)
            here.x = self.threat.project(moved, here.images)
        return best.candidates
