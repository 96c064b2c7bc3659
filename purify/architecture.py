"""Torchvision classifiers for images smaller or greyer than ImageNet's, described by a few words in a checkpoint's card."""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import Conv2dNormActivation

from purify.convolution import speed_up_small_maps

__all__ = ["ClassifierConfig", "build_classifier"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A torchvision model and what was changed in it."""

    model: str = "resnet18"
    """Name in ``torchvision.models``."""
    classes: int = 10
    channels: int = 3
    """Image channels that the first convolution takes."""
    small_stem: bool = False
    """First convolution 3×3 with stride 1, for images of about 64 pixels or fewer (resnets, shufflenets and mobilenets)."""
    max_pool: bool = True
    """Keep the max-pooling that follows the first convolution (mobilenets have none)."""
    blocks: tuple[int, ...] = ()
    """Residual blocks in each of the four stages of a resnet18, in the place of its two each; empty: its own."""


def build_classifier(config: ClassifierConfig) -> nn.Module:
    """Build the torchvision model with random weights: images (N, channels, H, W), normalised, to logits (N, classes).

    Raises:
        ValueError: torchvision has no such model, or its stem is not one that can be changed.

    >>> model = build_classifier(ClassifierConfig(model="resnet18", channels=1, small_stem=True))
    >>> model.conv1
    Conv2d(1, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if config.model not in known:
        raise ValueError(f"torchvision has no classifier {config.model!r}; known: {', '.join(known)}")
    if config.blocks:
        if config.model != "resnet18" or len(config.blocks) != 4:
            raise ValueError(f"blocks are four numbers for resnet18, got {config.blocks} for {config.model}")
        model: nn.Module = ResNet(BasicBlock, list(config.blocks), num_classes=config.classes)
    else:
        model = torchvision.models.get_model(config.model, weights=None, num_classes=config.classes)
    speed_up_small_maps(model)
    if config.channels == 3 and not config.small_stem and config.max_pool:
        return model
    stem = _stem(model)
    if stem is None:
        raise ValueError(
            f"do not know how to change the stem of {config.model!r}, only that of resnets, shufflenets and mobilenets"
        )
    holder, key, old = stem
    kernel, stride, padding = (3, 1, 1) if config.small_stem else (old.kernel_size, old.stride, old.padding)
    new = nn.Conv2d(config.channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(holder, key, new)
    if not config.max_pool:
        if not hasattr(model, "maxpool"):
            raise ValueError(f"{config.model} has no max-pooling to leave out: max_pool must be True")
        model.maxpool = nn.Identity()
    return model


def _stem(model: nn.Module) -> tuple[nn.Module, str, nn.Conv2d] | None:
    """The first convolution, the module that holds it, and under which name; None: it is not where we know it."""
    if hasattr(model, "maxpool"):  # resnet: conv1 is a convolution; shufflenet: a sequence that begins with one
        first = getattr(model, "conv1", None)
        holder, key = (first, "0") if isinstance(first, nn.Sequential) else (model, "conv1")
    else:  # mobilenet: features begin with a convolution and its normalisation
        features = getattr(model, "features", None)
        holder, key = (features[0], "0") if isinstance(features, nn.Sequential) else (model, "")
        if not isinstance(holder, Conv2dNormActivation):
            return None
    convolution = getattr(holder, key, None)
    return (holder, key, convolution) if isinstance(convolution, nn.Conv2d) else None
