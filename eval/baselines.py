"""Purifiers to compare with, each from a library and each a module from images (N, C, H, W) in [0, 1] to the same."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import median_blur
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from purify.data import ImageSet

__all__ = [
    "BASELINES",
    "IN_EVERY_TABLE",
    "JPEG",
    "BitDepth",
    "GaussianFilter",
    "GaussianNoise",
    "MedianFilter",
    "PCAProjection",
    "TotalVariation",
    "WaveletThreshold",
    "make_baseline",
]


class JPEG(nn.Module):
    """Compress each image as JPEG and decode it again, by Pillow (Dziugaite et al. 2016). No gradient, but an
    attacker has that of :meth:`smooth`."""

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """Images with 1 or 3 channels, in [0, 1]."""
        pixels = (images.detach() * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
        decoded = [self._again(image.squeeze(-1) if images.shape[1] == 1 else image) for image in pixels]
        return torch.from_numpy(np.stack(decoded)).view(pixels.shape).permute(0, 3, 1, 2).to(images) / 255

    def _again(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
            return np.asarray(Image.open(file))

    def smooth(self, images: Tensor) -> Tensor:
        """JPEG with a smooth rounding, by kornia (Reich et al. 2024): from images (N, 1 or 3, H, W) in [0, 1] to nearly the same
        as by JPEG, with a gradient that is of use."""
        colour = images.expand(-1, 3, -1, -1)  # grey has no chroma to lose
        with torch.autocast(images.device.type, enabled=False):  # coefficients of 1,000 in bfloat16 would be off by several steps
            smooth: Tensor = jpeg_codec_differentiable(colour.float(), torch.tensor([float(self.quality)], device=images.device))
        return (smooth.mean(1, keepdim=True) if images.shape[1] == 1 else smooth).to(images.dtype)

    @property
    def surrogates(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """For the gradient paths of an adaptive attacker, by name."""
        return {"smooth rounding": self.smooth}

    def extra_repr(self) -> str:
        """The quality."""
        return f"quality={self.quality}"


class MedianFilter(nn.Module):
    """Median over a square window for each channel, by kornia (Xu, Evans & Qi 2018, «feature squeezing»). Its gradient is exact:
    that of the pixel which is chosen."""

    def __init__(self, side: int = 3) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        height, width, reach = *images.shape[-2:], self.side // 2
        filtered: Tensor = median_blur(F.pad(images, [reach] * 4, mode="replicate"), self.side)
        return filtered[..., reach : reach + height, reach : reach + width]

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
        return self.relaxed(images).clamp(0, 1)

    def relaxed(self, images: Tensor) -> Tensor:
        """The same without the final clip, whose gradient never vanishes."""
        components, mean = self.components.to(images), self.mean.to(images)
        code = F.linear(images.flatten(1) - mean, components)  # (N, k)
        return (F.linear(code, components.T) + mean).view_as(images)

    def extra_repr(self) -> str:
        """How many components."""
        return f"components={len(self.components)}"


class GaussianFilter(nn.Module):
    """Blur with a Gaussian, by torchvision. It has a gradient."""

    def __init__(self, sigma: float = 0.7) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]; sigma is in pixels."""
        reach = min(math.ceil(3 * self.sigma), (min(images.shape[-2:]) - 1) // 2)
        blurred: Tensor = gaussian_blur(images, [2 * reach + 1] * 2, [self.sigma] * 2)
        return blurred

    def extra_repr(self) -> str:
        """Its width."""
        return f"sigma={self.sigma}"


class BitDepth(nn.Module):
    """Round to few levels (Xu, Evans & Qi 2018). No gradient of use."""

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        levels = 2**self.bits - 1
        rounded: Tensor = (images * levels).round() / levels
        return rounded

    def extra_repr(self) -> str:
        """How many bits."""
        return f"bits={self.bits}"


class TotalVariation(nn.Module):
    """Denoising by total variation, by scikit-image (Chambolle 2004; as a defence Guo et al. 2018). No gradient."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        denoise = _restoration().denoise_tv_chambolle
        pixels = images.detach().cpu().numpy()
        smooth = [denoise(image, weight=self.weight, channel_axis=0) for image in pixels]
        smoothed: Tensor = torch.from_numpy(np.stack(smooth)).to(images).clamp(0, 1)
        return smoothed

    def extra_repr(self) -> str:
        """How strong."""
        return f"weight={self.weight}"


class WaveletThreshold(nn.Module):
    """Soft threshold of wavelet coefficients, BayesShrink, by scikit-image and PyWavelets (Chang, Yu & Vetterli 2000; as a
    defence Prakash et al. 2018). No gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        denoise = _restoration().denoise_wavelet
        pixels = images.detach().cpu().numpy()
        # A sigma of zero (a flat image) has nothing to be removed, and would be divided by.
        smooth = [image if image.std() < 1e-6 else denoise(image, mode="soft", channel_axis=0) for image in pixels]
        smoothed: Tensor = torch.from_numpy(np.nan_to_num(np.stack(smooth))).to(images).clamp(0, 1)
        return smoothed


class GaussianNoise(nn.Module):
    """Add Gaussian noise, anew at each pass: what randomised smoothing does to an image, without its vote. Random."""

    def __init__(self, sigma: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.sigma = sigma
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        return self.relaxed(images).clamp(0, 1)

    def relaxed(self, images: Tensor) -> Tensor:
        """The same without the final clip."""
        return images + self.sigma * torch.randn(images.shape, generator=self.generator).to(images)

    def extra_repr(self) -> str:
        """Its standard deviation."""
        return f"sigma={self.sigma}"


def _restoration() -> Any:
    """scikit-image's module, or a word on how to get it."""
    try:
        import pywt  # noqa: F401 - denoise_wavelet asks for it

        return importlib.import_module("skimage.restoration")
    except ImportError as error:
        raise ModuleNotFoundError(
            "this baseline needs scikit-image and PyWavelets: pip install 'purify-defense[baselines]'"
        ) from error


_CLASSICAL: dict[str, Callable[[], nn.Module]] = {
    "jpeg": JPEG,
    "median": MedianFilter,
    "gaussian": GaussianFilter,
    "bit-depth": BitDepth,
    "total-variation": TotalVariation,
    "wavelet": WaveletThreshold,
    "noise": GaussianNoise,
}
BASELINES = (*_CLASSICAL, "pca")
"""Names for :func:`make_baseline`."""
IN_EVERY_TABLE = ("jpeg", "median", "pca")
"""Those in every table of the README; ``purify tables --full`` has all."""


def make_baseline(name: str, training: ImageSet | None = None) -> nn.Module:
    """A baseline by name; ``pca`` is fitted on ``training``.

    Raises:
        ValueError: unknown name, or ``pca`` without training images.
    """
    if name in _CLASSICAL:
        return _CLASSICAL[name]()
    if name == "pca":
        if training is None:
            raise ValueError("the pca baseline needs training images to be fitted on")
        return PCAProjection.fit(training)
    raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
