"""What is to be done to a batch: images, their labels, and the classes to be reached, if any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Aimed", "Problem", "hits"]


@dataclass(frozen=True)
class Problem:
    """One batch to be attacked."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)."""
    targets: Tensor | None
    """(N,) classes to reach, or None: any class but the label."""

    def part(self, rows: Tensor) -> Problem:
        """The problem for some rows only."""
        return Problem(self.images[rows], self.labels[rows], None if self.targets is None else self.targets[rows])


class Aimed(Protocol):
    """Anything with labels and targets: a :class:`Problem`, or the part of one that is still standing."""

    @property
    def labels(self) -> Tensor:
        """(N,)."""
        ...

    @property
    def targets(self) -> Tensor | None:
        """(N,) or None."""
        ...


def hits(logits: Tensor, problem: Aimed) -> Tensor:
    """bool (N,): does the attack succeed with these logits (N, classes)? A model that answers NaN is not right."""
    predicted, finite = logits.argmax(1), torch.isfinite(logits).all(1)
    return (predicted != problem.labels) | ~finite if problem.targets is None else (predicted == problem.targets) & finite
