"""What an iterative attack has found so far."""

from __future__ import annotations

import torch
from torch import Tensor

from purify.attacks.attack import Problem, hits

__all__ = ["BestIterate"]


class BestIterate:
    """For each image of a batch the best iterate so far: a successful one before any that is not, then the highest loss."""

    def __init__(self, problem: Problem, logits: Tensor) -> None:
        self.candidates = problem.images.clone()
        """(N, C, H, W)."""
        self.success = hits(logits, problem)
        """bool (N,); images misclassified from the start stand as they are, unless a loss is higher."""
        self.value = problem.images.new_full((len(logits),), float("-inf"))
        """(N,), the loss at ``candidates``."""
        self.queries = torch.zeros_like(problem.labels)
        """int64 (N,), forward passes spent."""

    def standing(self, early_stop: bool) -> Tensor:
        """Indices of the images still to be attacked."""
        return (~self.success).nonzero().flatten() if early_stop else torch.arange(len(self.value), device=self.value.device)

    def update(self, rows: Tensor, x: Tensor, logits: Tensor, value: Tensor, here: Problem) -> Tensor:
        """Enter the iterates ``x`` (n, C, H, W) of ``rows`` (n,); returns bool (n,), which of them succeed."""
        broken = hits(logits, here)
        self.queries[rows] += 1
        before = self.success[rows]
        better = (broken & ~before) | ((broken == before) & (value > self.value[rows]))
        chosen = rows[better]
        self.candidates[chosen] = x[better]
        self.value[chosen] = value[better]
        self.success[chosen] = broken[better]
        return broken
