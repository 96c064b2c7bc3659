"""Orthonormal bases of image space, and their bands: principal components, cosines, and random directions as the null."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from purify.linear import principal_components

__all__ = ["Band", "Basis", "CosineBasis", "DirectionBasis", "bands", "pca_basis", "radial_frequency", "random_basis"]

COMPLETED = 4096
"""Up to so many pixel values a basis of fewer directions is completed to all of them."""


class Basis(ABC):
    """k orthonormal directions of image space (C, H, W), in a stated order."""

    name: str
    shape: tuple[int, int, int]
    order: Tensor
    """(k,) float64, by which they are ordered."""
    extremes: tuple[str, str]
    """What the first and the last of them are."""

    @abstractmethod
    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients (N, k) of images (N, C, H, W)."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Images (N, C, H, W) of coefficients (N, k)."""

    def direction(self, indices: Tensor) -> Tensor:
        """The directions (n, C, H, W) at ``indices`` (n,)."""
        return self.synthesise(torch.nn.functional.one_hot(indices, len(self)).float())

    def __len__(self) -> int:
        return len(self.order)

    @property
    def dimension(self) -> int:
        """D = C·H·W, of the space."""
        return int(np.prod(self.shape))


class DirectionBasis(Basis):
    """Directions held as a matrix (k, D)."""

    def __init__(
        self, name: str, directions: Tensor, shape: tuple[int, int, int], order: Tensor, extremes: tuple[str, str]
    ) -> None:
        self.name, self.directions, self.shape, self.order, self.extremes = name, directions, shape, order, extremes

    def analyse(self, images: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return images.flatten(1) @ self.directions.to(images).T

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return (coefficients @ self.directions.to(coefficients)).view(-1, *self.shape)


class CosineBasis(Basis):
    """All cosines of each channel (orthonormal DCT-II, by SciPy), lowest radial frequency first.

    >>> basis = CosineBasis((1, 4, 4))
    >>> images = torch.rand(2, 1, 4, 4)
    >>> torch.allclose(basis.synthesise(basis.analyse(images)), images, atol=1e-6)
    True
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.name, self.shape, self.extremes = "DCT", shape, ("low frequency", "high frequency")
        radius = radial_frequency(shape[1], shape[2]).flatten().repeat(shape[0])
        self.places = radius.argsort(stable=True)
        self.order = radius[self.places].double()

    def analyse(self, images: Tensor) -> Tensor:
        """See :class:`Basis`."""
        found = dctn(images.detach().cpu().numpy(), axes=(2, 3), norm="ortho")
        return torch.from_numpy(found).to(images).flatten(1)[:, self.places]

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """See :class:`Basis`."""
        flat = torch.empty_like(coefficients)
        flat[:, self.places] = coefficients
        values = flat.view(-1, *self.shape).detach().cpu().numpy()
        return torch.from_numpy(idctn(values, axes=(2, 3), norm="ortho")).to(coefficients)


def radial_frequency(height: int, width: int) -> Tensor:
    """Radial frequency (H, W) of each cosine, in cycles a pixel: √((i/2H)² + (j/2W)²), 0 … √½."""
    down, across = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    return (down[:, None].square() + across.square()).sqrt()


def pca_basis(images: Tensor, limit: int | None = None) -> DirectionBasis:
    """Principal directions of natural images (N, C, H, W), largest variance first.

    Fewer images than pixel values give at most N directions with variance; up to ``COMPLETED`` values the rest of the space is
    filled with orthonormal directions of variance 0, above it left out.

    Args:
        images: natural ones, apart from those that are attacked.
        limit: at most so many directions, for large images.
    """
    shape = (images.shape[1], images.shape[2], images.shape[3])
    found = principal_components(images.flatten(1), limit)
    real = found.variances > 1e-12 * found.variances[0]  # the last of N directions is rounding
    directions, variances = found.directions[real], found.variances[real]
    width = directions.shape[1]
    if len(directions) < width <= COMPLETED and limit is None:
        whole = torch.linalg.qr(torch.cat([directions.T, torch.eye(width, dtype=torch.float64)], 1))[0].T
        directions = torch.cat([directions, whole[len(directions) : width]])
        variances = torch.cat([variances, variances.new_zeros(width - len(variances))])
    return DirectionBasis("PCA", directions.float(), shape, variances, ("high variance", "low variance"))


def random_basis(shape: tuple[int, int, int], count: int, seed: int = 0) -> DirectionBasis:
    """``count`` random orthonormal directions: what any figure about a basis is to be held against."""
    draw = torch.randn(int(np.prod(shape)), count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.arange(count, dtype=torch.float64)
    return DirectionBasis("random", torch.linalg.qr(draw)[0].T.float(), shape, order, ("first", "last"))


@dataclass(frozen=True)
class Band:
    """A subspace of image space: the span of some directions of a basis, with or without all that the basis leaves out."""

    name: str
    basis: Basis
    start: int
    stop: int
    beyond: bool = False
    """Together with what is orthogonal to every direction of the basis."""

    @property
    def size(self) -> int:
        """Its dimension."""
        return self.stop - self.start + (self.basis.dimension - len(self.basis) if self.beyond else 0)

    def project(self, images: Tensor) -> Tensor:
        """The part of (N, C, H, W) that lies in the band."""
        coefficients = self.basis.analyse(images)
        inside = torch.zeros_like(coefficients)
        inside[:, self.start : self.stop] = coefficients[:, self.start : self.stop]
        part = self.basis.synthesise(inside)
        return part + (images - self.basis.synthesise(coefficients)) if self.beyond else part


def bands(basis: Basis) -> list[Band]:
    """Three bands of (nearly) equal dimension, in the basis' order, so that their figures can be compared.

    Of a basis that leaves directions out, the first two halve what there is, and the third is all the rest: ``size`` says so.
    """
    names = [f"{basis.name} {name}" for name in (basis.extremes[0], "middle", basis.extremes[1])]
    whole = len(basis) == basis.dimension
    cuts = [round(i * len(basis) / (3 if whole else 2)) for i in range(4 if whole else 3)]
    if not whole:
        cuts.append(len(basis))
    return [
        Band(name, basis, start, stop, beyond=not whole and name == names[2])
        for name, start, stop in zip(names, cuts, cuts[1:], strict=False)
    ]
