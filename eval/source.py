"""Where the judge takes images from, a batch at a time, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from purify.images import check_images, check_labels

__all__ = ["ImageSource", "TensorImages", "fingerprint_images", "fingerprint_model"]


class ImageSource(Protocol):
    """Labelled images by number; ``purify.load_dataset`` gives one."""

    def __len__(self) -> int:
        """How many."""
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) in [0, 1] and labels (n,)."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images that are in memory already.

    Raises:
        TypeError, ValueError: see ``purify.images.check_images`` and ``check_labels``; or no images at all.
    """

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)."""

    def __post_init__(self) -> None:
        check_images(self.images)
        check_labels(self.labels, self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at ``indices``."""
        return self.images[indices], self.labels[indices]


def fingerprint_images(source: ImageSource, batch_size: int = 500) -> str:
    """A digest of all images and labels: two runs with the same one were shown the same."""
    digest = hashlib.sha256()
    for start in range(0, len(source), batch_size):
        images, labels = source.batch(torch.arange(start, min(start + batch_size, len(source))))
        digest.update(str(tuple(images.shape)).encode())
        digest.update(images.detach().cpu().contiguous().numpy().tobytes())
        digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_model(model: Callable[[Tensor], Tensor]) -> str:
    """A digest of a module's layers and weights, or of the name of a function (whose inside is not seen).

    >>> fingerprint_model(nn.Linear(2, 2)) == fingerprint_model(nn.Linear(2, 2))
    False
    """
    if not isinstance(model, nn.Module):
        return f"function {getattr(model, '__qualname__', type(model).__qualname__)}"
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
