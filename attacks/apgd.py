"""APGD: PGD that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.gradient import GradientStep
from purify.attacks.iterates import BestIterate, Record, Standing, climb
from purify.attacks.objective import LossName, make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem
from purify.attacks.threat import ThreatModel

__all__ = ["APGD", "TargetedAPGD", "checkpoints"]


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1; for L1: Croce & Hein 2021, algorithm 1), L∞, L2 and L1.

    z = Π( x_k + η_k · d_k ),  x_{k+1} = Π( x_k + α (z − x_k) + (1 − α)(x_k − x_{k−1}) ),  α = 0.75 (1 at the first step),
    d_k as in :class:`FGSM`. η starts at 2 eps. At each checkpoint an image's η is halved, and it goes back to its best iterate,
    if fewer than ρ = 0.75 of the steps since the last one raised the loss, or if neither η nor the best loss has changed.

    L1: x_{k+1} = Π( x_k + η_k · d_k ) with d_k the signs of the s_k largest values of the gradient, of length 1. η starts at eps,
    and s at two thirds of the values that the start changes; at each checkpoint s follows the values that the best iterate
    changes; where they have become 5 % fewer, η is set back to eps and the image to its best iterate, else η is divided by 1.5.
    The steps are spent in balls of 3 eps, 2 eps and eps (30, 30 and 40 %), each beginning at the best iterate of the last one.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], 1) * 4
    >>> APGD(ThreatModel("l2", 0.1), steps=5)(model, torch.full((1, 1, 1, 1), 0.55), torch.tensor([0])).success
    tensor([True])
    """

    norms = ("linf", "l2", "l1")

    steps: int = 100
    restarts: int = 1
    """Independent random starts."""
    loss: LossName = "ce"
    """What is maximised: ``ce``, ``margin`` or ``dlr``."""
    early_stop: bool = True
    """Broken images leave the batch at their first break."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"expected at least one step and one restart, got {self.steps} and {self.restarts}")
        make_objective(self.loss)

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best = BestIterate(problem, logits)
        for _ in range(self.restarts):
            self._ascend(best.standing(self.early_stop), best, oracle, generator)
        return best.candidates

    def _ascend(self, here: Standing, best: Record, oracle: Oracle, generator: torch.Generator) -> None:
        """From one random start. The loss aims at ``here.aims``."""
        here.x = self._start(here.images, generator)
        if self.threat.norm != "l1":
            self._ascend_with_momentum(here, best, oracle)
            return
        spent = 0
        for factor, share in ((3, 0.3), (2, 0.3), (1, 0.4)):
            steps = ceil(share * self.steps) if factor > 1 else self.steps - spent
            spent += steps
            ball = replace(self.threat, eps=factor * self.threat.eps)
            here.x = ball.project(here.x, here.images)
            # What is broken in a larger ball is not broken yet: nothing is noted there, and no image leaves.
            self._ascend_sparsely(here, best if factor == 1 else _Nothing(), oracle, ball, max(steps, 0))
            here.x = here.best_x

    def _start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random direction, scaled until it touches the ball (as in the reference implementations of the papers)."""
        if self.threat.norm == "linf":
            noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        else:
            noise = torch.empty_like(images).normal_(generator=generator)
        if self.threat.norm == "l1":
            return replace(self.threat, eps=3 * self.threat.eps).project(images + noise, images)
        size = self.threat.distance(noise, torch.zeros_like(noise)).clamp_min(1e-12)
        return self.threat.project(images + self.threat.eps * noise / _column(size), images)

    def _ascend_with_momentum(self, here: Standing, record: Record, oracle: Oracle) -> None:
        """L∞ and L2."""
        n, threat, ends, since = len(here), self.threat, checkpoints(self.steps), 0
        here.step_size = here.x.new_full((n,), 2 * threat.eps)
        here.x_before = here.x
        here.value_before = here.x.new_full((n,), float("inf"))
        here.rises = here.x.new_zeros(n)  # steps since the last checkpoint that raised the loss
        here.halved = torch.ones(n, dtype=torch.bool, device=here.x.device)  # at the last checkpoint
        _forget_best(here)
        here.best_at_checkpoint = here.best_value
        for k, step in climb(here, record, oracle, make_objective(self.loss), self.steps, early_stop=self.early_stop):
            here.rises = here.rises + (step.value > here.value_before)
            here.value_before = step.value
            _note_best(here, step)
            slope = step.gradient
            if k in ends:
                few = here.rises < 0.75 * (k - since)
                here.halved = few | (~here.halved & (here.best_at_checkpoint >= here.best_value))
                here.step_size = torch.where(here.halved, here.step_size / 2, here.step_size)
                here.x = torch.where(_column(here.halved), here.best_x, here.x)
                slope = torch.where(_column(here.halved), here.best_slope, slope)
                here.best_at_checkpoint, here.rises, since = here.best_value, torch.zeros_like(here.rises), k
            z = threat.project(here.x + _column(here.step_size) * threat.steepest(slope), here.images)
            momentum = 0.75 if k else 1.0
            moved = here.x + momentum * (z - here.x) + (1 - momentum) * (here.x - here.x_before)
            here.x_before, here.x = here.x, threat.project(moved, here.images)

    def _ascend_sparsely(self, here: Standing, record: Record, oracle: Oracle, ball: ThreatModel, steps: int) -> None:
        """L1, in one of the three balls."""
        every = max(int(0.04 * steps), 1)
        here.step_size = here.x.new_full((len(here),), ball.eps)
        here.support = _changed(here.x, here.images)  # values changed at the last checkpoint
        here.size = here.support / 1.5  # s
        _forget_best(here)
        early_stop = self.early_stop and not isinstance(record, _Nothing)
        for k, step in climb(here, record, oracle, make_objective(self.loss), steps + 1, early_stop=early_stop):
            _note_best(here, step)
            if k == steps:  # the last iterate may be the best one to begin with in the next ball
                break
            slope = step.gradient
            if k and k % every == 0:
                changed = _changed(here.best_x, here.images)
                fewer = changed < 0.95 * here.support
                here.step_size = torch.where(fewer, ball.eps, (here.step_size / 1.5).clamp_min(ball.eps / 10))
                here.support, here.size = changed, changed / 1.5
                here.x = torch.where(_column(fewer), here.best_x, here.x)
                slope = torch.where(_column(fewer), here.best_slope, slope)
            here.x = ball.project(here.x + _column(here.step_size) * _largest(slope, here.size), here.images)


