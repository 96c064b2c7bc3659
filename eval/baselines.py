"""Purifiers to compare with, each from a library and each a module from images (N, C, H, W) in [0, 1] to the same."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import median_filter
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from purify.data import ImageSet

__all__ = ["BASELINES", "JPEG", "MedianFilter", "PCAProjection", "make_baseline"]

BASELINES = ("jpeg", "median", "pca")


class JPEG(nn.Module):
    """Compress each image as JPEG and decode it again, by torchvision (Dziugaite et al. 2016). No gradient."""

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """Images with 1 or 3 channels, in [0, 1]."""
        mode = ImageReadMode.GRAY if images.shape[1] == 1 else ImageReadMode.RGB
        pixels = (images.detach() * 255).round().to(torch.uint8).cpu()
        decoded = [decode_jpeg(encode_jpeg(image, quality=self.quality), mode=mode) for image in pixels]
        return torch.stack(decoded).to(images) / 255

    def extra_repr(self) -> str:
        """The quality."""
        return f"quality={self.quality}"


class MedianFilter(nn.Module):
    """Median over a square window for each channel, by SciPy (Xu, Evans & Qi 2018, «feature squeezing»). No gradient."""

    def __init__(self, side: int = 3) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        filtered = median_filter(images.detach().cpu().numpy(), size=(1, 1, self.side, self.side), mode="nearest")
        return torch.from_numpy(filtered).to(images)

    def extra_repr(self) -> str:
        """The window."""
        return f"side={self.side}"


class PCAProjection(nn.Module):
    """Projection onto the leading principal components of natural images, fitted by scikit-learn (Hendrycks & Gimpel 2017)."""

    def __init__(self, components: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.components: Tensor
        self.mean: Tensor
        self.register_buffer("components", components)  # (k, C·H·W)
        self.register_buffer("mean", mean)  # (C·H·W,)

    @classmethod
    def fit(cls, training: ImageSet, variance: float = 0.9, images: int = 10_000) -> PCAProjection:
        """Keep the components that hold ``variance`` of the variance of the first ``images`` training images."""
        pixels = training.first(images).batch(slice(None))[0].flatten(1).numpy().astype(np.float64)
        pca = PCA(n_components=variance, svd_solver="full").fit(pixels)
        return cls(torch.from_numpy(pca.components_).float(), torch.from_numpy(pca.mean_).float())

    def forward(self, images: Tensor) -> Tensor:
        """Images of the size that it was fitted on."""
        components, mean = self.components.to(images), self.mean.to(images)
        code = F.linear(images.flatten(1) - mean, components)  # (N, k)
        return (F.linear(code, components.T) + mean).view_as(images).clamp(0, 1)

    def extra_repr(self) -> str:
        """How many components."""
        return f"components={len(self.components)}"


def make_baseline(name: str, training: ImageSet | None = None) -> nn.Module:
    """A baseline by name; ``pca`` is fitted on ``training``.

    Raises:
        ValueError: unknown name, or ``pca`` without training images.
    """
    if name == "jpeg":
        return JPEG()
    if name == "median":
        return MedianFilter()
    if name == "pca":
        if training is None:
            raise ValueError("the pca baseline needs training images to be fitted on")
        return PCAProjection.fit(training)
    raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
