"""Planted fakes: stages that only look like defences. The evaluation must see through each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FAKES", "DeadZone", "ExtremeTemperature", "GradientKiller", "GradientScrambler", "HardQuantiser", "RandomResize"]


class GradientKiller(nn.Module):
    """The image itself, with a gradient of zero."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same."""
        return images.detach() + 0 * images


class HardQuantiser(nn.Module):
    """Sixteen levels, without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same, rounded."""
        return (images * 16).round() / 16


class GradientScrambler(nn.Module):
    """The image itself, with each pixel's gradient given to the opposite pixel: large, and of no use."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same."""
        turned = images.flip(-2, -1)
        return images.detach() + (turned - turned.detach())


class DeadZone(nn.Module):
    """Sixteen levels joined by steep ramps: flat, and so without gradient, over nine tenths of the range."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same."""
        level, within = (images * 16).floor(), (images * 16).frac()
        return (level + ((within - 0.45) / 0.1).clamp(0, 1)) / 16


class RandomResize(nn.Module):
    """Each image is resized by up to a tenth and moved by a twentieth of its width at most, anew each time (Xie et al. 2018)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same, interpolated."""
        scale = 0.9 + 0.2 * torch.rand(len(images), generator=self.generator)
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = 0.2 * torch.rand(len(images), 2, generator=self.generator) - 0.1  # of half the width
        grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images)
        return F.grid_sample(images, grid, align_corners=False)


class ExtremeTemperature(nn.Module):
    """A classifier whose logits are multiplied by a million: the same decisions, and a cross-entropy without gradient."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.training = classifier.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits."""
        logits: Tensor = 1e6 * self.classifier(images)
        return logits


FAKES: dict[str, Callable[[], nn.Module]] = {
    "gradient killer": GradientKiller,
    "gradient scrambler": GradientScrambler,
    "hard quantiser": HardQuantiser,
    "dead zone": DeadZone,
    "random resize": RandomResize,
}
"""The stages by name; :class:`ExtremeTemperature` wraps a classifier instead."""
