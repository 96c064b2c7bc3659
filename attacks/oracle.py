"""What an attack may ask of a defence, and at what price."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify.attacks.gradient import GradientPath, GradientStep, Model
from purify.attacks.objective import Objective
from purify.attacks.problem import Problem, hits

if TYPE_CHECKING:
    from purify.attacks.iterates import Standing

__all__ = ["Oracle"]


class Oracle:
    """Logits and gradients of one defence for one batch; counts the evaluations of each image.

    With ``bfloat16``, gradient steps are computed under autocast, and only they: the first break that a step claims of an image
    is put to the model without autocast, and counts only if that confirms it.
    """

    def __init__(self, model: Model, gradient: GradientPath, problem: Problem, *, bfloat16: bool = False) -> None:
        self.model, self.gradient, self.bfloat16 = model, gradient, bfloat16
        self.queries = torch.zeros_like(problem.labels)
        """int64 (N,), evaluations so far."""
        self.claimed = torch.zeros_like(problem.labels, dtype=torch.bool)
        """bool (N,): some step under autocast seemed to break the image."""
        self._confirmed = torch.zeros_like(self.claimed)

    def part(self, problem: Problem) -> Oracle:
        """An oracle of its own for another batch of the same defence; see :meth:`absorb`."""
        return Oracle(self.model, self.gradient, problem, bfloat16=self.bfloat16)

    def absorb(self, part: Oracle, rows: Tensor) -> None:
        """Count what ``part`` was asked; ``rows`` are the places of its images here, and may repeat."""
        self.queries.index_add_(0, rows, part.queries)
        self.claimed[rows[part.claimed]] = True

    @torch.no_grad()
    def logits(self, here: Standing, x: Tensor | None = None) -> Tensor:
        """The defence's logits (n, classes) for ``here.x``, or for other images ``x`` (n, C, H, W) in the place of these."""
        self._count(here.rows)
        x = here.x if x is None else x
        return self.model(x).to(x.dtype)

    def look(self, here: Standing, objective: Objective) -> GradientStep:
        """Logits and loss at ``here.x``, without a gradient."""
        logits = self.logits(here)
        return GradientStep(logits, objective(logits, here.labels, here.aims), here.x.new_empty(len(here), 0))

    def climb(self, here: Standing, objective: Objective, *, late: bool = False) -> GradientStep:
        """Logits, loss and gradient at ``here.x``, along the gradient path; ``late`` in an attack never under autocast."""
        self._count(here.rows)

        def loss(logits: Tensor) -> Tensor:
            return objective(logits, here.labels, here.aims)

        if not self.bfloat16 or late:
            return _usable(self.gradient(here.x, loss))
        with torch.autocast(here.x.device.type, torch.bfloat16):
            step = self.gradient(here.x, loss)
        return self._confirm(here, objective, _usable(step))

    @torch.no_grad()
    def _confirm(self, here: Standing, objective: Objective, step: GradientStep) -> GradientStep:
        """The step with float32 logits and losses wherever an image seems to break for the first time."""
        claimed = (hits(step.logits, here) & ~self._confirmed[here.rows]).nonzero().flatten()
        if len(claimed) == 0:
            return step
        part = Problem(here.images[claimed], here.labels[claimed], None if here.targets is None else here.targets[claimed])
        logits = self.model(here.x[claimed]).to(here.x.dtype)
        self._count(here.rows[claimed])
        self.claimed[here.rows[claimed]] = True
        self._confirmed[here.rows[claimed]] = hits(logits, part)
        value = objective(logits, part.labels, None if here.aims is None else here.aims[claimed])
        return GradientStep(step.logits.index_copy(0, claimed, logits), step.value.index_copy(0, claimed, value), step.gradient)

    def _count(self, rows: Tensor) -> None:
        self.queries.index_add_(0, rows, torch.ones_like(rows))  # rows may repeat


def _usable(step: GradientStep) -> GradientStep:
    """With zeros where the gradient is no number, so that the image is attacked along the rest of it."""
    return step._replace(gradient=step.gradient.nan_to_num(0.0, 0.0, 0.0))
