"""SPSA: gradients estimated from the model's answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.iterates import BestIterate, Standing, climb
from purify.attacks.objective import LossName, make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["SPSA"]


@dataclass(frozen=True)
class SPSA(Attack):
    """Simultaneous perturbation stochastic approximation with Adam (Uesato et al. 2018, algorithm 1; Spall 1992), L∞ and L2.

    ∇̂L = mean over v of ( L(x + δ v) − L(x − δ v) ) / (2 δ) · v with v ∈ {−1, 1}, followed by a step of Adam and a projection.
    No gradients are used.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> SPSA(ThreatModel("linf", 0.1), steps=20)(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    steps: int = 100
    samples: int = 128
    """Evaluations of the model for each image and step: half as many directions v."""
    radius: float = 0.01
    """δ, in units of [0, 1]."""
    learning_rate: float = 0.01
    """Of Adam, in units of [0, 1]."""
    loss: LossName = "margin"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.samples < 2:
            raise ValueError(f"expected at least one step and two samples, got {self.steps} and {self.samples}")
        make_objective(self.loss)

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best, objective = BestIterate(problem, logits), make_objective(self.loss)
        here = best.standing(self.early_stop)
        here.mean, here.square = torch.zeros_like(here.x), torch.zeros_like(here.x)  # Adam's
        for k, _ in climb(here, best, oracle, objective, self.steps, early_stop=self.early_stop, gradients=False):
            estimate = self._estimate(here, oracle, generator)
            here.mean = 0.9 * here.mean + 0.1 * estimate
            here.square = 0.999 * here.square + 0.001 * estimate.square()
            step = (here.mean / (1 - 0.9 ** (k + 1))) / ((here.square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            here.x = self.threat.project(here.x + self.learning_rate * step, here.images)
        return best.candidates

    def _estimate(self, here: Standing, oracle: Oracle, generator: torch.Generator) -> Tensor:
        """∇̂L at ``here.x``, (n, C, H, W)."""
        objective, estimate = make_objective(self.loss), torch.zeros_like(here.x)
        for _ in range(self.samples // 2):
            v = torch.randint(0, 2, here.x.shape, generator=generator, device=here.x.device).to(here.x.dtype) * 2 - 1
            ends = [(here.x + sign * self.radius * v).clamp(0, 1) for sign in (1, -1)]
            rises = [objective(oracle.logits(here, end), here.labels, here.aims) for end in ends]
            estimate += ((rises[0] - rises[1]) / (2 * self.radius))[:, None, None, None] * v
        return estimate / (self.samples // 2)
