"""What an attack hands back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["AttackResult", "margin"]


class AttackResult(NamedTuple):
    """One row an image, in the order of the images given."""

    adversarial: Tensor
    """(N, C, H, W), inside the threat model; the image itself where it was misclassified from the start."""
    success: Tensor
    """bool (N,): the label is missed (untargeted) or the target is hit (targeted) by the model's own forward pass."""
    margin: Tensor
    """(N,): logit of the true class minus the largest other logit, at the adversarial image; negative when broken."""
    distance: Tensor
    """(N,): in the threat model's norm."""
    queries: Tensor
    """int64 (N,): forward passes spent on the image."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of ``labels`` minus the largest other logit: (N, classes) and (N,) to (N,); positive where they are right.

    >>> margin(Tensor([[3.0, 1.0, 2.0]]), Tensor([0]).long())
    tensor([1.])
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own[:, 0] - others.amax(1)
