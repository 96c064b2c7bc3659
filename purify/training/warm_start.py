"""What a DSAE begins its training with: random weights, or those of another."""

from __future__ import annotations

from dataclasses import replace

from purify.autoencoder import DenoisingSparseAutoencoder
from purify.checkpoint import load
from purify.training.recipes import PurifierRecipe, RobustRecipe

__all__ = ["first_weights"]


def first_weights(recipe: PurifierRecipe | RobustRecipe) -> DenoisingSparseAutoencoder:
    """A new DSAE of the recipe's architecture, with the weights of ``recipe.warm_start`` where that names one.

    Raises:
        ValueError: that one has another architecture (``low_pass``, which has no weights, aside).
        CheckpointError: it cannot be loaded.
    """
    purifier = DenoisingSparseAutoencoder(recipe.architecture)
    if recipe.warm_start:
        before = load(recipe.warm_start)
        if replace(before.config, low_pass=recipe.architecture.low_pass) != recipe.architecture:
            raise ValueError(
                f"recipe {recipe.name}: warm_start {recipe.warm_start} has another architecture: {before.config}, not "
                f"{recipe.architecture}"
            )
        purifier.load_state_dict(before.state_dict())
    return purifier
