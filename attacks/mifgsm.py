"""MI-FGSM: iterative FGSM with momentum, made to carry over to other models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem
from purify.attacks.best import BestIterate
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import LossName, make_objective

__all__ = ["MIFGSM"]


@dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative FGSM (Dong et al. 2018, algorithm 1), L∞ and L2.

    g_{t+1} = μ g_t + ∇L / ‖∇L‖₁,  x_{t+1} = Π( x_t + eps / T · d(g_{t+1}) ), d as in :class:`FGSM`, from x₀ = x.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
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
        if self.steps < 1 or self.momentum < 0:
            raise ValueError(f"expected at least one step and a momentum of 0 or more, got {self.steps} and {self.momentum}")
        make_objective(self.loss)

    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        objective = make_objective(self.loss)
        best = BestIterate(problem, logits)
        rows = best.standing(self.early_stop)
        here = problem.rows(rows)
        x, velocity = here.images, torch.zeros_like(here.images)
        for k in range(self.steps + 1):
            if len(rows) == 0:
                break
            step = gradient(x, lambda z, here=here: objective(z, here.labels, here.targets))  # type: ignore[misc]
            broken = best.update(rows, x, step.logits, step.value, here)
            if k == self.steps:
                break
            length = step.gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
            velocity = self.momentum * velocity + step.gradient / length
            x = self.threat.project(x + self.threat.eps / self.steps * self.threat.steepest(velocity), here.images)
            if self.early_stop and bool(broken.any()):
                rows, x, velocity, here = rows[~broken], x[~broken], velocity[~broken], here.rows(~broken)
        return best.candidates, best.queries
