"""Proximal operators: the non-linearities that make a code sparse, each with the problem that it solves.

The proximal operator of a penalty g is prox_g(v) = argmin_z ½‖z − v‖² + g(z) (Parikh & Boyd 2014, eq. 1.1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["nonnegative_soft_threshold", "soft_threshold"]


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
