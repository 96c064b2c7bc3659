"""The classifiers that purifiers learn in front of: nothing in them is trained."""

from __future__ import annotations

import torchvision
from torch import nn

from purify.checkpoint import load_classifier
from purify.compatibility import check_classifier_fits
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
    classifier = load_classifier(name).requires_grad_(False)
    check_classifier_fits(classifier, training, f"recipe {recipe}: classifier {name}")
    return classifier
