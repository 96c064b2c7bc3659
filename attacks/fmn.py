"""FMN: the smallest perturbation that breaks an image, rather than a break inside a given ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.gradient import GradientStep
from purify.attacks.iterates import BestIterate, Standing, climb
from purify.attacks.objective import make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem, hits
from purify.attacks.threat import ThreatModel

__all__ = ["FMN"]


@dataclass(frozen=True)
class FMN(Attack):
    """Fast minimum-norm attack (Pintor, Roli, Brendel & Biggio 2021, algorithm 1), L∞ and L2.

    A ball of radius ε_k follows each image: it shrinks by γ_k while the iterate is adversarial, and grows while it is not (by a
    first-order estimate of the distance to the boundary until a first adversarial point is known). Inside it
    δ_{k+1} = Π_{ε_k}( δ_k − α_k ∇L / ‖∇L‖₂ ) with L the margin; α and γ fall along half a cosine.

    ``result.distance`` is the smallest norm found. With ``threat.eps`` below it the image itself is returned, unbroken: for a
    distribution of minimum norms, give the largest eps (L∞: 1).

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> result = FMN(ThreatModel("linf", 1.0))(model, torch.full((1, 1, 1, 1), 0.6), torch.tensor([0]))
    >>> round(result.distance.item(), 2)
    0.1
    """

    steps: int = 100
    step_size: float | None = None
    """α at the first step, in Euclidean length; None: 3 for L∞ and 1 for L2 (on digits 10 for L∞, as in the paper, was worse)."""
    gamma: float = 0.05
    """γ at the first step."""
    stop_inside: bool = False
    """Images leave the batch as soon as they are broken inside ``threat``, instead of going on to the smallest norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not 0 < self.gamma < 1:
            raise ValueError(f"expected at least one step and a gamma between 0 and 1, got {self.steps} and {self.gamma}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"expected a step size above 0, got {self.step_size}")

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        norm, nearest = self.threat.norm, _Nearest(problem, self.threat)
        here = BestIterate(problem, logits).standing(early_stop=True)
        here.distance = here.x.new_zeros(len(here))  # of the present iterate
        here.smallest = here.x.new_full((len(here),), float("inf"))  # of the nearest adversarial one
        here.radius = here.smallest
        first = self.step_size if self.step_size is not None else (3.0 if norm == "linf" else 1.0)
        margin = make_objective("margin")
        for k, step in climb(here, nearest, oracle, margin, self.steps, early_stop=self.stop_inside):
            share = (1 + math.cos(math.pi * k / self.steps)) / 2
            alpha, gamma = first * (0.01 + 0.99 * share), self.gamma * (0.001 + 0.999 * share)
            slope = _dual_length(step.gradient, norm)
            # Where the slope is steep but short the estimate creeps: a fifth more radius at least until a first break is known.
            boundary = here.distance + (-step.value).clamp_min(0) / slope.clamp_min(1e-12)
            estimate = torch.maximum(here.distance * 1.2, boundary)
            grown = torch.where(torch.isfinite(here.smallest), here.radius * (1 + gamma), estimate)
            shrunk = torch.minimum(here.radius * (1 - gamma), here.smallest)
            here.radius = torch.where(hits(step.logits, here), shrunk, grown)
            direction = step.gradient / _dual_length(step.gradient, "l2").clamp_min(1e-12)[:, None, None, None]
            here.x = _project(here.x + alpha * direction, here.images, here.radius, norm)
        oracle.claimed &= nearest.found  # a break outside the threat model claims nothing
        return nearest.candidates


class _Nearest:
    """For each image the adversarial iterate inside the threat model that is nearest to it; the image itself where none is."""

    def __init__(self, problem: Problem, threat: ThreatModel) -> None:
        self.candidates, self.threat = problem.images.clone(), threat
        self.found = torch.zeros_like(problem.labels, dtype=torch.bool)

    def enter(self, here: Standing, step: GradientStep) -> Tensor:
        """Done with are the images broken inside the threat model."""
        here.distance = self.threat.distance(here.x, here.images)
        closer = hits(step.logits, here) & (here.distance < here.smallest)
        here.smallest = torch.where(closer, here.distance, here.smallest)
        inside: Tensor = closer & (here.distance <= self.threat.eps)
        self.found[here.rows] |= inside
        self.candidates[here.rows] = torch.where(inside[:, None, None, None], here.x, self.candidates[here.rows])
        return inside


def _dual_length(gradient: Tensor, norm: str) -> Tensor:
    """Norm (n,) of the gradient that is dual to ``norm``: how fast the loss can rise for a unit step."""
    length: Tensor = torch.linalg.vector_norm(gradient, 1 if norm == "linf" else 2, dim=(1, 2, 3))
    return length


def _project(x: Tensor, images: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Into each image's own ball (radius (n,)), then into [0, 1]."""
    change, limit = x - images, radius[:, None, None, None]
    if norm == "linf":
        change = change.clamp(-limit, limit)
    else:
        change = change * (limit / change.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]).clamp_max(1)
    inside: Tensor = (images + change).clamp(0, 1)
    return inside
