"""The classifiers that purifiers learn in front of: nothing in them is trained."""

from __future__ import annotations

import torchvision
from torch import nn

from purify.checkpoint import load_classifier, read_card
from purify.data import ImageSet

__all__ = ["frozen_classifier"]


def frozen_classifier(name: str, recipe: str, training: ImageSet) -> nn.Module:
    """The classifier of a checkpoint, whose weights and batch statistics no training changes.

    Args:
        name: name or path of its checkpoint.
        recipe: name of the recipe that wants it, for messages.
        training: the images it will be shown.

    Raises:
        ValueError: it is one of torchvision's, or does not fit the images.
        CheckpointError: it cannot be loaded.
    """
    if name in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"recipe {recipe} was made in front of {name}, which is not shipped: give it with --model {name} --weights FILE"
        )
    card = read_card(name)
    channels, there = card.image_shape[0], training.image_shape[0]
    if channels != there:
        raise ValueError(f"recipe {recipe}: classifier {name} takes {channels} channels, data set {training.name} has {there}")
    known, there = card.architecture.get("classes"), len(training.classes)
    if known not in (None, there):
        raise ValueError(f"recipe {recipe}: classifier {name} knows {known} classes, data set {training.name} has {there}")
    return load_classifier(name).requires_grad_(False)
