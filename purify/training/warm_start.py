"""What a training begins with: random weights, or those of another."""

from __future__ import annotations

from dataclasses import replace

from torchvision.models.resnet import BasicBlock

from purify.architecture import ClassifierConfig, build_classifier
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.checkpoint import load, load_classifier, read_card
from purify.normalization import Normalize, NormalizedClassifier
from purify.training.recipes import ClassifierRecipe, PurifierRecipe, RobustClassifierRecipe, RobustRecipe

__all__ = ["first_classifier", "first_weights"]


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


def first_classifier(recipe: ClassifierRecipe) -> NormalizedClassifier:
    """A new classifier of the recipe's architecture and normalisation, with the weights of its ``warm_start`` where it names one.

    A ``resnet18`` may have more residual blocks than that. Each further one begins as a copy of the block before it, half as
    strong (stacking, Gong et al. 2019): the deeper network reads images nearly as the other did, and all of it learns at once.
    Blocks that began as the identity (a last normalisation of zero) were that still after three epochs.

    Raises:
        ValueError: that one has another architecture or normalisation.
        CheckpointError: it cannot be loaded, or is no classifier.
    """
    classifier = NormalizedClassifier(build_classifier(recipe.architecture), Normalize(recipe.mean, recipe.std))
    if isinstance(recipe, RobustClassifierRecipe) and recipe.warm_start:
        before, card = load_classifier(recipe.warm_start), read_card(recipe.warm_start)
        blocks = tuple(card.architecture.get("blocks", ()))  # a list in JSON
        theirs = (ClassifierConfig(**{**card.architecture, "blocks": blocks}), tuple(card.mean), tuple(card.std))
        ours = (recipe.architecture, recipe.mean, recipe.std)
        if theirs[1:] != ours[1:] or not _as_deep(recipe.architecture, theirs[0]):
            raise ValueError(
                f"recipe {recipe.name}: warm_start {recipe.warm_start} has another architecture or normalisation: {theirs}, not "
                f"{ours}"
            )
        weights = before.state_dict()
        for name, block in classifier.named_modules():
            if isinstance(block, BasicBlock) and f"{name}.bn2.weight" not in weights:
                stage, _, number = name.rpartition(".")
                for key in block.state_dict():
                    strength = 0.5 if key in ("bn2.weight", "bn2.bias") else 1
                    weights[f"{name}.{key}"] = weights[f"{stage}.{int(number) - 1}.{key}"] * strength
        classifier.load_state_dict(weights)
    return classifier


def _as_deep(config: ClassifierConfig, before: ClassifierConfig) -> bool:
    """Whether a network is another, perhaps with further residual blocks behind the second of a stage (the first may differ)."""
    pairs = zip(config.blocks or (2, 2, 2, 2), before.blocks or (2, 2, 2, 2), strict=True)
    return replace(config, blocks=before.blocks) == before and all(ours == theirs or ours > theirs > 1 for ours, theirs in pairs)
