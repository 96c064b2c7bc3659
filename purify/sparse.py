"""Proximal operators: the non-linearities that make a code sparse, each with the problem that it solves.

The proximal operator of a penalty g is prox_g(v) = argmin_z ½‖z − v‖² + g(z) (Parikh & Boyd 2014, eq. 1.1). The functions
compute; the :class:`SparseCode` modules choose one of them for an autoencoder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BatchTopK",
    "CodeName",
    "HardThreshold",
    "SoftThreshold",
    "SparseCode",
    "TopK",
    "hard_threshold",
    "jump_relu",
    "make_code",
    "nonnegative_soft_threshold",
    "soft_threshold",
    "top_k",
]

CodeName = Literal["soft", "hard", "top-k", "batch-top-k"]


def soft_threshold(v: Tensor, threshold: Tensor | float) -> Tensor:
    """Shrink towards zero by ``threshold``: sign(v) · max(|v| − θ, 0), the proximal operator of θ‖z‖₁.

    Solves argmin_z ½‖z − v‖² + θ‖z‖₁ (Daubechies, Defrise & De Mol 2004). It is non-expansive:
    |S(a) − S(b)| ≤ |a − b|. Shapes: any, ``threshold`` broadcastable to ``v`` and not negative.

    >>> soft_threshold(Tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1., 0., 2.])
    """
    return v.sign() * F.relu(v.abs() - threshold)


def nonnegative_soft_threshold(v: Tensor, threshold: Tensor | float) -> Tensor:
    """Non-negative soft threshold max(v − θ, 0): a ReLU whose bias is shifted by −θ.

    Solves argmin_{z ≥ 0} ½‖z − v‖² + θ Σ z, the proximal operator of the L1 norm together with non-negativity
    (Gregor & LeCun 2010; Papyan, Romano & Elad 2017, section 4). Non-expansive, with gradient 1 where v > θ and 0
    elsewhere. Shapes: any, ``threshold`` broadcastable to ``v`` and not negative.

    >>> nonnegative_soft_threshold(Tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([0., 0., 2.])
    """
    return F.relu(v - threshold)


def hard_threshold(v: Tensor, threshold: Tensor | float) -> Tensor:
    """Keep what is larger than ``threshold`` in size, as it is: v where |v| > θ, else 0.

    Solves argmin_z ½‖z − v‖² + (θ²/2)·‖z‖₀ (Blumensath & Davies 2008, eq. 2.2). It jumps by θ, so it is expansive, and its
    gradient says nothing of the jump: below the threshold it is zero, and small attacks see a flat landscape.

    >>> hard_threshold(Tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-2., 0., 3.])
    """
    return v * (v.abs() > threshold)


def jump_relu(v: Tensor, threshold: Tensor, width: float = 0.05) -> Tensor:
    """The non-negative hard threshold v · [v > θ], with a gradient for learning θ (Rajamanoharan et al. 2024).

    Solves argmin_{z ≥ 0} ½‖z − v‖² + (θ²/2)·‖z‖₀. Backward, v has the gradient 1 where v > θ; θ, of whose jump the true gradient
    is zero nearly everywhere, has the straight-through one −(θ/w)·[|v − θ| < w/2] (their eq. 11).

    Args:
        v: any shape.
        threshold: θ ≥ 0, broadcastable to ``v``.
        width: w, of the window in which θ learns.

    >>> jump_relu(Tensor([-2.0, 0.5, 3.0]), Tensor([1.0]))
    tensor([0., 0., 3.])
    """
    near = (v - threshold).abs() < width / 2
    learning = (near * threshold / width).detach() * (threshold - threshold.detach())  # exactly zero, but has a gradient
    return torch.where(v <= threshold, 0.0, v) - learning  # so that NaN stays one


def top_k(v: Tensor, k: int) -> Tensor:
    """For each image the ``k`` largest positive entries of its whole code, as they are; the rest is 0.

    Solves argmin ½‖z − v‖² over z ≥ 0 with ‖z‖₀ ≤ k (Makhzani & Frey 2014). An entry that falls out of the k jumps to 0.

    Args:
        v: (N, …).
        k: at least 1; more than there are entries keeps all.

    >>> top_k(Tensor([[3.0, 1.0, 2.0, -4.0]]), 2)
    tensor([[3., 0., 2., 0.]])
    """
    flat = F.relu(v.flatten(1))
    kept = flat.topk(min(k, flat.shape[1]), dim=1)
    return torch.zeros_like(flat).scatter(1, kept.indices, kept.values).view_as(v)


class SparseCode(nn.Module, ABC):
    """What makes a code sparse: analysis v (N, K, h, w) of either sign to a code of the same shape, not negative."""

    @abstractmethod
    def forward(self, v: Tensor, threshold: Tensor, step: int) -> Tensor:
        """Args: v; the autoencoder's thresholds θ (K, 1, 1) ≥ 0, for those that use them; the number of the unrolled step."""


