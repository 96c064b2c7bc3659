"""The classifier that ``--model`` and ``--weights`` name, with what its weights say of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn

from purify.checkpoint import load_classifier, read_card
from purify.commands.data_options import DataOptions
from purify.data import ImageSet, Split
from purify.picture import picture_to_tensor
from purify.preprocessing import Preprocessing, preprocessing_of
from purify.pretrained import load_torchvision

__all__ = ["NamedClassifier", "named_classifier"]


@dataclass(frozen=True)
class NamedClassifier:
    """A classifier in eval mode, normalisation inside."""

    module: nn.Module
    """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
    image_shape: tuple[int, int, int]
    """(C, H, W) of the images that it was trained on."""
    preprocess: Preprocessing
    """Pictures of any size to such images."""
    categories: Sequence[str]
    """Names of the classes; empty where they are not known."""
    resize: int | None = None
    """Length of the short side of a folder's images before the crop to ``image_shape``; None: that of the crop."""

    def load(self, options: DataOptions, data: str, split: Split) -> ImageSet:
        """One split of a data set, grey images in three equal channels for a classifier of colour.

        A folder's images are resized and cropped to those that the classifier was trained on, if these are square, unless the
        options say how.
        """
        channels, height, width = self.image_shape
        if height == width and options.size is None and data.startswith("imagefolder:"):
            options = replace(options, size=height, resize=options.resize or self.resize)
        images = options.load(data, split)
        return images.with_channels(channels) if images.image_shape[0] == 1 else images


def named_classifier(model: str, weights: str = "", *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> NamedClassifier:
    """A checkpoint, or a torchvision classifier with weights.

    Args:
        model: name or path of a classifier's checkpoint; with ``weights`` the name of a torchvision classifier.
        weights: a state dict (``*.safetensors``, ``*.pt``), or the name of torchvision's own, such as ``DEFAULT``.
        mean: normalisation of the weights; empty: that of torchvision's own.
        std: see ``mean``.

    Raises:
        ValueError: a torchvision classifier without weights, a normalisation without them, or as for ``load_torchvision`` and
            ``load_classifier``.

    >>> named_classifier("digits-shufflenet").image_shape
    (1, 8, 8)
    """
    if not weights:
        if model in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(f"give the weights of torchvision's {model} with --weights: a file, or DEFAULT to download them")
        if mean or std:
            raise ValueError("--mean and --std go with the --weights of a torchvision classifier; a checkpoint has its own")
        shape = read_card(model).image_shape
        zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
        return NamedClassifier(load_classifier(model), shape, Preprocessing(zeros, ones, _Fit(*shape[1:])), ())
    module = load_torchvision(model, weights, mean=mean or None, std=std or None)
    shipped = torchvision.models.get_model_weights(model)
    chosen = shipped.__members__.get(weights) or next(iter(shipped))
    side = chosen.transforms().crop_size[0]
    short = max(side, *chosen.transforms().resize_size)
    return NamedClassifier(module, (3, side, side), preprocessing_of(chosen), chosen.meta["categories"], short)


@dataclass(frozen=True)
class _Fit:
    """Resize by the short side and crop in the centre, as image folders are."""

    height: int
    width: int

    def __call__(self, picture: Image.Image) -> Tensor:
        size = (self.width, self.height)
        return picture_to_tensor(picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.BICUBIC))
