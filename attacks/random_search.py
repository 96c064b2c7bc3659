"""Random draws in the ball: the floor that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.iterates import BestIterate, climb
from purify.attacks.objective import make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["RandomSearch"]


@dataclass(frozen=True)
class RandomSearch(Attack):
    """``draws`` uniform draws from the ball around each image, L∞, L2 and L1; the one with the smallest margin is kept.
    No gradients are used.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> RandomSearch(ThreatModel("linf", 0.1))(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    norms = ("linf", "l2", "l1")

    draws: int = 100
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"expected at least one draw, got {self.draws}")

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best, margin = BestIterate(problem, logits), make_objective("margin")
        here = best.standing(self.early_stop)
        here.x = self.threat.random_point(here.images, generator)
        for _ in climb(here, best, oracle, margin, self.draws - 1, early_stop=self.early_stop, gradients=False):
            here.x = self.threat.random_point(here.images, generator)
        return best.candidates
