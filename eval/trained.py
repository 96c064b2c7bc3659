"""What a table needs beside the shipped checkpoints: trained at its first use, into the cache, resumable; from then on loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from purify.checkpoint import list_checkpoints, load_classifier, load_denoiser
from purify.data import ImageSet, Split, cache_folder
from purify.training.catalogue import find_recipe, list_recipes
from purify.training.loop import train
from purify.training.recipes import ClassifierRecipe, Recipe
from purify.training.tasks import make_task

__all__ = ["TRAINED", "trained_baseline", "trained_classifier"]

TRAINED = ("linear", "dense", "dncnn", "magnet", "robust")
"""Names for :func:`trained_baseline`; ``purify train mnist-dense`` trains one without a table. ``robust`` is no purifier but a
classifier trained adversarially, with as many operations as purifier and classifier together: the upper reference."""


def trained_baseline(name: str, data: str, training: ImageSet, validation: ImageSet, *, quiet: bool = False) -> nn.Module:
    """A dense denoiser, or for ``robust`` a classifier, for a data set, by the recipe ``<data>-<name>``.

    Raises:
        ValueError: no such recipe.
    """
    recipe = find_recipe(f"{data}-{name}")
    path = recipe.name if recipe.name in list_checkpoints() else _trained(recipe, training, validation, quiet)
    return load_classifier(path) if name == "robust" else load_denoiser(path)


def trained_classifier(name: str, load_split: Callable[[str, Split], ImageSet], *, quiet: bool = False) -> nn.Module:
    """A classifier by the name or path of its checkpoint, or by the name of a recipe that makes one.

    Args:
        name: of checkpoint or recipe.
        load_split: gives a split of the recipe's data set by both names.
        quiet: no progress bar of a training.

    Raises:
        CheckpointError: neither a checkpoint nor a recipe.
    """
    if name in list_checkpoints() or name not in list_recipes():
        return load_classifier(name)
    recipe = find_recipe(name)
    return load_classifier(_trained(recipe, load_split(recipe.dataset, "train"), load_split(recipe.dataset, "val"), quiet))


def _trained(recipe: Recipe, training: ImageSet, validation: ImageSet, quiet: bool) -> Path:
    """The checkpoint that a recipe makes, in the cache; trained if it is not there."""
    folder = cache_folder() / "baselines" / recipe.name
    path = folder / f"{recipe.name}.safetensors"
    if path.exists():
        return path
    if isinstance(recipe, ClassifierRecipe) and not recipe.held_out:
        training = training.joined(validation)
    return train(make_task(recipe, training, validation), recipe, training, folder, quiet=quiet)
