"""Normalisation belongs inside the classifier, after the purifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Normalize", "NormalizedClassifier", "PerChannel", "built_in_normalisation", "logits_of"]

PerChannel: TypeAlias = float | Sequence[float] | np.ndarray[Any, Any] | Tensor
"""One number for each channel, or one for all."""


class Normalize(nn.Module):
    """(x − mean) / std for each channel, on the input's device and in its dtype; images (N, C, H, W).

    Args:
        mean: for each channel, in units of [0, 1]; one number serves any number of channels.
        std: likewise.

    Raises:
        ValueError: not one mean and one std for each channel, a mean outside [0, 1], or a std that is not above 0.

    >>> Normalize(0.5, 0.25)(torch.ones(1, 3, 1, 1)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(self, mean: PerChannel, std: PerChannel) -> None:
        super().__init__()
        means, deviations = (_flat(values) for values in (mean, std))
        if len(means) != len(deviations) or not len(means):
            raise ValueError(f"expected one mean and one std for each channel, got {len(means)} and {len(deviations)}")
        if not bool(((means >= 0) & (means <= 1)).all()):
            raise ValueError(f"expected means in [0, 1], the units of the images, got {_short(means)}: divide by 255")
        if not bool((deviations > 0).all()):
            raise ValueError(f"expected std above 0, got {_short(deviations)}")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", means.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", deviations.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise.

        Raises:
            TypeError: bytes, or other integers.
            ValueError: another number of channels.
        """
        if not images.is_floating_point():
            raise TypeError(f"expected float images in [0, 1], got {images.dtype}: divide bytes by 255")
        if len(self.mean) not in (1, images.shape[-3]):
            raise ValueError(f"expected images with {len(self.mean)} channels, got {images.shape[-3]}")
        return (images - self.mean.to(images)) / self.std.to(images)

    def extra_repr(self) -> str:
        """Mean and std, as ``print`` shows them."""
        return f"mean={_short(self.mean)}, std={_short(self.std)}"


class NormalizedClassifier(nn.Module):
    """A classifier with its normalisation inside: images (N, C, H, W) in [0, 1] to logits (N, classes).

    The model may give the logits themselves, or an object that has them as ``.logits`` (:func:`logits_of`).
    """

    def __init__(self, model: nn.Module, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize = normalize if normalize is not None else nn.Identity()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes).

        Raises:
            TypeError: the model gave neither a tensor nor an object with ``.logits``.
        """
        return logits_of(self.model(self.normalize(images)))


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier gave: a tensor as it is, or the tensor ``.logits`` of an object.

    Models of transformers give such objects, and so do torchvision's inception_v3 and googlenet in training mode.

    Raises:
        TypeError: neither; the message names what came.

    >>> logits_of({"scores": torch.zeros(1, 3)})
    Traceback (most recent call last):
    TypeError: expected logits (N, classes) from the classifier, ... got a dict with the keys 'scores'; ...
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        "expected logits (N, classes) from the classifier, as a tensor or as .logits of an object, got "
        f"{_in_words(output)}; wrap the model in a module whose forward returns the logits alone"
    )


def built_in_normalisation(model: nn.Module) -> str | None:
    """What normalises the images inside ``model`` already, in words, where that can be seen; else None.

    Seen is any layer with a ``mean`` and a ``std`` and neither parts nor parameters: :class:`Normalize`, torchvision's, kornia's.

    >>> built_in_normalisation(nn.Sequential(Normalize((0.5,), (0.5,)), nn.Flatten()))
    'Normalize(mean=(0.5,), std=(0.5,))'
    """
    for layer in model.modules():
        bare = not any(True for _ in layer.children()) and not any(True for _ in layer.parameters())
        if bare and hasattr(layer, "mean") and hasattr(layer, "std"):
            return repr(layer)
    return None


def _in_words(output: Any) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with the keys {', '.join(repr(key) for key in output)}"
    if isinstance(output, (tuple, list)):
        return f"a {name} of {len(output)} ({', '.join(type(part).__name__ for part in output)})"
    return f"a {name}"


def _flat(values: PerChannel) -> Tensor:
    return torch.as_tensor(values, dtype=torch.get_default_dtype(), device="cpu").detach().flatten().clone()


def _short(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values.flatten())
