"""What a run was begun with, beside its recipe: a run goes on only with the same pictures and the same classifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from purify.data import ImageSet

__all__ = ["identity"]

_LOOKED_AT = 64


def identity(data: ImageSet, classifiers: Iterable[nn.Module]) -> dict[str, str]:
    """A digest of each: the images' number, size and labels and some of the pictures; the classifiers' weights.

    >>> from purify import load_dataset
    >>> one, other = (identity(load_dataset("digits", split), []) for split in ("train", "test"))
    >>> one["training images"] == other["training images"], one["classifiers"] == other["classifiers"]
    (False, True)
    """
    pictures = hashlib.sha256(str((len(data), data.image_shape)).encode())
    pictures.update(data.labels.numpy().tobytes())
    pictures.update(_bytes(data.batch(torch.linspace(0, len(data) - 1, min(_LOOKED_AT, len(data))).long())[0]))
    models = hashlib.sha256()
    for classifier in classifiers:
        for name, value in classifier.state_dict().items():
            models.update(name.encode() + _bytes(value))
    return {"training images": pictures.hexdigest()[:12], "classifiers": models.hexdigest()[:12]}


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
