"""Normalisation belongs inside the classifier, after the purifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalize", "NormalizedClassifier"]


class Normalize(nn.Module):
    """(x − mean) / std for each channel, on the input's device and in its dtype; images (N, C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"expected one mean and one std for each channel, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"expected std above 0, got {tuple(std)}")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise."""
        return (images - self.mean.to(images)) / self.std.to(images)

    def extra_repr(self) -> str:
        """Mean and std, as ``print`` shows them."""
        return f"mean={_short(self.mean)}, std={_short(self.std)}"


class NormalizedClassifier(nn.Module):
    """A classifier with its normalisation inside: images (N, C, H, W) in [0, 1] to logits (N, classes)."""

    def __init__(self, model: nn.Module, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize = normalize if normalize is not None else nn.Identity()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.model(self.normalize(images))
        return logits


def _short(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values.flatten())
