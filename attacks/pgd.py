"""PGD: many projected steps along the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.iterates import BestIterate, climb
from purify.attacks.objective import LossName, make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018), L∞ and L2.

    x₀ uniform in the ball;  x_{t+1} = Π( x_t + step · d_t ),  d_t as in :class:`FGSM`, Π the projection onto the ball and [0, 1].
    For each image the iterate with the highest loss over all steps and restarts is returned (a successful one before any that
    is not), rather than the last.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> PGD(ThreatModel("l2", 0.1), steps=5)(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    steps: int = 40
    step_size: float | None = None
    """In units of [0, 1]; None: 2.5 · eps / steps (Madry et al. 2018, appendix)."""
    restarts: int = 1
    """Independent random starts."""
    random_start: bool = True
    """Begin at a uniform draw from the ball; else at the image."""
    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Broken images leave the batch at their first break. False goes on to the highest loss: for attacks that must carry over to
    another model (oblivious figures)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"expected at least one step and one restart, got {self.steps} and {self.restarts}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"expected a step size above 0, got {self.step_size}")
        make_objective(self.loss)

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best, objective = BestIterate(problem, logits), make_objective(self.loss)
        step_size = self.step_size if self.step_size is not None else 2.5 * self.threat.eps / self.steps
        for _ in range(self.restarts):
            here = best.standing(self.early_stop)
            if self.random_start:
                here.x = self.threat.random_point(here.images, generator)
            for _, step in climb(here, best, oracle, objective, self.steps, early_stop=self.early_stop):
                here.x = self.threat.project(here.x + step_size * self.threat.steepest(step.gradient), here.images)
        return best.candidates
