"""What a classifier's own weights say of its pictures: size, crop, interpolation, mean and standard deviation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import convert_image_dtype

from purify.images import check_images, describe
from purify.picture import plain_picture, read_picture

__all__ = ["Picture", "Preprocessing", "preprocessing_of"]

Picture = Image.Image | Tensor | str | Path
"""A PIL image, a uint8 tensor (C, H, W) or (N, C, H, W) (or a float one in [0, 1]), or the path of a file."""

_WANTED = "expected a PIL image, a tensor (C, H, W) or (N, C, H, W) of bytes or in [0, 1], a path, or a list of these"

_SECOND_THOUGHTS = ("include_top", "rescale_offset")
"""Options of some image processors of transformers (EfficientNet's) that scale what was normalised once more."""


@dataclass(frozen=True)
class Preprocessing:
    """From pictures of any size to a batch in [0, 1] of the size that a classifier was trained for; normalisation is separate."""

    mean: tuple[float, ...]
    """For each channel, in units of [0, 1]."""
    std: tuple[float, ...]
    resize: Callable[[Any], Tensor]
    """One PIL image, or tensor (N, C, H, W), to what the classifier wants, as bytes or in [0, 1], not normalised."""

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """One picture or several, of any sizes, to (N, C, H, W) in [0, 1], float32.

        PIL images and files become grey or RGB first, as :func:`purify.picture.plain_picture` says, and tensors of one channel
        are repeated where the classifier takes three.

        Raises:
            TypeError: something else than a picture.
            ValueError: an empty list, a tensor of another shape or range, or a file that cannot be read.
        """
        if isinstance(pictures, (Image.Image, Tensor, str, Path)):
            return self._one(pictures)
        if not isinstance(pictures, Sequence):
            raise TypeError(f"{_WANTED}, got {_name(pictures)}")
        if not pictures:
            raise ValueError(f"{_WANTED}, got an empty list")
        return torch.cat([self._one(picture) for picture in pictures])

    def _one(self, picture: Picture) -> Tensor:
        channels = len(self.mean)
        resized: Tensor = self.resize(self._tensor(picture) if isinstance(picture, Tensor) else self._picture(picture))
        batch: Tensor = convert_image_dtype(resized if resized.ndim == 4 else resized[None], torch.float32)
        batch = batch.clamp(0, 1)  # bicubic interpolation of floats overshoots
        check_images(batch, channels)
        return batch

    def _picture(self, picture: Any) -> Image.Image:
        if isinstance(picture, (str, Path)):
            picture = read_picture(picture)
        if not isinstance(picture, Image.Image):
            raise TypeError(f"{_WANTED}, got {_name(picture)}")
        return plain_picture(picture).convert("L" if len(self.mean) == 1 else "RGB")

    def _tensor(self, images: Tensor) -> Tensor:
        channels = len(self.mean)
        batch = images[None] if images.ndim == 3 else images
        if batch.ndim != 4 or batch.shape[1] not in (1, channels) or not batch.numel():
            raise ValueError(f"expected a tensor ({channels}, H, W) or (N, {channels}, H, W), got {describe(images)}")
        if batch.dtype != torch.uint8:
            check_images(batch)
        return batch.expand(-1, channels, -1, -1)


def preprocessing_of(weights: Any) -> Preprocessing:
    """Read the preprocessing off what comes with a classifier's weights.

    Args:
        weights: a member of a torchvision weights enum, or its full name such as ``"ResNet50_Weights.DEFAULT"``; the
            ``pretrained_cfg`` of a timm model; or an image processor of transformers.

    Raises:
        ValueError: anything else, or one that names no mean and std.

    >>> preprocess = preprocessing_of("SqueezeNet1_0_Weights.DEFAULT")
    >>> preprocess(Image.new("RGB", (500, 300))).shape
    torch.Size([1, 3, 224, 224])
    """
    if isinstance(weights, str):
        try:
            weights = torchvision.models.get_weight(weights)
        except KeyError as error:
            raise ValueError(f"torchvision has no weights {weights}") from error
    if hasattr(weights, "transforms"):
        return _of_torchvision(weights)
    if hasattr(weights, "image_mean") and hasattr(weights, "image_std"):
        return _of_processor(weights)
    config = dataclasses.asdict(weights) if dataclasses.is_dataclass(weights) and not isinstance(weights, type) else weights
    if isinstance(config, Mapping) and {"mean", "std", "input_size"} <= config.keys():
        return _of_timm(config)
    raise ValueError(
        f"expected a member of a torchvision weights enum, a timm model's pretrained_cfg or an image processor of transformers, "
        f"got {weights!r}; or give mean and std"
    )


def _of_torchvision(weights: Any) -> Preprocessing:
    transform = weights.transforms()
    if not hasattr(transform, "mean") or not hasattr(transform, "std"):
        raise ValueError(f"the transform of {weights!r} names no mean and std, so it is none of a classifier; give mean and std")
    mean, std = tuple(transform.mean), tuple(transform.std)
    transform.mean, transform.std = [0.0] * len(mean), [1.0] * len(std)  # the rest is torchvision's own, step by step
    return Preprocessing(mean, std, transform)


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    from timm.data import create_transform, resolve_data_config  # who has such a configuration has timm

    resolved = resolve_data_config(pretrained_cfg=dict(config))
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), create_transform(**resolved, normalize=False))


def _of_processor(processor: Any) -> Preprocessing:
    said = {name: getattr(processor, name, None) for name in ("do_rescale", "rescale_factor", "do_normalize", *_SECOND_THOUGHTS)}
    plain = said["do_rescale"] and said["do_normalize"] and math.isclose(said["rescale_factor"] or 0, 1 / 255)
    if not plain or any(said[name] for name in _SECOND_THOUGHTS):
        raise ValueError(f"{_name(processor)} does more or less than divide by 255 and normalise: {said}; give mean and std")
    return Preprocessing(tuple(processor.image_mean), tuple(processor.image_std), _ProcessorResize(processor))


@dataclass(frozen=True)
class _ProcessorResize:
    """An image processor of transformers without its normalisation. A class, so that it can be pickled."""

    processor: Any

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        scaled = isinstance(picture, Tensor) and picture.is_floating_point()  # by then in [0, 1] already
        options = {"do_rescale": False} if scaled else {}
        batch: Tensor = self.processor(images=picture, do_normalize=False, return_tensors="pt", **options)["pixel_values"]
        return batch


def _name(thing: Any) -> str:
    return type(thing).__name__
