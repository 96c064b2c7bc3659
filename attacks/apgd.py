"""APGD: PGD that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from purify.attacks.attack import Attack, Problem
from purify.attacks.best import BestIterate
from purify.attacks.gradient import GradientPath, Model
from purify.attacks.objective import LossName, make_objective

__all__ = ["APGD", "TargetedAPGD", "checkpoints"]


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1), L∞ and L2.

    z = Π( x_k + η_k · d_k ),  x_{k+1} = Π( x_k + α (z − x_k) + (1 − α)(x_k − x_{k−1}) ),  α = 0.75 (1 at the first step),
    d_k as in :class:`FGSM`. η starts at 2 eps. At each checkpoint an image's η is halved, and it goes back to its best iterate,
    if fewer than ρ = 0.75 of the steps since the last one raised the loss, or if neither η nor the best loss has changed.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1)
    >>> APGD(ThreatModel("l2", 0.1), steps=5)(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    steps: int = 100
    restarts: int = 1
    """Independent random starts."""
    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"expected at least one step and one restart, got {self.steps} and {self.restarts}")
        make_objective(self.loss)

    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        best = BestIterate(problem, logits)
        for _ in range(self.restarts):
            rows = best.standing(self.early_stop)
            self._ascend(problem.rows(rows), problem.rows(rows).targets, rows, best, generator, gradient)
        return best.candidates, best.queries

    def _ascend(
        self,
        here: Problem,
        aims: Tensor | None,
        rows: Tensor,
        best: BestIterate,
        generator: torch.Generator,
        gradient: GradientPath,
    ) -> None:
        """One random start on the problem's ``rows``; the loss aims at the classes ``aims`` (n,), which need not be targets."""
        if len(rows) == 0:
            return
        objective = make_objective(self.loss)
        memory = _Memory(here, aims, rows, self._start(here.images, generator), 2 * self.threat.eps)
        ends = checkpoints(self.steps)
        for k in range(self.steps + 1):
            step = gradient(memory.x, lambda z: objective(z, memory.labels, memory.aims))
            broken = best.update(memory.rows, memory.x, step.logits, step.value, memory.problem)
            memory.enter(step.value, step.gradient)
            if k == self.steps:
                return
            if self.early_stop and bool(broken.any()):
                memory.keep(~broken)
                if len(memory.rows) == 0:
                    return
            if k in ends:
                memory.reconsider(0.75)
            x, slope = memory.x, memory.slope
            z = self.threat.project(x + _column(memory.step_size) * self.threat.steepest(slope), memory.images)
            momentum = 0.75 if k else 1.0
            mixed = x + momentum * (z - x) + (1 - momentum) * (x - memory.x_before)
            memory.move(self.threat.project(mixed, memory.images))

    def _start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random direction, scaled until it touches the ball (as in the reference implementation of the paper)."""
        if self.threat.norm == "linf":
            noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        else:
            noise = torch.empty_like(images).normal_(generator=generator)
        size = self.threat.distance(noise, torch.zeros_like(noise)).clamp_min(1e-12)
        return self.threat.project(images + self.threat.eps * noise / _column(size), images)


@dataclass(frozen=True)
class TargetedAPGD(APGD):
    """APGD aimed in turn at each of the most likely wrong classes (Croce & Hein 2020, section 5; loss: equation 7).

    Any misclassification counts as a break. Classes are ordered by the logits of the clean image.
    """

    loss: LossName = "dlr"
    classes: int = 9
    """How many wrong classes are tried; at most all of them."""

    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        if problem.targets is not None:
            raise ValueError("TargetedAPGD chooses its own target classes; for a given target use APGD(…, loss='dlr')")
        best = BestIterate(problem, logits)
        others = logits.scatter(1, problem.labels[:, None], float("-inf"))
        ranked = others.argsort(1, descending=True)[:, : min(self.classes, logits.shape[1] - 1)]
        for _ in range(self.restarts):
            for column in ranked.unbind(1):
                rows = best.standing(self.early_stop)
                self._ascend(problem.rows(rows), column[rows], rows, best, generator, gradient)
        return best.candidates, best.queries


def checkpoints(steps: int) -> set[int]:
    """Numbers of steps after which the step size is reconsidered: ⌈p_j · steps⌉ with p₀ = 0, p₁ = 0.22 and
    p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06) (Croce & Hein 2020, section 3.1).

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1}


class _Memory:
    """What APGD remembers of the images under attack: every attribute but ``steps`` is a tensor with one row an image."""

    def __init__(self, here: Problem, aims: Tensor | None, rows: Tensor, x: Tensor, step_size: float) -> None:
        self.rows, self.images, self.labels, self.targets, self.aims = rows, here.images, here.labels, here.targets, aims
        self.x, self.x_before = x, x
        self.slope = torch.zeros_like(x)  # gradient at x
        self.step_size = x.new_full((len(x),), step_size)
        self.value_before = x.new_full((len(x),), float("inf"))
        self.best_x, self.best_slope = x, self.slope
        self.best_value = x.new_full((len(x),), float("-inf"))
        self.rises = x.new_zeros(len(x))  # steps since the last checkpoint that raised the loss
        self.best_at_checkpoint = self.best_value
        self.halved = torch.ones(len(x), dtype=torch.bool, device=x.device)  # at the last checkpoint
        self.steps = 0  # since the last checkpoint

    @property
    def problem(self) -> Problem:
        """The images that are left."""
        return Problem(self.images, self.labels, self.targets)

    def keep(self, mask: Tensor) -> None:
        """Forget the images where ``mask`` (n,) is False."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[mask])

    def move(self, x: Tensor) -> None:
        """Go to ``x``."""
        self.x_before, self.x = self.x, x
        self.steps += 1

    def enter(self, value: Tensor, slope: Tensor) -> None:
        """Loss (n,) and gradient at the present ``x``."""
        self.rises = self.rises + (value > self.value_before)
        self.value_before, self.slope = value, slope
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best_x = torch.where(_column(better), self.x, self.best_x)
        self.best_slope = torch.where(_column(better), slope, self.best_slope)

    def reconsider(self, rho: float) -> None:
        """At a checkpoint: halve the step size of images that make no progress, and send them back to their best iterate."""
        few = self.rises < rho * self.steps
        stuck = ~self.halved & (self.best_at_checkpoint >= self.best_value)
        self.halved = few | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        back = _column(self.halved)
        self.x = torch.where(back, self.best_x, self.x)
        self.slope = torch.where(back, self.best_slope, self.slope)
        self.best_at_checkpoint = self.best_value
        self.rises = torch.zeros_like(self.rises)
        self.steps = 0


def _column(values: Tensor) -> Tensor:
    """(n,) to (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
