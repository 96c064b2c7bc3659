"""FMN: the smallest perturbation that breaks an image, rather than a break inside a given ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem, hits
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import make_objective

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
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
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
        if self.steps < 1 or not 0 < self.gamma < 1:
            raise ValueError(f"expected at least one step and a gamma between 0 and 1, got {self.steps} and {self.gamma}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"expected a step size above 0, got {self.step_size}")

    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        objective, norm = make_objective("margin"), self.threat.norm
        candidates, queries = problem.images.clone(), torch.zeros_like(problem.labels)
        rows = (~hits(logits, problem)).nonzero().flatten()
        here = problem.rows(rows)
        x = here.images
        smallest = x.new_full((len(x),), float("inf"))  # norm of the best adversarial point
        radius = x.new_full((len(x),), float("inf"))
        first = self.step_size if self.step_size is not None else (3.0 if norm == "linf" else 1.0)
        for k in range(self.steps):
            if len(rows) == 0:
                break
            share = (1 + math.cos(math.pi * k / self.steps)) / 2
            alpha, gamma = first * (0.01 + 0.99 * share), self.gamma * (0.001 + 0.999 * share)
            step = gradient(x, lambda z, here=here: objective(z, here.labels, here.targets))  # type: ignore[misc]
            queries[rows] += 1
            distance = self.threat.distance(x, here.images)
            broken = hits(step.logits, here)
            closer = broken & (distance < smallest)
            smallest = torch.where(closer, distance, smallest)
            inside = closer & (distance <= self.threat.eps)
            candidates[rows[inside]] = x[inside]

            known = torch.isfinite(smallest)
            slope = _dual_length(step.gradient, norm)
            # Where the slope is steep but short the estimate creeps: a fifth more radius at least until a first break is known.
            estimate = torch.maximum(distance * 1.2, distance + (-step.value).clamp_min(0) / slope.clamp_min(1e-12))
            grown = torch.where(known, radius * (1 + gamma), estimate)
            radius = torch.where(broken, torch.minimum(radius * (1 - gamma), smallest), grown)
            direction = step.gradient / _dual_length(step.gradient, "l2").clamp_min(1e-12)[:, None, None, None]
            x = _project(x + alpha * direction, here.images, radius, norm)

            if self.stop_inside and bool(inside.any()):
                left = ~inside
                rows, x, smallest, radius, here = rows[left], x[left], smallest[left], radius[left], here.rows(left)
        return candidates, queries


def _dual_length(gradient: Tensor, norm: str) -> Tensor:
    """Norm (n,) of the gradient that is dual to ``norm``: how fast the loss can rise for a unit step."""
    flat = gradient.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


def _project(x: Tensor, images: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Into each image's own ball (radius (n,)), then into [0, 1]."""
    change, limit = x - images, radius[:, None, None, None]
    if norm == "linf":
        change = change.clamp(-limit, limit)
    else:
        change = change * (limit / change.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]).clamp_max(1)
    return (images + change).clamp(0, 1)
