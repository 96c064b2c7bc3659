"""The images still under attack, the best iterate found for each, and the loop that all iterative attacks share."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from purify.attacks.gradient import GradientStep
from purify.attacks.objective import Objective
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem, hits

__all__ = ["BestIterate", "Record", "Standing", "climb"]


class Standing:
    """The images of a batch that are still under attack. Every tensor has one row an image, and all are thinned out together:
    also those that an attack hangs on it (``here.velocity = …``)."""

    rows: Tensor
    """(n,), their places in the batch."""
    images: Tensor
    """(n, C, H, W), clean."""
    labels: Tensor
    """(n,)."""
    targets: Tensor | None
    """(n,): what counts as success; see :class:`Problem`."""
    aims: Tensor | None
    """(n,): the classes that the loss aims at; the targets, unless an attack sets them (targeted APGD tries several)."""
    x: Tensor
    """(n, C, H, W), the present iterates."""

    def __init__(self, problem: Problem, rows: Tensor, aims: Tensor | None = None) -> None:
        part = problem.part(rows)
        self.rows, self.images, self.labels, self.targets, self.x = rows, part.images, part.labels, part.targets, part.images
        self.aims = self.targets if aims is None else aims[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def copies(self, count: int) -> Standing:
        """Each image ``count`` times in a row (n · count): several proposals for it in one pass."""
        which = torch.arange(len(self), device=self.rows.device).repeat_interleave(count)
        wide = copy(self)
        wide.keep(which)
        return wide

    def keep(self, which: Tensor) -> None:
        """Go on with the rows ``which`` (indices) alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[which])

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


class Record(Protocol):
    """Takes note of iterates, and says which images need no further attack."""

    def enter(self, here: Standing, step: GradientStep) -> Tensor:
        """Note the iterates ``here.x`` with what the defence said to them; bool (n,): done with."""
        ...


class BestIterate:
    """For each image of a batch the best iterate so far: a successful one before any that is not, then the highest loss."""

    def __init__(self, problem: Problem, logits: Tensor) -> None:
        self.problem = problem
        self.candidates = problem.images.clone()
        """(N, C, H, W)."""
        self.success = hits(logits, problem)
        """bool (N,); images misclassified from the start stand as they are, unless a loss is higher."""
        self.value = problem.images.new_full((len(logits),), float("-inf"))
        """(N,), the loss at ``candidates``."""

    def standing(self, early_stop: bool, aims: Tensor | None = None) -> Standing:
        """The images still to be attacked: all, or with ``early_stop`` those not broken yet."""
        everything = torch.arange(len(self.value), device=self.value.device)
        return Standing(self.problem, (~self.success).nonzero().flatten() if early_stop else everything, aims)

    def enter(self, here: Standing, step: GradientStep) -> Tensor:
        """See :class:`Record`; done with are the images that ``here.x`` breaks."""
        broken = hits(step.logits, here)
        self._take(here.rows, here.x, step.value, broken)
        return broken

    def merge(self, others: BestIterate, rows: Tensor) -> None:
        """Take over what ``others`` found for ``rows`` (n,), which it holds several times, n by n."""
        n = len(rows)
        value, success = others.value.view(-1, n), others.success.view(-1, n)
        first = torch.where(success.any(0) & ~success, float("-inf"), value).argmax(0)
        pick = first * n + torch.arange(n, device=rows.device)
        self._take(rows, others.candidates[pick], others.value[pick], others.success[pick])

    def _take(self, rows: Tensor, x: Tensor, value: Tensor, broken: Tensor) -> None:
        before, highest = self.success[rows], self.value[rows]
        value = value.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))  # no loss is higher than no answer
        better = (broken & ~before) | ((broken == before) & (value > highest))
        self.candidates[rows] = torch.where(better[:, None, None, None], x, self.candidates[rows])
        self.value[rows] = torch.where(better, value, highest)
        self.success[rows] = before | broken


def climb(
    here: Standing,
    record: Record,
    oracle: Oracle,
    objective: Objective,
    steps: int,
    *,
    early_stop: bool,
    gradients: bool = True,
) -> Iterator[tuple[int, GradientStep]]:
    """The loop of every iterative attack: look at ``here.x``, note it, let go of what is broken, hand the rest out to be moved.

    Yields ``steps`` times at most: the number of the step, and loss and gradient at ``here.x``, which the attack then sets anew.
    The last iterate is noted as well. Without ``gradients`` those of the steps are empty.
    """
    for k in range(steps + 1):
        if len(here) == 0:
            return
        late = k >= min(0.9 * steps, steps - 1)  # small steps near an optimum want exact gradients
        step = oracle.climb(here, objective, late=late) if gradients and k < steps else oracle.look(here, objective)
        done = record.enter(here, step)
        if k == steps:
            return
        if early_stop and bool(done.any()):
            left = (~done).nonzero().flatten()
            here.keep(left)
            step = GradientStep(step.logits[left], step.value[left], step.gradient[left])
        if len(here):
            yield k, step
