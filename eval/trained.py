"""Baselines that must be trained: at their first use, into the cache, resumable; from then on loaded."""

from __future__ import annotations

from torch import nn

from purify.checkpoint import load_classifier, load_denoiser
from purify.data import ImageSet, cache_folder
from purify.training.catalogue import find_recipe
from purify.training.loop import train
from purify.training.tasks import make_task

__all__ = ["TRAINED", "trained_baseline"]

TRAINED = ("linear", "dense", "dncnn", "magnet", "robust")
"""Names for :func:`trained_baseline`; ``purify train mnist-dense`` trains one without a table. ``robust`` is no purifier but a
classifier trained adversarially, with as many operations as purifier and classifier together: the upper reference."""


def trained_baseline(name: str, data: str, training: ImageSet, validation: ImageSet, *, quiet: bool = False) -> nn.Module:
    """A dense denoiser, or for ``robust`` a classifier, for a data set, by the recipe ``<data>-<name>``.

    Raises:
        ValueError: no such recipe.
    """
    recipe = find_recipe(f"{data}-{name}")
    folder = cache_folder() / "baselines" / recipe.name
    path = folder / f"{recipe.name}.safetensors"
    if not path.exists():
        path = train(make_task(recipe, training, validation), recipe, training, folder, quiet=quiet)
    return load_classifier(path) if name == "robust" else load_denoiser(path)
