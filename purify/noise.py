"""How much noise an image holds in each place, estimated from the image itself."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["estimate_noise"]

_MASK = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
"""The difference of two Laplacians: blind to ramps and upright edges. Its squares sum to 36: noise of σ becomes noise of 6 σ."""
_POSITIONS = 9


def estimate_noise(images: Tensor, stride: int = 1) -> Tensor:
    """The standard deviation σ̂ of white noise around each place, in the unit of the pixels.

    σ̂ = √(π/2) · mean |I ∗ M| / 6 with the mask M = [1 −2 1; −2 4 −2; 1 −2 1] (Immerkær 1996, «Fast noise variance estimation»,
    eq. 5), the mean over the channels and a square of 9 × 9 places. Fine texture counts as noise. Differentiable wherever the
    filtered image is not zero.

    Args:
        images: (N, C, H, W), H and W multiples of the stride.
        stride: there is one place for each stride × stride pixels.

    Returns:
        (N, 1, H/stride, W/stride).

    >>> import torch
    >>> noisy = 0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> found = estimate_noise(noisy, stride=4)
    >>> found.shape, round(found.mean().item(), 2)
    (torch.Size([1, 1, 16, 16]), 0.1)
    """
    channels = images.shape[1]
    mask = images.new_tensor(_MASK).expand(channels, 1, 3, 3)
    filtered = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), mask, groups=channels)
    places = F.avg_pool2d(filtered.abs().mean(1, keepdim=True), stride)
    around = F.avg_pool2d(places, _POSITIONS, 1, _POSITIONS // 2, count_include_pad=False)
    return math.sqrt(math.pi / 2) / 6 * around
