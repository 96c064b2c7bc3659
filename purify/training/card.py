"""What the card of a freshly trained model says, but for what the loop adds."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from purify.checkpoint import Card
from purify.cost import count_macs, count_parameters
from purify.training.recipes import ClassifierRecipe, DenoiserRecipe, PurifierRecipe, RobustRecipe

__all__ = ["describe"]


def describe(
    model: nn.Module,
    recipe: ClassifierRecipe | PurifierRecipe | DenoiserRecipe | RobustRecipe,
    kind: Literal["purifier", "classifier", "denoiser"],
    shape: tuple[int, int, int],
) -> Card:
    """Name, kind, architecture, normalisation, data set and cost of a model for images of ``shape`` (C, H, W)."""
    return Card(
        name=recipe.name,
        kind=kind,
        architecture=dataclasses.asdict(recipe.architecture),
        image_shape=shape,
        mean=recipe.mean if isinstance(recipe, ClassifierRecipe) else (),
        std=recipe.std if isinstance(recipe, ClassifierRecipe) else (),
        dataset=recipe.dataset,
        figures={"macs": count_macs(model, shape), "parameters": count_parameters(model)},
    )
