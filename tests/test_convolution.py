"""Convolutions as matrix products: the same numbers and gradients as torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from purify.architecture import ClassifierConfig, build_classifier
from purify.convolution import SmallMapConv2d, speed_up_small_maps
from purify.cost import count_macs


@pytest.mark.parametrize(("stride", "side"), [(1, 1), (1, 2), (1, 4), (2, 4), (2, 7), (2, 8), (1, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_as_torch(stride: int, side: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(256, 512, 3, stride, 1, bias=bias).double()
    ours = copy.deepcopy(theirs)
    speed_up_small_maps(nn.Sequential(ours))
    assert isinstance(ours, SmallMapConv2d)
    x = torch.randn(3, 256, side, side + 1, dtype=torch.float64)
    results = []
    for layer in (theirs, ours):
        images = x.clone().requires_grad_()
        out = layer(images)
        gradients = torch.autograd.grad((out * out.detach().cos()).sum(), [images, *layer.parameters()])
        results.append((out.detach(), *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_only_large_plain_layers_are_exchanged() -> None:
    kept = [
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(512, 512, 1),
        nn.Conv2d(512, 512, 3),
        nn.Conv2d(512, 512, 3, padding=1, groups=2),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"),
    ]
    speed_up_small_maps(nn.Sequential(*kept))
    assert all(type(layer) is nn.Conv2d for layer in kept)


def test_classifiers_for_small_images_use_it_and_cost_the_same() -> None:
    model = build_classifier(ClassifierConfig(channels=1, small_stem=True)).eval()
    assert sum(isinstance(module, SmallMapConv2d) for module in model.modules()) == 4  # the last stage of a resnet18
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, SmallMapConv2d):
            module.__class__ = nn.Conv2d
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-3, atol=1e-4)
    assert count_macs(model, (1, 28, 28)) == count_macs(plain, (1, 28, 28))
    assert model.state_dict().keys() == plain.state_dict().keys()
