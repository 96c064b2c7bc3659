"""Square: random search with square-shaped changes, without any gradient."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.gradient import GradientStep
from purify.attacks.iterates import BestIterate, Standing
from purify.attacks.objective import make_objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem, hits

__all__ = ["Square"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 queries: after each, the share of the image that a square covers is halved (section 5 of the paper)."""


@dataclass(frozen=True)
class Square(Attack):
    """Square attack (Andriushchenko, Croce, Flammarion & Hein 2020), L∞ (algorithms 1 and 2) and L2 (algorithm 3).

    L∞ begins with vertical stripes of ±eps and proposes squares of one random ±eps for each channel. L2 begins with a
    grid of bumps and moves the mass of one window into another, together with what the budget still allows. A
    proposal is kept where it lowers the margin. Every image has squares of its own, whose side follows the image that has been
    asked least.

    >>> from purify.attacks import ThreatModel
    >>> def model(x): return torch.stack([x.sum((1, 2, 3)), 8 - x.sum((1, 2, 3))], 1)
    >>> Square(ThreatModel("linf", 0.2), queries=50)(model, torch.full((1, 1, 3, 3), 0.5), torch.tensor([0])).success
    tensor([True])
    """

    queries: int = 5000
    covered: float = 0.8
    """p: share of the image that a square covers at first."""
    early_stop: bool = True
    """Broken images leave the batch at their first break."""
    at_once: int | None = None
    """Proposals put to the model in one pass, where there are fewer images than that; None: as many as there are images. Several
    proposals for one image are as good as one after the other, as long as none is taken: when few are, they are asked ahead.
    Suites set it to their batch size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1 or not 0 < self.covered <= 1:
            raise ValueError(f"expected at least one query and a share in (0, 1], got {self.queries} and {self.covered}")

    @torch.no_grad()
    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        best, margin = BestIterate(problem, logits), make_objective("margin")
        here = best.standing(self.early_stop)
        if len(here) == 0:
            return best.candidates
        start, propose = (self._stripes, self._propose_linf) if self.threat.norm == "linf" else (self._bumps, self._propose_l2)
        here.x = start(here.images, generator)
        step = oracle.look(here, margin)
        here.logits, here.value = step.logits, step.value  # of the image kept
        here.asked = torch.ones_like(here.labels)
        self._leave(here, best)
        accepted = 1.0  # share of the proposals of late
        while len(here):
            room = (self.at_once or len(problem.labels)) // len(here)
            ahead = max(min(room, int(0.2 / max(accepted, 1e-6))), 1)
            wide = here.copies(ahead) if ahead > 1 else copy(here)
            wide.x = propose(wide.x, wide.images, self._side(int(here.asked.min()), here.x), generator)
            step = oracle.look(wide, margin)
            better = (step.value > wide.value).view(-1, ahead)
            # The first proposal that is better is taken; the ones after it were made for an image that is no more.
            some, first = better.any(1), better.int().argmax(1)
            here.asked = here.asked + torch.where(some, first + 1, ahead)
            rows = some.nonzero().flatten()
            picked = rows * ahead + first[rows]
            here.x = here.x.index_copy(0, rows, wide.x[picked])
            here.logits = here.logits.index_copy(0, rows, step.logits[picked])
            here.value = here.value.index_copy(0, rows, step.value[picked])
            accepted = 0.95 * accepted + 0.05 * len(rows) / better.numel()
            self._leave(here, best)
        return best.candidates

    def _leave(self, here: Standing, best: BestIterate) -> None:
        """Let go of broken images, and of those that have had all their queries."""
        done = here.asked >= self.queries
        if self.early_stop:
            done = done | hits(here.logits, here)
        if bool(done.any()):
            gone = copy(here)
            gone.keep(done.nonzero().flatten())
            best.enter(gone, GradientStep(gone.logits, gone.value, gone.x.new_empty(0)))
            here.keep((~done).nonzero().flatten())

    def _side(self, k: int, x: Tensor) -> int:
        """Side of the square at query ``k``, in pixels."""
        done = 10_000 * k / self.queries
        share = self.covered / 2 ** sum(done > at for at in _HALVINGS)
        height, width = x.shape[-2:]
        side = round(math.sqrt(share * height * width))
        return max(1, min(side, min(height, width) - 1))

    def _stripes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, c, _, w = images.shape
        return self.threat.project(images + self.threat.eps * _signs((n, c, 1, w), images, generator), images)

    def _propose_linf(self, x: Tensor, images: Tensor, side: int, generator: torch.Generator) -> Tensor:
        n, c = x.shape[:2]
        window = _windows(x, side, generator)
        colour = 2 * self.threat.eps * _signs((n, c, 1, 1), x, generator)
        return self.threat.project(torch.where(window, x + colour, x), images)

    def _bumps(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A grid of bumps about a fifth of the image wide, each of random sign."""
        n, c, height, width = images.shape
        side = max(1, min(height, width) // 5)
        change = torch.zeros_like(images)
        bump = _bump(side, images)
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                change[..., top : top + side, left : left + side] = bump * _signs((n, c, 1, 1), images, generator)
        return self.threat.project(images + self.threat.eps * change / _length(change), images)

    def _propose_l2(self, x: Tensor, images: Tensor, side: int, generator: torch.Generator) -> Tensor:
        n, c = x.shape[:2]
        side = max(side, 3) if min(x.shape[-2:]) > 3 else side
        change = x - images
        target, source = _windows(x, side, generator), _windows(x, side, generator)
        both = target | source
        unused = (self.threat.eps**2 - _length(change) ** 2).clamp_min(0)  # (n, 1, 1, 1)
        in_both = (change * both).square().sum((2, 3), keepdim=True)  # (n, c, 1, 1)
        budget = (in_both + unused / c).clamp_min(0).sqrt()
        old = _cut(change, target, side)
        old = old / _patch_length(old)
        shape = _bump(side, x).expand_as(old)
        turned = torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < 0.5
        shape = torch.where(turned, shape.transpose(2, 3), shape) * _signs((n, c, 1, 1), x, generator) + old
        shape = budget * shape / _patch_length(shape)
        moved = _paste(torch.where(both, torch.zeros_like(change), change), shape, target)
        moved = moved * (self.threat.eps / _length(moved).clamp_min(1e-12))
        return self.threat.project(images + moved, images)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Random ±1."""
    return torch.randint(0, 2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1


def _windows(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """For each image a random square: bool (n, 1, H, W)."""
    n, _, height, width = x.shape
    top = torch.randint(0, height - side + 1, (n, 1, 1, 1), generator=generator, device=x.device)
    left = torch.randint(0, width - side + 1, (n, 1, 1, 1), generator=generator, device=x.device)
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)[None, :]
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)


def _cut(x: Tensor, window: Tensor, side: int) -> Tensor:
    """The content (n, C, side, side) of each image's window."""
    n, c = x.shape[:2]
    return x.masked_select(window).view(n, c, side, side)


def _paste(x: Tensor, patch: Tensor, window: Tensor) -> Tensor:
    """``x`` with each image's window filled by its patch (n, C, side, side)."""
    return x.masked_scatter(window.expand_as(x), patch.contiguous())


def _bump(side: int, like: Tensor) -> Tensor:
    """Two pyramids of opposite sign side by side, (side, side), of unit length (equation 2 of the paper)."""
    upper = _pyramid(side // 2, side, like)
    lower = _pyramid(side - side // 2, side, like)
    bump = torch.cat([upper, -lower])
    unit: Tensor = bump / torch.linalg.vector_norm(bump).clamp_min(1e-12)
    return unit


def _pyramid(height: int, width: int, like: Tensor) -> Tensor:
    """Σ over growing centred rectangles of 1 / (k + 1)², (height, width)."""
    values = like.new_zeros(height, width)
    row, column = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        values[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return values


def _length(change: Tensor) -> Tensor:
    """Euclidean length (n, 1, 1, 1) of each image."""
    length: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return length


def _patch_length(patch: Tensor) -> Tensor:
    """Euclidean length (n, C, 1, 1) of each channel's patch."""
    length: Tensor = torch.linalg.vector_norm(patch, dim=(2, 3), keepdim=True)
    return length.clamp_min(1e-12)
