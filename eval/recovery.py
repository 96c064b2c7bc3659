"""Accuracies and recovered accuracy, each with what it was measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from purify.eval.intervals import bootstrap_interval, wilson_interval

__all__ = ["Accuracy", "Claim", "Recovery"]

Claim = Literal["clean", "oblivious", "adaptive", "worst case"]


@dataclass(frozen=True)
class Accuracy:
    """Share of images classified rightly, under one claim."""

    claim: Claim
    attack: str
    """The attack and its settings in words; empty for clean images."""
    right: float
    """Images; a sum of shares for random defences."""
    n: int
    low: float
    """95 % Wilson interval, lower bound, as a share."""
    high: float
    seed: int

    @classmethod
    def of(cls, correct: Tensor, claim: Claim, attack: str = "", seed: int = 0) -> Accuracy:
        """From one bool an image, (N,), or the share of draws in which it is right."""
        right, n = float(correct.double().sum()), len(correct)
        right = int(right) if right == int(right) else right
        return cls(claim, attack, right, n, *wilson_interval(right, n), seed)

    @property
    def share(self) -> float:
        """right / n."""
        return self.right / self.n

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Recovery:
    """Recovered accuracy: (purified − attacked) / (clean − attacked), all three with an attack made on the bare classifier."""

    share: float
    """NaN where the attack took nothing."""
    low: float
    """95 % bootstrap interval over images, lower bound."""
    high: float
    n: int

    @classmethod
    def of(cls, clean: Tensor, attacked: Tensor, purified: Tensor, seed: int = 0) -> Recovery:
        """From one bool an image each, (N,), or shares of draws: right when clean and bare, attacked and bare, attacked
        and purified.

        >>> right, wrong = torch.tensor([True] * 10), torch.tensor([False] * 10)
        >>> Recovery.of(right, wrong, torch.tensor([True] * 9 + [False])).share
        0.9
        """
        rows = torch.stack([clean, attacked, purified], 1).double().numpy().astype(np.float64)
        before, under, after = rows.mean(0)
        share = (after - under) / (before - under) if before > under else float("nan")
        return cls(float(share), *bootstrap_interval(rows, seed=seed), len(rows))

    def __str__(self) -> str:
        interval = "–" if np.isnan(self.low) else f"{100 * self.low:.1f}, {100 * self.high:.1f}"
        return "–" if np.isnan(self.share) else f"{100 * self.share:.1f} [{interval}]"
