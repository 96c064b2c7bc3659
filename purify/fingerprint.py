"""Digests of images and models: has a run that goes on the same ones as when it was begun?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from purify.data import ImageSource

__all__ = ["fingerprint_images", "fingerprint_model"]


def fingerprint_images(source: ImageSource, batch_size: int = 500, at_most: int | None = None) -> str:
    """A digest of images (n, C, H, W) and labels (n,): two runs with the same one were shown the same.

    Args:
        source: gives the images.
        batch_size: read at once.
        at_most: of a larger number of images so many, evenly spaced; None: all.

    >>> from purify import load_dataset
    >>> digits = load_dataset("digits", "test")
    >>> fingerprint_images(digits) == fingerprint_images(digits, at_most=450), len(fingerprint_images(digits, at_most=10))
    (True, 16)
    """
    digest = hashlib.sha256()
    count = len(source) if at_most is None else min(at_most, len(source))
    chosen = torch.arange(count) * len(source) // max(count, 1)
    for rows in torch.split(chosen, batch_size):
        images, labels = source.batch(rows)
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
