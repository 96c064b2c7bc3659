"""Does a classifier belong to a data set? Asked before hours are spent on figures that mean nothing."""

from __future__ import annotations

import torch
from torch import nn

from purify.data import ImageSet

__all__ = ["check_classifier_fits"]


@torch.no_grad()
def check_classifier_fits(classifier: nn.Module, data: ImageSet, name: str) -> None:
    """Show the classifier one black image of the data set's size, and count what it says.

    Args:
        classifier: in eval mode, images (N, C, H, W) in [0, 1] to logits (N, classes).
        data: the images that it is meant for, whose labels are numbers of its classes.
        name: what to call the classifier in the message.

    Raises:
        ValueError: it does not take such images, or knows another number of classes.
    """
    channels, height, width = data.image_shape
    place = next((value.device for value in classifier.parameters()), torch.device("cpu"))
    try:
        logits = classifier(torch.zeros(1, channels, height, width, device=place))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{name} does not take the images of {data.name}, {channels} channels of {height}×{width}: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    known, there = logits.shape[-1], len(data.classes)
    if known != there:
        raise ValueError(
            f"{name} knows {known} classes, data set {data.name} has {there}; where a folder lacks some of the classifier's "
            "classes, name them all in its order with --class-list FILE"
        )
