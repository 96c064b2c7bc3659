"""Denoisers that are not sparse: what a DSAE must be better than. Modules from images (N, C, H, W) in [0, 1] to the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify.autoencoder import DenoisingSparseAutoencoder, DSAEConfig

__all__ = ["Denoiser", "DenoiserConfig", "DenseAutoencoder", "DnCNN", "LinearAutoencoder", "MagNetReformer", "build_denoiser"]


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Architecture of a dense denoiser. Sizes in pixels unless said otherwise."""

    network: Literal["linear", "dense", "dncnn", "magnet"] = "dense"
    channels: int = 1
    """Image channels C."""
    width: int = 64
    """Hidden channels of dense, dncnn and magnet."""
    depth: int = 3
    """Residual blocks of dense; convolutions between the first and the last of dncnn."""
    units: int = 96
    """Code channels of linear and dense."""
    atom: int = 6
    """Side of an atom of linear and dense."""
    stride: int = 2
    """Of the code of linear and dense."""

    def __post_init__(self) -> None:
        if self.network not in _NETWORKS:
            raise ValueError(f"DenoiserConfig.network must be one of {', '.join(_NETWORKS)}, got {self.network!r}")
        with_atoms = self.network in ("linear", "dense")
        if with_atoms and (self.atom < self.stride or (self.atom - self.stride) % 2):
            raise ValueError(
                "DenoiserConfig.atom must be at least the stride and differ from it by an even number, got atom "
                f"{self.atom} with stride {self.stride}"
            )


class Denoiser(nn.Module, ABC):
    """What they share: ``relaxed`` is the network; forward clips what it gives to [0, 1]."""

    @abstractmethod
    def relaxed(self, images: Tensor) -> Tensor:
        """Without the final clip: a differentiable stand-in whose gradient does not vanish at 0 and 1."""

    def forward(self, images: Tensor) -> Tensor:
        """Denoise: images (N, C, H, W) in [0, 1] to the same shape and range."""
        return self.relaxed(images).clamp(0, 1)


class LinearAutoencoder(Denoiser):
    """One strided convolution to the code and one transposed convolution back, with nothing in between: locally a projection onto
    few directions, as by PCA (Baldi & Hornik 1989)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        overlap = (config.atom - config.stride) // 2
        self.stride = config.stride
        self.encoder = nn.Conv2d(config.channels, config.units, config.atom, config.stride, overlap)
        self.decoder = nn.ConvTranspose2d(config.units, config.channels, config.atom, config.stride, overlap)

    def relaxed(self, images: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        rebuilt: Tensor = self.decoder(self.encoder(padded))
        return rebuilt[..., :height, :width]


class DenseAutoencoder(Denoiser):
    """The DSAE of the same size without its threshold: every unit of the code may be active, with either sign."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        sizes = DSAEConfig(
            channels=config.channels,
            units=config.units,
            atom=config.atom,
            stride=config.stride,
            width=config.width,
            depth=config.depth,
        )
        self.network = DenoisingSparseAutoencoder(sizes)
        self.network.raw_threshold.requires_grad_(False)  # not used

    def relaxed(self, images: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        return self.network.synthesise(self.network.analyse(images), size=(images.shape[-2], images.shape[-1]))


class DnCNN(Denoiser):
    """Residual learning of noise (Zhang, Zuo, Chen, Meng & Zhang 2017): x − R(x), R of 3×3 convolutions with batch
    normalisation."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(config.channels, config.width, 3, padding=1), nn.ReLU()]
        for _ in range(config.depth):
            layers += [nn.Conv2d(config.width, config.width, 3, padding=1, bias=False), nn.BatchNorm2d(config.width), nn.ReLU()]
        self.residual = nn.Sequential(*layers, nn.Conv2d(config.width, config.channels, 3, padding=1))

    def relaxed(self, images: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        noise: Tensor = self.residual(images)
        return images - noise


class MagNetReformer(Denoiser):
    """The reformer of MagNet (Meng & Chen 2017, table 3, MNIST): 3×3 convolutions with sigmoids about a pooling and an upsampling
    by 2. Trained by its authors on images with Gaussian noise of 0.1, without any attack; our recipes take up to 0.1."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.before = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(config.width, config.width, 3, padding=1) for _ in range(3)])
        self.after = nn.Conv2d(config.width, config.channels, 3, padding=1)

    def relaxed(self, images: Tensor) -> Tensor:
        """See :class:`Denoiser`; the last sigmoid keeps it in [0, 1] anyway."""
        x = F.avg_pool2d(torch.sigmoid(self.before(images)), 2, ceil_mode=True)
        x = torch.sigmoid(self.inner[1](torch.sigmoid(self.inner[0](x))))
        x = F.interpolate(x, size=images.shape[-2:])
        x = torch.sigmoid(self.inner[2](x))
        return torch.sigmoid(self.after(x))


_NETWORKS: dict[str, Callable[[DenoiserConfig], Denoiser]] = {
    "linear": LinearAutoencoder,
    "dense": DenseAutoencoder,
    "dncnn": DnCNN,
    "magnet": MagNetReformer,
}


def build_denoiser(config: DenoiserConfig) -> Denoiser:
    """The network with random weights.

    >>> build_denoiser(DenoiserConfig(network="dncnn", width=4, depth=1))(torch.rand(2, 1, 9, 7)).shape
    torch.Size([2, 1, 9, 7])
    """
    return _NETWORKS[config.network](config)
