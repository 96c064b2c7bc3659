"""Put a purifier in front of a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify.checkpoint import load
from purify.images import check_images
from purify.normalization import Normalize, NormalizedClassifier, PerChannel, built_in_normalisation
from purify.preprocessing import Picture, Preprocessing, preprocessing_of
from purify.training_mode import layers_in_training

__all__ = ["PurifiedClassifier", "wrap"]


class PurifiedClassifier(nn.Module):
    """purifier → normalisation → classifier, as one differentiable module from [0, 1] images to logits.

    Made by :func:`wrap`. Gradients flow through all of it. ``validate=False`` spares the check of the input.
    """

    def __init__(
        self,
        model: nn.Module,
        purifier: nn.Module,
        normalize: nn.Module | None,
        validate: bool = True,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = NormalizedClassifier(model, normalize)
        self.validate = validate
        self.preprocessing = preprocessing
        self.training = model.training  # the parts keep the mode they came in
        if model.training:
            warnings.warn(
                "the wrapped model is in training mode (batch statistics, dropout): call model.eval() before an evaluation",
                UserWarning,
                stacklevel=3,
            )
        elif layers := layers_in_training(self):
            warnings.warn(
                f"these layers are in training mode (batch statistics, dropout): {', '.join(layers[:3])}; call eval() on what "
                "you wrap before an evaluation",
                UserWarning,
                stacklevel=3,
            )

    def forward(self, images: Tensor) -> Tensor:
        """Purify and classify: images (N, C, H, W) in [0, 1] to logits (N, classes).

        Raises:
            TypeError, ValueError: see :func:`purify.images.check_images`; or purifier, classifier and images differ in dtype or
                device.
        """
        if not self.validate or torch.compiler.is_compiling():
            return self.undefended(self.purify(images))
        try:
            return self.undefended(self.purify(images))
        except RuntimeError as error:
            if apart := self._apart():
                raise TypeError(apart) from error
            raise

    def purify(self, images: Tensor) -> Tensor:
        """The purified images (N, C, H, W) in [0, 1], as the classifier gets them before its normalisation.

        Raises:
            TypeError, ValueError: see :func:`purify.images.check_images`.
        """
        if self.validate and not torch.compiler.is_compiling():
            check_images(images)
            self._check_dtype(images)
        purified: Tensor = self.purifier(images)
        if self.validate and not torch.compiler.is_compiling() and purified.shape != images.shape:
            raise ValueError(
                f"the purifier made images {tuple(purified.shape)} of images {tuple(images.shape)}: expected no change"
            )
        return purified

    def undefended(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the bare classifier for images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(images)
        return logits

    def preprocess(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Pictures of any size as the classifier's weights want them: ``defended(defended.preprocess(picture))``.

        They are resized and cropped by the weights' own transform (interpolation, antialiasing), without its normalisation, which
        happens after the purifier.

        Args:
            pictures: a PIL image, a uint8 tensor (C, H, W) or (N, C, H, W) (or a float one in [0, 1]), the path of a file, or a
                list of these, of any sizes; kinds of pictures are dealt with as :func:`purify.picture.plain_picture` says.

        Returns:
            Images (N, C, H, W) in [0, 1], on the device and in the dtype of this module.

        Raises:
            ValueError: no ``weights`` were given to :func:`wrap`; or as for :class:`purify.preprocessing.Preprocessing`.
            TypeError: something else than pictures.
        """
        if self.preprocessing is None:
            raise ValueError(
                "this classifier was wrapped without weights, so nothing says how its pictures are resized and cropped: "
                "use wrap(model, purifier, weights=…), or pass images (N, C, H, W) in [0, 1] of the right size"
            )
        images = self.preprocessing(pictures)
        own = self._own(images)
        return images.to(own.device, own.dtype)

    def _own(self, images: Tensor) -> Tensor:
        """A floating tensor on this module's device and in its dtype; the images themselves where there are no parameters."""
        return next((p for p in self.parameters() if p.is_floating_point()), images)

    def _check_dtype(self, images: Tensor) -> None:
        own = self._own(images).dtype
        if own != images.dtype and not torch.is_autocast_enabled(images.device.type):
            said = f"the images are {images.dtype} and the model is {own}; convert one of them: images.to({own})"
            raise TypeError(self._apart() or said)

    def _apart(self) -> str:
        """In words, where purifier and classifier differ in dtype or device and so cannot work on the same images."""
        purifier, classifier = (
            next((f"{p.dtype} on {p.device}" for p in part.parameters() if p.is_floating_point()), None)
            for part in (self.purifier, self.classifier)
        )
        if purifier is None or classifier is None or purifier == classifier:
            return ""
        return (
            f"the purifier is {purifier} and the classifier {classifier}; bring them together: "
            "defended.to(device, dtype), and the images likewise"
        )

    def extra_repr(self) -> str:
        """What a reader must know and the list of parts does not say."""
        return "normalisation: none given" if isinstance(self.classifier.normalize, nn.Identity) else ""


