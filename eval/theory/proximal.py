"""Thresholds are proximal operators: each against a numerical minimiser of the problem that it is said to solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from purify.sparse import hard_threshold, jump_relu, nonnegative_soft_threshold, soft_threshold

__all__ = ["OPERATORS", "Operator", "ProximalFinding", "compare_with_minimiser"]


@dataclass(frozen=True)
class Operator:
    """A scalar operator and the penalty g of the problem argmin_z ½(z − v)² + g(z) that it solves."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """v and θ to z."""
    penalty: Callable[[float, float], float]
    """z and θ to g(z)."""
    nonnegative: bool
    """z ≥ 0 as well."""
    problem: str
    """In words."""


OPERATORS = {
    "soft threshold": Operator(soft_threshold, lambda z, t: t * abs(z), False, "½(z − v)² + θ|z|"),
    "non-negative soft threshold": Operator(
        nonnegative_soft_threshold, lambda z, t: t * z, True, "½(z − v)² + θz, z ≥ 0: a ReLU with its bias shifted by −θ"
    ),
    "hard threshold": Operator(hard_threshold, lambda z, t: t * t / 2 * (z != 0), False, "½(z − v)² + (θ²/2)[z ≠ 0]"),
    "JumpReLU": Operator(
        lambda v, t: jump_relu(v, t), lambda z, t: t * t / 2 * (z != 0), True, "½(z − v)² + (θ²/2)[z ≠ 0], z ≥ 0"
    ),
}
"""Those that act on each entry alone; top-k is compared with a search through all supports, in the tests."""


@dataclass(frozen=True, kw_only=True)
class ProximalFinding:
    """One operator beside the minimiser."""

    name: str
    problem: str
    draws: int
    largest_gap: float
    """|operator − minimiser|, the largest over all draws."""
    largest_slope_gap: float
    """|autograd − central difference of the minimiser|, the largest over all draws off the kinks."""


def compare_with_minimiser(name: str, *, draws: int = 200, seed: int = 0) -> ProximalFinding:
    """Draw v ~ N(0, 4) and θ ~ U(0, 2); compare the operator and its gradient with SciPy's bounded minimiser.

    Args:
        name: a key of ``OPERATORS``.
        draws: of v and θ.
        seed: of the draws.
    """
    operator = OPERATORS[name]
    generator = np.random.default_rng(seed)
    points, thresholds = generator.normal(0, 2, draws), generator.uniform(0, 2, draws)
    v = torch.from_numpy(points).requires_grad_()
    z = operator.apply(v, torch.from_numpy(thresholds))
    (slopes,) = torch.autograd.grad(z.sum(), v)
    gap = slope_gap = 0.0
    step = 1e-3
    for point, threshold, value, slope in zip(points, thresholds, z.detach().numpy(), slopes.numpy(), strict=True):
        gap = max(gap, abs(value - _minimise(operator, point, threshold)))
        if abs(abs(point) - threshold) > 2 * step:  # not across a kink or a jump
            ends = [_minimise(operator, point + way * step, threshold) for way in (1, -1)]
            slope_gap = max(slope_gap, abs(slope - (ends[0] - ends[1]) / (2 * step)))
    return ProximalFinding(
        name=name, problem=operator.problem, draws=draws, largest_gap=float(gap), largest_slope_gap=float(slope_gap)
    )


def _minimise(operator: Operator, v: float, threshold: float) -> float:
    """The global minimiser: the better of z = 0 and a bounded search on either side of it, where every penalty here is smooth."""

    def objective(z: float) -> float:
        return 0.5 * (z - v) ** 2 + operator.penalty(z, threshold)

    reach = abs(v) + 1.0
    sides = [(0.0, reach)] if operator.nonnegative else [(-reach, 0.0), (0.0, reach)]
    found = [0.0]
    for low, high in sides:
        result = minimize_scalar(objective, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
        found.append(float(result.x))
    best = min(found, key=objective)
    return 0.0 if objective(0.0) <= objective(best) + 1e-12 else best
