"""What a table needs beside the shipped checkpoints: trained at its first use, into the cache, resumable; from then on loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from purify.checkpoint import list_checkpoints, load_classifier, load_denoiser
from purify.data import ImageSet, Split, cache_folder
from purify.training.catalogue import find_recipe, list_recipes
from purify.training.loop import begun_with, train
from purify.training.recipes import ClassifierRecipe, Recipe
from purify.training.tasks import make_task

__all__ = ["TRAINED", "trained_baseline", "trained_by", "trained_classifier"]

TRAINED = ("linear", "dense", "dncnn", "magnet", "robust", "retrained")
"""Names for :func:`trained_baseline`; ``purify train mnist-dense`` trains one without a table. The last two are no
purifiers but classifiers trained adversarially: ``robust`` has as many operations as purifier and classifier together;
``retrained`` is the classifier itself, trained on against attacks."""


def trained_baseline(name: str, data: str, training: ImageSet, validation: ImageSet, *, quiet: bool = False) -> nn.Module:
    """A dense denoiser, or for ``robust`` and ``retrained`` a classifier, for a data set, by the recipe ``<data>-<name>``.

    Raises:
        ValueError: no such recipe.
    """
    recipe = find_recipe(f"{data}-{name}")
    path = recipe.name if recipe.name in list_checkpoints() else trained_by(recipe, training, validation, quiet=quiet)
    return load_classifier(path) if isinstance(recipe, ClassifierRecipe) else load_denoiser(path)


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
    return load_classifier(
        trained_by(recipe, load_split(recipe.dataset, "train"), load_split(recipe.dataset, "val"), quiet=quiet)
    )


def trained_by(recipe: Recipe, training: ImageSet, validation: ImageSet, *, quiet: bool = False) -> Path:
    """The checkpoint that a recipe makes of these images, in the cache; trained if it is not there. Another recipe of that name,
    other images, another classifier in front of which it learns or other weights to begin with make another one."""
    if isinstance(recipe, ClassifierRecipe) and not recipe.held_out:
        training = training.joined(validation)
    task = make_task(recipe, training, validation)
    made_of = json.dumps([dataclasses.asdict(recipe), begun_with(task, recipe, training)], sort_keys=True)
    folder = cache_folder() / "baselines" / f"{recipe.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    path = folder / f"{recipe.name}.safetensors"
    if path.exists() and path.with_suffix(".json").exists():
        return path
    return train(task, recipe, training, folder, quiet=quiet)
