"""What every part of the project may expect of a batch of images and labels, and the errors that say what came instead.

Images are float tensors (N, C, H, W) in [0, 1]; labels are integer tensors (N,). This file imports nothing but torch, so
that attacks, purifiers and the evaluation can all lean on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "check_images", "check_labels", "describe"]

TOLERANCE = 1e-4
"""How far a value may lie outside [0, 1] before it counts as a mistake rather than as rounding."""


def describe(images: Tensor) -> str:
    """Shape, dtype and value range of a tensor in words, for error messages.

    >>> describe(torch.tensor([[0.0, 2.5]]))
    'shape (1, 2), torch.float32, values from 0 to 2.5'
    """
    text = f"shape {tuple(images.shape)}, {images.dtype}"
    if images.numel() and not images.is_complex():
        low, high = (v.item() for v in torch.aminmax(images.detach()))
        text += f", values from {low:.4g} to {high:.4g}"
    return text


def check_images(images: Tensor, channels: int | None = None) -> None:
    """Raise unless ``images`` is a non-empty float batch (N, C, H, W) in [0, 1] without NaN or infinity.

    Args:
        images: what came.
        channels: the number of channels wanted; ``None`` accepts any.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong rank, empty, wrong channels, not finite, or outside [0, 1] by more than ``TOLERANCE``.
    """
    wanted = f"expected images (N, {channels if channels else 'C'}, H, W) in [0, 1]"
    if not isinstance(images, Tensor):
        raise TypeError(f"{wanted} as a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4:
        hint = "; a single image needs a batch axis: image[None]" if images.ndim == 3 else ""
        raise ValueError(f"{wanted}, got {describe(images)}{hint}")
    if not images.is_floating_point():
        raise TypeError(f"{wanted} with a floating dtype, got {describe(images)}; for bytes use images.float() / 255")
    if images.numel() == 0:
        raise ValueError(f"{wanted}, got an empty batch of shape {tuple(images.shape)}")
    if channels and images.shape[1] != channels:
        raise ValueError(f"{wanted}, got {images.shape[1]} channels: {describe(images)}")
    low, high = torch.aminmax(images.detach())
    if not bool(torch.isfinite(low) & torch.isfinite(high)):  # NaN and infinity both reach the minimum or the maximum
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{wanted}, got NaN or infinity in image{'s' if len(bad) > 1 else ''} {bad[:8]} of the batch")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        if high > 2 and low >= 0:
            hint = "bytes were not divided by 255"
        elif low < 0:
            hint = "the images look normalised already: normalisation belongs inside the classifier, after the purifier"
        else:
            hint = "clamp them to [0, 1]"
        raise ValueError(f"{wanted}, got {describe(images)}; {hint}")


def check_labels(labels: Tensor, images: Tensor, classes: int | None = None) -> None:
    """Raise unless ``labels`` is one integer (N,) for each image, on its device, in 0 … classes − 1.

    Raises:
        TypeError: not an integer tensor.
        ValueError: wrong shape, wrong device, or a label outside the classes.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"expected labels as an integer tensor (N,), got {came}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"expected {images.shape[0]} labels (N,) for as many images, got shape {tuple(labels.shape)}")
    if labels.device != images.device:
        raise ValueError(f"expected labels on {images.device} like the images, got labels on {labels.device}")
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or (classes is not None and high >= classes):
        known = f"0 … {classes - 1}" if classes is not None else "0 or more"
        raise ValueError(f"expected labels in {known}, got labels from {low} to {high}")
