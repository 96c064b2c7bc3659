"""What a training begins with: another's weights, and which of them are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import purify
from purify.training.catalogue import find_recipe
from purify.training.recipes import RobustClassifierRecipe
from purify.training.tasks import make_task


def test_a_denoising_purifier_may_begin_with_another() -> None:
    training, validation = (purify.load_dataset("digits", split) for split in ("train", "val"))  # type: ignore[arg-type]
    before = purify.load("digits-dsae")
    recipe = dataclasses.replace(find_recipe("digits-dsae"), name="further", warm_start="digits-dsae")
    model = make_task(recipe, training, validation).model
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.state_dict().items())
    other = dataclasses.replace(recipe, architecture=dataclasses.replace(before.config, width=8))
    with pytest.raises(ValueError, match="recipe further: warm_start digits-dsae has another architecture"):
        make_task(other, training, validation)


def test_a_classifier_that_is_trained_on_begins_as_it_was() -> None:
    recipe, images = find_recipe("digits-retrained"), purify.load_dataset("digits", "val")
    assert isinstance(recipe, RobustClassifierRecipe)
    task, (x, _) = make_task(recipe, images, images), images.batch(slice(8))
    torch.testing.assert_close(task.model.eval()(x), purify.load_classifier("digits-shufflenet")(x))
    for other in ({"mean": (0.5,)}, {"architecture": dataclasses.replace(recipe.architecture, max_pool=True)}):
        with pytest.raises(ValueError, match="warm_start digits-shufflenet has another architecture or normalisation"):
            make_task(dataclasses.replace(recipe, **other), images, images)