def wrap(
    model: nn.Module,
    purifier: nn.Module | str | Path,
    *,
    weights: Any = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    validate: bool = True,
) -> PurifiedClassifier:
    """Put ``purifier`` in front of ``model``: a module from images (N, C, H, W) in [0, 1] to logits.

    Neither module is copied or changed, and the training mode of both stays as it is.

    Args:
        model: any classifier that gives logits, or an object with ``.logits`` (transformers). Its normalisation comes from
            ``weights``, or ``mean`` and ``std``, or is inside it already.
        purifier: any module from images to images of the same shape, or the name or path of a checkpoint, which is then put on
            the model's device and takes its precision.
        weights: where normalisation and :meth:`PurifiedClassifier.preprocess` come from. For torchvision a member of a weights
            enum, or its full name such as ``"ResNet50_Weights.DEFAULT"``; for timm ``model.pretrained_cfg``; for transformers
            the image processor.
        mean: for each channel or one number for all, in units of [0, 1].
        std: likewise.
        validate: check each input (shape, dtype, range) and say what came instead.

    Warns:
        UserWarning: the normalisation that was given, or that none was, disagrees with what is seen of the model: it normalises
            inside already, its ``transform_input`` (inception_v3, googlenet) or ``pretrained_cfg`` (timm) says otherwise, or
            it is a model of torchvision or transformers and none was given.

    Raises:
        ValueError: ``mean`` without ``std`` (or the reverse), either of them beside ``weights``, weights that name no mean
            and std, or a mean outside [0, 1].

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> defended = wrap(model, nn.Identity(), mean=(0.5,), std=(0.5,))
    >>> defended(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if isinstance(purifier, (str, Path)):
        purifier = load(purifier)
        if (own := next((p for p in model.parameters() if p.is_floating_point()), None)) is not None:
            purifier = purifier.to(own.device, own.dtype)
    if not isinstance(purifier, nn.Module):
        raise TypeError(f"expected a purifier as a module, or as the name or path of a checkpoint, got {type(purifier).__name__}")
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
    if weights is not None and mean is not None:
        raise ValueError("give either weights or mean and std, not both")
    preprocessing = preprocessing_of(weights) if weights is not None else None
    if preprocessing is not None:
        mean, std = preprocessing.mean, preprocessing.std
    normalize = None if mean is None or std is None else Normalize(mean, std)
    for doubt in _doubts(model, normalize, preprocessing):
        warnings.warn(doubt, UserWarning, stacklevel=2)
    return PurifiedClassifier(model, purifier, normalize, validate, preprocessing)


_IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NEVER_NORMALISE = ("torchvision.models.", "transformers.")
"""Where models are at home that leave it to whoever prepares their images."""


def _doubts(model: nn.Module, normalize: Normalize | None, preprocessing: Preprocessing | None) -> Iterator[str]:
    """Where the model and what was said of its normalisation disagree, as far as can be seen."""
    inside = built_in_normalisation(model)
    if inside is not None and normalize is not None:
        yield (
            f"the images would be normalised twice: by {normalize!r}, as given, and by the model's own {inside}; "
            "wrap it without weights, mean and std, or wrap the part of it that takes normalised images"
        )
    transforms = getattr(model, "transform_input", None)  # torchvision's inception_v3 and googlenet, ImageNet's to their own
    if transforms is True and (normalize is None or not _same(normalize, _IMAGENET)):
        yield (
            f"the model's transform_input=True expects images with ImageNet's normalisation, {_IMAGENET!r}, and gets "
            f"{normalize or 'none'}; give its torchvision weights, or build it with transform_input=False"
        )
    elif normalize is None and inside is None and type(model).__module__.startswith(_NEVER_NORMALISE):
        yield (
            f"{type(model).__name__} of {type(model).__module__.partition('.')[0]} does not normalise its images, and no "
            "normalisation was given; give the weights or image processor that it came with as weights=…, or the mean= and std= "
            "that it was trained with: mean=(0, 0, 0) and std=(1, 1, 1) if it takes images in [0, 1]"
        )
    if transforms is False and preprocessing is not None and normalize is not None and _same(normalize, _IMAGENET):
        yield (
            "the weights of this model were trained with transform_input=True, and it has transform_input=False; "
            "set model.transform_input = True, or give mean and std if it was trained otherwise"
        )
    config = getattr(model, "pretrained_cfg", None)  # timm's
    if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
        own = Normalize(config["mean"], config["std"])
        if normalize is None and inside is None:
            yield (
                f"the model's pretrained_cfg says {own!r}, and no normalisation was given; give weights=model.pretrained_cfg, "
                "or mean=(0, 0, 0) and std=(1, 1, 1) if it takes images in [0, 1]"
            )
        elif preprocessing is not None and normalize is not None and not _same(normalize, own):
            yield (
                f"the weights say {normalize!r} and the model's pretrained_cfg says {own!r}; give weights=model.pretrained_cfg, "
                "or mean and std if you know better"
            )


def _same(one: Normalize, other: Normalize) -> bool:
    return repr(one) == repr(other)  # to four decimals
