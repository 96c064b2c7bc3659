"""What a training begins with: another's weights, and which of them are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import accuracy
from torch.nn.functional import cross_entropy

import purify
from purify.checkpoint import read_card, save
from purify.cost import count_macs
from purify.data import ImageSet
from purify.training.catalogue import find_recipe
from purify.training.loop import train
from purify.training.recipes import RobustClassifierRecipe
from purify.training.tasks import make_task
from purify.training.warm_start import _as_deep, first_classifier


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


def test_a_deeper_classifier_begins_with_copies_that_learn_like_the_blocks_before_them() -> None:
    recipe = find_recipe("cifar10-robust")
    assert isinstance(recipe, RobustClassifierRecipe)
    before, deeper = purify.load_classifier(recipe.warm_start), first_classifier(recipe)
    assert len(list(deeper.parameters())) == len(list(before.parameters())) + 3 * 6
    x, labels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    cross_entropy(deeper(x), labels).backward()
    for number in (2, 3, 4):
        _, copied, copy = deeper.model.get_submodule(f"layer{number}")  # type: ignore[misc]
        torch.testing.assert_close(copy.conv1.weight, copied.conv1.weight)
        torch.testing.assert_close(copy.bn2.weight, 0.5 * copied.bn2.weight)
        assert copy.conv1.weight.grad.norm() > 0.1 * copied.conv1.weight.grad.norm()


def test_a_deeper_classifier_reads_nearly_as_the_other(mnist_test: ImageSet) -> None:
    recipe = find_recipe("mnist-robust")
    assert isinstance(recipe, RobustClassifierRecipe)
    x, labels = mnist_test.first(200).batch(slice(None))
    assert accuracy(first_classifier(recipe).eval(), x, labels) > 0.95


def test_a_warm_start_is_not_made_shallower_and_only_a_second_block_is_copied() -> None:
    recipe = find_recipe("cifar10-robust")
    assert isinstance(recipe, RobustClassifierRecipe)
    shallower = dataclasses.replace(recipe.architecture, blocks=(2, 1, 3, 3))
    with pytest.raises(ValueError, match="warm_start cifar10-resnet18 has another architecture"):
        first_classifier(dataclasses.replace(recipe, architecture=shallower))
    single = dataclasses.replace(recipe.architecture, blocks=(2, 1, 2, 2))  # the first of a stage may halve the image
    assert not _as_deep(recipe.architecture, single)
    assert _as_deep(recipe.architecture, dataclasses.replace(single, blocks=()))


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_deeper_classifier_has_as_many_operations_as_purifier_and_classifier(data: str) -> None:
    recipe, purifier, card = find_recipe(f"{data}-robust"), purify.load(f"{data}-dsae-robust"), read_card(f"{data}-dsae-robust")
    assert isinstance(recipe, RobustClassifierRecipe)
    both = count_macs(purifier, card.image_shape) + count_macs(purify.load_classifier(recipe.warm_start), card.image_shape)
    assert count_macs(first_classifier(recipe).eval(), card.image_shape) == pytest.approx(both, rel=0.02)


def test_a_run_goes_on_only_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    images, first = purify.load_dataset("digits", "val").first(40), tmp_path / "first.safetensors"
    classifier, card = purify.load_classifier("digits-shufflenet"), read_card("digits-shufflenet")
    save(classifier, card, first)
    recipe = dataclasses.replace(find_recipe("digits-retrained"), epochs=1, attack_steps=1, warm_start=str(first))  # type: ignore[call-arg]
    train(make_task(recipe, images, images), recipe, images, tmp_path / "run", quiet=True)
    train(make_task(recipe, images, images), recipe, images, tmp_path / "run", quiet=True)  # as it is
    next(classifier.parameters()).data.mul_(1.01)
    save(classifier, card, first)
    with pytest.raises(ValueError, match=r"holds a run with other weights of the warm start; give another folder"):
        train(make_task(recipe, images, images), recipe, images, tmp_path / "run", quiet=True)
