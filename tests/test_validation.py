"""Validation during a training: large pictures are judged in parts, not all at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.attacks import FGSM, ThreatModel
from purify.training.catalogue import find_recipe
from purify.training.tasks import DenoisingTask, make_task
from purify.training.validation import accuracy, attack_in_parts


def test_large_pictures_are_validated_in_parts() -> None:
    sizes = []

    def model(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.mean((2, 3))

    images, labels = torch.rand(24, 3, 224, 224), torch.arange(24) % 3
    whole = float((images.mean((2, 3)).argmax(1) == labels).float().mean())
    assert accuracy(model, images, labels) == whole
    assert sizes == [10, 10, 4]
    attacked, broken = attack_in_parts(FGSM(ThreatModel("linf", 0.1)), model, images, labels)
    assert attacked.shape == images.shape
    assert torch.equal(broken, model(attacked).argmax(1) != labels)


@pytest.mark.parametrize("name", ["digits-dsae", "digits-dsae-robust"])
def test_no_pass_of_a_validation_takes_all_large_pictures_at_once(name: str) -> None:
    pixels, labels = torch.randint(256, (12, 1, 224, 224), dtype=torch.uint8), torch.arange(12) % 2
    images = purify.data.ImageSet("large", "val", pixels, labels, ("a", "b"))
    small = purify.DSAEConfig(units=4, atom=8, stride=8, width=4, depth=1)
    options = {"validation_steps": 1} if "robust" in name else {}
    recipe = dataclasses.replace(find_recipe(name), architecture=small, warm_start="", **options)  # type: ignore[arg-type]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 2)).eval()
    task = make_task(recipe, images, images, classifier)
    if isinstance(task, DenoisingTask):
        task.attacked = task.clean
    sizes = []
    for module in task.model.modules():
        module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    figures = task.validate(task.model.eval())
    assert 0 <= figures["val_density"] <= 1
    assert max(sizes) == 10