class SoftThreshold(SparseCode):
    """:func:`nonnegative_soft_threshold` with learnt θ: the default, non-expansive."""

    def forward(self, v: Tensor, threshold: Tensor, step: int) -> Tensor:
        """See :class:`SparseCode`."""
        return nonnegative_soft_threshold(v, threshold)


class HardThreshold(SparseCode):
    """:func:`jump_relu` with learnt θ."""

    def forward(self, v: Tensor, threshold: Tensor, step: int) -> Tensor:
        """See :class:`SparseCode`."""
        return jump_relu(v, threshold)


class TopK(SparseCode):
    """:func:`top_k` of each image's code, k a share ``density`` of its entries; θ is not used (Gao et al. 2024)."""

    def __init__(self, density: float) -> None:
        super().__init__()
        self.density = density

    def forward(self, v: Tensor, threshold: Tensor, step: int) -> Tensor:
        """See :class:`SparseCode`."""
        return top_k(v, math.ceil(self.density * v[0].numel()))


class BatchTopK(SparseCode):
    """The largest share ``density`` of a whole batch's entries while training, so that images share the budget; from then on a
    JumpReLU at the mean level that this left, held in a buffer: what an image becomes must not depend on its neighbours
    (Bussmann, Leask & Nanda 2024)."""

    def __init__(self, density: float, steps: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.density, self.momentum = density, momentum
        self.level: Tensor
        self.register_buffer("level", torch.zeros(steps))

    def forward(self, v: Tensor, threshold: Tensor, step: int) -> Tensor:
        """See :class:`SparseCode`."""
        if not self.training:
            return v * (v > self.level[step])
        kept = top_k(v[None], math.ceil(self.density * v.numel()))[0]  # one budget for the batch
        with torch.no_grad():
            active = kept[kept > 0]
            if len(active):
                now = active.min().float()
                before = self.level[step]
                self.level[step] = torch.where(before > 0, torch.lerp(now, before, self.momentum), now)
        return kept


def make_code(name: CodeName, *, density: float, steps: int) -> SparseCode:
    """The module of that name.

    Args:
        name: soft, hard, top-k or batch-top-k.
        density: share of a code's entries that top-k and batch-top-k leave.
        steps: unrolled steps, of which each has its own level in batch-top-k.

    Raises:
        ValueError: unknown name.

    >>> make_code("top-k", density=0.5, steps=1)(Tensor([[[[3.0, -1.0, 2.0, 4.0]]]]), Tensor([0.0]), 0)
    tensor([[[[3., 0., 0., 4.]]]])
    """
    codes: dict[str, Callable[[], SparseCode]] = {
        "soft": SoftThreshold,
        "hard": HardThreshold,
        "top-k": lambda: TopK(density),
        "batch-top-k": lambda: BatchTopK(density, steps),
    }
    if name not in codes:
        raise ValueError(f"unknown code {name!r}; known: {', '.join(codes)}")
    return codes[name]()