@dataclass(frozen=True)
class TargetedAPGD(APGD):
    """APGD aimed in turn at each of the most likely wrong classes (Croce & Hein 2020, section 5; loss: equation 7).

    Any misclassification counts as a break. Classes are ordered by the logits of the clean image.
    """

    loss: LossName = "dlr"
    classes: int = 9
    """How many wrong classes are tried; at most all of them."""
    at_once: int | None = None
    """Pairs of image and class attacked at once, where there are fewer images than that; None: as many as there are images.
    A small batch costs nearly as much time as a large one. Suites set it to their batch size."""

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        if problem.targets is not None:
            raise ValueError("TargetedAPGD chooses its own target classes; for a given target use APGD(…, loss='dlr')")
        best = BestIterate(problem, logits)
        others = logits.scatter(1, problem.labels[:, None], float("-inf"))
        ranked = others.argsort(1, descending=True)[:, : min(self.classes, logits.shape[1] - 1)]
        for _ in range(self.restarts):
            done = 0
            while done < ranked.shape[1]:
                rows = best.standing(self.early_stop).rows
                if len(rows) == 0:
                    break
                at_once = min(max((self.at_once or len(problem.labels)) // len(rows), 1), ranked.shape[1] - done)
                self._aim(ranked[rows, done : done + at_once], rows, problem, logits, best, oracle, generator)
                done += at_once
        return best.candidates

    def _aim(
        self,
        classes: Tensor,
        rows: Tensor,
        problem: Problem,
        logits: Tensor,
        best: BestIterate,
        oracle: Oracle,
        generator: torch.Generator,
    ) -> None:
        """One ascent of the images ``rows`` (n,) towards several ``classes`` (n, m) at once; a broken image leaves with all."""
        repeated = rows.repeat(classes.shape[1])
        pairs, part = problem.part(repeated), oracle.part(problem.part(repeated))
        found = BestIterate(pairs, logits[repeated])
        found.success[:] = False  # what was broken before is attacked again if it is here at all
        everything = torch.arange(len(repeated), device=rows.device)
        here = Standing(pairs, everything, classes.T.flatten())
        here.image = torch.arange(len(rows), device=rows.device).repeat(classes.shape[1])
        self._ascend(here, _Together(found, len(rows)), part, generator)
        best.merge(found, rows)
        oracle.absorb(part, repeated)


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


class _Together:
    """Pairs of image (``here.image``) and class: an image is done with when one of its pairs is."""

    def __init__(self, best: BestIterate, images: int) -> None:
        self.best, self.images = best, images

    def enter(self, here: Standing, step: GradientStep) -> Tensor:
        """See :class:`purify.attacks.iterates.Record`."""
        done = self.best.enter(here, step)
        count = torch.zeros(self.images, dtype=torch.long, device=done.device).index_add(0, here.image, done.long())
        return count[here.image] > 0


class _Nothing:
    """Takes note of nothing."""

    def enter(self, here: Standing, step: GradientStep) -> Tensor:
        """No image is done with."""
        return torch.zeros_like(here.labels, dtype=torch.bool)


def _forget_best(here: Standing) -> None:
    here.best_x, here.best_slope = here.x, torch.zeros_like(here.x)
    here.best_value = here.x.new_full((len(here),), float("-inf"))


def _note_best(here: Standing, step: GradientStep) -> None:
    """The iterate of this start with the highest loss, broken or not: the one that the step size is judged by."""
    better = step.value > here.best_value
    here.best_value = torch.where(better, step.value, here.best_value)
    here.best_x = torch.where(_column(better), here.x, here.best_x)
    here.best_slope = torch.where(_column(better), step.gradient, here.best_slope)


def _changed(x: Tensor, images: Tensor) -> Tensor:
    """How many values of each image differ, (n,)."""
    return (x != images).flatten(1).sum(1).to(x.dtype)


def _largest(slope: Tensor, size: Tensor) -> Tensor:
    """Signs of each image's ``size`` (n,) largest values, divided by their number: (n, C, H, W) of L1 length 1."""
    strength = slope.flatten(1).abs()
    count = size.ceil().long().clamp(1, strength.shape[1])
    least = strength.sort(1, descending=True).values.gather(1, count[:, None] - 1)
    signs = (slope.flatten(1).sign() * (strength >= least)).view_as(slope)
    return signs / signs.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def _column(values: Tensor) -> Tensor:
    """(n,) to (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
