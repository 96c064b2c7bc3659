"""Put a purifier in front of a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from purify.checkpoint import load
from purify.images import check_images
from purify.normalization import Normalize, NormalizedClassifier

__all__ = ["PurifiedClassifier", "wrap"]


class PurifiedClassifier(nn.Module):
    """purifier → normalisation → classifier, as one differentiable module from [0, 1] images to logits.

    Made by :func:`wrap`. Gradients flow through all of it. ``validate=False`` spares the check of the input.
    """

    def __init__(self, model: nn.Module, purifier: nn.Module, normalize: nn.Module | None, validate: bool = True) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = NormalizedClassifier(model, normalize)
        self.validate = validate
        self.training = model.training  # the parts keep the mode they came in
        if model.training:
            warnings.warn(
                "the wrapped model is in training mode (batch statistics, dropout): call model.eval() before an evaluation",
                UserWarning,
                stacklevel=3,
            )

    def forward(self, images: Tensor) -> Tensor:
        """Purify and classify: images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        return self.undefended(self.purify(images))

    def purify(self, images: Tensor) -> Tensor:
        """The purified images (N, C, H, W) in [0, 1], as the classifier gets them before its normalisation.

        Raises:
            TypeError, ValueError: see :func:`purify.images.check_images`.
        """
        if self.validate and not torch.compiler.is_compiling():
            check_images(images)
            self._check_dtype(images)
        purified: Tensor = self.purifier(images)
        return purified

    def undefended(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the bare classifier for images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(images)
        return logits

    def _check_dtype(self, images: Tensor) -> None:
        own = next((p.dtype for p in self.parameters() if p.is_floating_point()), images.dtype)
        if own != images.dtype and not torch.is_autocast_enabled(images.device.type):
            raise TypeError(f"the images are {images.dtype} and the model is {own}; convert one of them: images.to({own})")

    def extra_repr(self) -> str:
        """What a reader must know and the list of parts does not say."""
        return "normalisation: none given" if isinstance(self.classifier.normalize, nn.Identity) else ""


def wrap(
    model: nn.Module,
    purifier: nn.Module | str,
    *,
    weights: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    validate: bool = True,
) -> PurifiedClassifier:
    """Put ``purifier`` in front of ``model``: a module from images (N, C, H, W) in [0, 1] to logits.

    Neither module is copied or changed, and the training mode of both stays as it is.

    Args:
        model: any classifier; its normalisation comes from ``weights``, or ``mean`` and ``std``, or is inside it already.
        purifier: any module from images to images of the same shape, or the name or path of a checkpoint.
        weights: a member of a torchvision weights enum, or its full name such as ``"ResNet50_Weights.DEFAULT"``.
        mean: for each channel, in units of [0, 1].
        std: for each channel, in units of [0, 1].
        validate: check each input (shape, dtype, range) and say what came instead.

    Raises:
        ValueError: ``mean`` without ``std`` (or the reverse), either of them beside ``weights``, or weights whose
            transform names no mean and std.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> defended = wrap(model, nn.Identity(), mean=(0.5,), std=(0.5,))
    >>> defended(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if isinstance(purifier, str):
        purifier = load(purifier)
    return PurifiedClassifier(model, purifier, _normalisation(weights, mean, std), validate)


def _normalisation(weights: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalize | None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
    if weights is None:
        return None if mean is None or std is None else Normalize(mean, std)
    if mean is not None:
        raise ValueError("give either weights or mean and std, not both")
    if isinstance(weights, str):
        weights = torchvision.models.get_weight(weights)
    transform = weights.transforms() if hasattr(weights, "transforms") else None
    if transform is None or not hasattr(transform, "mean") or not hasattr(transform, "std"):
        raise ValueError(f"expected a member of a torchvision weights enum, got {weights!r}; or give mean and std")
    return Normalize(transform.mean, transform.std)
