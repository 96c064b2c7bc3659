"""Recipes: what means nothing, or does not fit the images, is told before anything is learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import purify
from purify.data import ImageSet
from purify.denoisers import DenoiserConfig
from purify.training.catalogue import find_recipe
from purify.training.tasks import ClassifierTask, make_task


def digits(split: Any, count: int) -> ImageSet:
    return purify.load_dataset("digits", split).first(count)


@pytest.mark.parametrize("name", ["digits-dsae", "digits-dsae-robust", "digits-shufflenet"])
def test_a_split_without_images(name: str) -> None:
    some, none = digits("train", 8), digits("train", 0)
    with pytest.raises(ValueError, match=f"recipe {name}: data set digits has no train images"):
        make_task(find_recipe(name), none, some)
    with pytest.raises(ValueError, match=f"recipe {name}: data set digits has no val images"):
        make_task(find_recipe(name), some, digits("val", 0))


def test_a_classifier_has_the_classes_of_its_images() -> None:
    recipe: Any = find_recipe("digits-shufflenet")
    for classes in (7, 20):
        other = dataclasses.replace(recipe, architecture=dataclasses.replace(recipe.architecture, classes=classes))
        with pytest.raises(ValueError, match=rf"architecture\.classes is {classes}, but data set digits has 10 classes"):
            make_task(other, digits("train", 8), digits("val", 8))


def test_a_classifier_of_large_pictures_is_validated_in_parts() -> None:
    pixels, labels = torch.randint(256, (12, 1, 224, 224), dtype=torch.uint8), torch.arange(12) % 10
    images = ImageSet("large", "val", pixels, labels, tuple("0123456789"))
    task = make_task(find_recipe("digits-shufflenet"), images, images)
    assert isinstance(task, ClassifierTask)
    sizes: list[int] = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10)).eval()
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    right = float((model(images.batch(slice(None))[0]).argmax(1) == labels).float().mean())
    assert task.validate(model)["val_accuracy"] == pytest.approx(right)
    assert sizes[1:] == [10, 2]


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("digits-dsae", {"attacked": -0.5}, r"attacked must be in \[0, 1\], got -0.5"),
        ("digits-dsae", {"attack_steps": 0}, "attack_steps must be at least 1, got 0"),
        ("digits-dsae", {"eps": (0.2, 0.1)}, "smaller radius first, got 0.2 and 0.1"),
        ("digits-dsae", {"eps": (1.0, 8.0)}, "got 8.0; write 8 / 255, not 8"),
        ("digits-robust", {"attack_steps": 0}, "attack_steps must be at least 1, got 0"),
        ("digits-robust", {"growing": 2.0}, r"growing must be in \[0, 1\], got 2.0"),
        ("digits-robust", {"eps": 8.0}, "got 8.0; write 8 / 255, not 8"),
        ("digits-dsae-robust", {"eps": 8.0}, "got 8.0; write 8 / 255, not 8"),
        ("digits-dsae-robust", {"validation_eps": 8.0}, "got 8.0; write 8 / 255, not 8"),
        ("digits-dsae-robust", {"growing": -0.1}, r"growing must be in \[0, 1\], got -0.1"),
        ("digits-dsae-robust", {"final_steps": 0}, "final_steps must be at least 1, got 0"),
        ("digits-dsae-robust", {"validation_steps": 0}, "validation_steps must be at least 1, got 0"),
        ("digits-dsae-robust", {"validated": 0}, "validated must be at least 1, got 0"),
        (
            "digits-dsae-robust",
            {"decoder_first": 0.5, "architecture": purify.DSAEConfig(encoder="linear", steps=2)},
            "with architecture.steps 2 the code depends on the decoder",
        ),
    ],
)
def test_settings_that_mean_nothing(recipe: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(find_recipe(recipe), **changes)


@pytest.mark.parametrize("network", ["linear", "dense"])
def test_atoms_of_a_dense_denoiser_overlap_evenly(network: Any) -> None:
    for atom, stride in ((5, 2), (2, 4)):
        with pytest.raises(ValueError, match=f"even number, got atom {atom} with stride {stride}"):
            DenoiserConfig(network=network, atom=atom, stride=stride)
    assert DenoiserConfig(network="dncnn", atom=5).atom == 5  # which has none
