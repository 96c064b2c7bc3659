"""Random draws in the ball: the floor that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem
from purify.attacks.best import BestIterate
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import make_objective

__all__ = ["RandomSearch"]


@dataclass(frozen=True)
class RandomSearch(Attack):
    """``draws`` uniform draws from the ball around each image; the one with the smallest margin is kept. No gradients.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
    >>> RandomSearch(ThreatModel("linf", 0.1))(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    draws: int = 100
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"expected at least one draw, got {self.draws}")

    @torch.no_grad()
    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        objective = make_objective("margin")
        best = BestIterate(problem, logits)
        for _ in range(self.draws):
            rows = best.standing(self.early_stop)
            if len(rows) == 0:
                break
            here = problem.rows(rows)
            x = self.threat.random_point(here.images, generator)
            drawn = model(x).to(x.dtype)
            best.update(rows, x, drawn, objective(drawn, here.labels, here.targets), here)
        return best.candidates, best.queries
