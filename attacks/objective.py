"""What an attack maximises: one value an image, from its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from purify.attacks.result import margin

__all__ = ["LossName", "Objective", "make_objective"]

LossName = Literal["ce", "margin", "dlr"]
Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits (N, classes), labels (N,), targets (N,) or None) -> (N,), to be maximised."""


def make_objective(loss: LossName) -> Objective:
    """The function to maximise, untargeted (``targets`` None) or targeted.

    ``ce``: cross-entropy of the label, or minus that of the target. ``margin``: the largest other logit minus the label's,
    or the target's minus the largest other (Carlini & Wagner 2017, f₆ without its bound). ``dlr``: difference of logits ratio,
    which no scaling of the logits changes (Croce & Hein 2020, equations 6 and 7).

    Raises:
        ValueError: unknown loss; on call, fewer than 3 classes for ``dlr`` (4 for its targeted form).

    >>> make_objective("margin")(Tensor([[3.0, 1.0, 2.0]]), Tensor([0]).long(), None)
    tensor([-1.])
    """
    if loss not in get_args(LossName):
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(get_args(LossName))}")
    return {"ce": _cross_entropy, "margin": _margin, "dlr": _dlr}[loss]


def _cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None:
        return F.cross_entropy(logits, labels, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def _margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return -margin(logits, labels) if targets is None else margin(logits, targets)


def _dlr(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        kind = "dlr" if targets is None else "targeted dlr"
        raise ValueError(f"the {kind} loss needs at least {needed} classes, got {logits.shape[1]}; use 'ce' or 'margin'")
    top = logits.topk(needed, dim=1).values
    if targets is None:
        return -margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)
    own = logits.gather(1, labels[:, None])[:, 0]
    wanted = logits.gather(1, targets[:, None])[:, 0]
    return -(own - wanted) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)
