"""Decision margins: logit of the true class minus the largest other logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from purify.eval.intervals import bootstrap_interval

__all__ = ["MarginSummary"]


@dataclass(frozen=True)
class MarginSummary:
    """A distribution of margins in three figures; units of the classifier's logits."""

    median: float
    low: float
    """95 % bootstrap interval of the median, lower bound."""
    high: float
    negative: float
    """Share of images whose margin is negative, which are the misclassified ones."""

    @classmethod
    def of(cls, margins: Tensor) -> MarginSummary:
        """From one margin an image, (N,)."""
        values = margins.double().numpy()
        low, high = bootstrap_interval(values, "median")
        return cls(float(np.median(values)), low, high, float((values < 0).mean()))
