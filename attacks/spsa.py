"""SPSA: gradients estimated from the model's answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem
from purify.attacks.best import BestIterate
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import LossName, make_objective

__all__ = ["SPSA"]


@dataclass(frozen=True)
class SPSA(Attack):
    """Simultaneous perturbation stochastic approximation with Adam (Uesato et al. 2018, algorithm 1; Spall 1992). No gradients.

    ∇̂L = mean over v of ( L(x + δ v) − L(x − δ v) ) / (2 δ) · v with v ∈ {−1, 1}, followed by a step of Adam and a projection.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
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
        if self.steps < 1 or self.samples < 2:
            raise ValueError(f"expected at least one step and two samples, got {self.steps} and {self.samples}")
        make_objective(self.loss)

    @torch.no_grad()
    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        objective = make_objective(self.loss)
        best = BestIterate(problem, logits)
        rows = best.standing(self.early_stop)
        here = problem.rows(rows)
        x, mean, square = here.images, torch.zeros_like(here.images), torch.zeros_like(here.images)

        def value(images: Tensor, part: Problem) -> Tensor:
            return objective(model(images.clamp(0, 1)).to(images.dtype), part.labels, part.targets)

        for k in range(self.steps + 1):
            if len(rows) == 0:
                break
            answer = model(x).to(x.dtype)
            broken = best.update(rows, x, answer, objective(answer, here.labels, here.targets), here)
            if k == self.steps:
                break
            if self.early_stop and bool(broken.any()):
                left = ~broken
                rows, x, mean, square, here = rows[left], x[left], mean[left], square[left], here.rows(left)
                if len(rows) == 0:
                    break
            estimate = torch.zeros_like(x)
            for _ in range(self.samples // 2):
                v = torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
                slope = (value(x + self.radius * v, here) - value(x - self.radius * v, here)) / (2 * self.radius)
                estimate += slope[:, None, None, None] * v
            best.queries[rows] += 2 * (self.samples // 2)
            estimate /= self.samples // 2
            mean = 0.9 * mean + 0.1 * estimate
            square = 0.999 * square + 0.001 * estimate.square()
            step = (mean / (1 - 0.9 ** (k + 1))) / ((square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            x = self.threat.project(x + self.learning_rate * step, here.images)
        return best.candidates, best.queries
