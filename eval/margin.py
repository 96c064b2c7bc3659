"""Decision margins: logit of the true class minus the largest other logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from purify.eval.intervals import bootstrap_interval

__all__ = ["MarginSummary", "NormSummary"]


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
        """From one margin an image, (N,); what is not finite is left out."""
        values = margins[torch.isfinite(margins)].double().numpy()
        if len(values) == 0:
            return cls(float("nan"), float("nan"), float("nan"), float("nan"))
        low, high = bootstrap_interval(values, "median")
        return cls(float(np.median(values)), low, high, float((values < 0).mean()))


@dataclass(frozen=True)
class NormSummary:
    """Smallest adversarial norms: how far images are from the nearest one that is misclassified."""

    n: int
    """Images for which one was found."""
    quarter: float
    median: float
    low: float
    """95 % bootstrap interval of the median, lower bound."""
    high: float
    three_quarters: float

    @classmethod
    def of(cls, norms: Tensor) -> NormSummary:
        """From one norm an image, (n,).

        >>> import torch
        >>> NormSummary.of(torch.tensor([0.1, 0.2, 0.3])).median
        0.2
        """
        values = norms.double().numpy().round(7)
        low, high = bootstrap_interval(values, "median")
        quarter, median, three_quarters = (float(v) for v in np.percentile(values, [25, 50, 75]))
        return cls(len(values), quarter, median, low, high, three_quarters)
