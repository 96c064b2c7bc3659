"""Two defences, or two attacks, on the same images: is one better?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr
from torch import Tensor

__all__ = ["PairedComparison"]


@dataclass(frozen=True)
class PairedComparison:
    """Images on which the one stands and the other falls, and how surprising that is.

    The exact McNemar test (McNemar 1947): if neither is better, each image on which they differ is as likely to favour the one as
    the other, so the smaller count is binomial with 1/2. Images on which they agree say nothing.

    >>> import torch
    >>> first, second = torch.tensor([True] * 12 + [False] * 8), torch.tensor([True] * 4 + [False] * 16)
    >>> print(PairedComparison.of(first, second))
    +40.0 points (stands where the other falls: 8, the other way: 0), p = 0.0078
    """

    n: int
    first_only: int
    """Images on which the first stands and the second falls."""
    second_only: int
    p: float
    """Two-sided."""
    difference: float
    """Mean of first minus second."""

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> PairedComparison:
        """From one bool an image each (N,), or the share of draws in which it stands.

        Raises:
            ValueError: not the same number of images, or none.
        """
        if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
            raise ValueError(
                f"expected one value for each of the same images, got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        gap = first.double().cpu().numpy() - second.double().cpu().numpy()
        above, below = int((gap > 0).sum()), int((gap < 0).sum())
        p = min(1.0, 2 * float(bdtr(min(above, below), above + below, 0.5)))
        return cls(len(gap), above, below, p, float(np.mean(gap)))

    @property
    def higher(self) -> bool:
        """Whether the first is higher, beyond chance (p < 0.05)."""
        return self.p < 0.05 and self.first_only > self.second_only

    def __str__(self) -> str:
        return (
            f"{100 * self.difference:+.1f} points (stands where the other falls: {self.first_only}, the other way: "
            f"{self.second_only}), p = {self.p:.2g}"
        )
