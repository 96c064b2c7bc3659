"""Accuracy against eps, until nothing stands: oblivious and adaptive apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from purify.attacks import PGD, ThreatModel
from purify.eval.examination import Examination
from purify.eval.recovery import Accuracy
from purify.eval.sanity import eps_grid

__all__ = ["Curve", "accuracy_against_eps"]


@dataclass(frozen=True)
class Curve:
    """One defence's accuracy at growing eps, beginning with 0."""

    eps: list[float]
    oblivious: list[Accuracy]
    """Under PGD on the bare classifier; empty where there is none."""
    adaptive: list[Accuracy]
    """Under APGD along every gradient path."""


def accuracy_against_eps(examination: Examination) -> Curve:
    """Measure at the eps of check S2, which shares the attacks.

    An image that was broken at a smaller eps counts as broken at a larger one: the smaller ball lies in the larger. Not so
    behind a random defence, of whose noisy shares the least would be too low.
    """
    e = examination
    lowest = e.clean()
    curve = Curve([0.0], [], [Accuracy.of(lowest, "adaptive", "", e.seed)])
    if e.bare is not None:
        curve.oblivious.append(Accuracy.of(lowest, "oblivious", "", e.seed))
    for eps in eps_grid(e):
        lowest = torch.minimum(lowest, e.worst(eps)) if e.draws == 1 else e.worst(eps)
        curve.eps.append(eps)
        curve.adaptive.append(Accuracy.of(lowest, "adaptive", str(e.attack(eps)), e.seed))
        if e.bare is not None:
            attack = PGD(ThreatModel(e.threat.norm, eps), early_stop=False)
            curve.oblivious.append(Accuracy.of(e.transferred(attack), "oblivious", str(attack), e.seed))
    return curve
