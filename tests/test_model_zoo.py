"""Every classifier that torchvision lists, wrapped at its own input size: the smallest of each family here, the rest at night.

``pytest -m nightly tests/test_model_zoo.py`` runs the rest; some need several gigabytes, and all of them about half an hour.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import purify
from purify.normalization import Normalize

LISTED = models.list_models(module=models)
SMALLEST = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "wide_resnet50_2",
)
CLASSES = 10


def build(name: str, side: int) -> nn.Module:
    """Random weights, in eval mode, with signals that reach from the image to the logits and back."""
    options: dict[str, Any] = {"num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):  # their ImageNet weights come with transform_input=True
        options |= {"transform_input": True, "aux_logits": False, "init_weights": False}
    if name.startswith("vit"):
        options |= {"image_size": side}
    model: nn.Module = models.get_model(name, weights=None, **options)
    if isinstance(model, models.VisionTransformer):
        nn.init.normal_(model.heads.head.weight)  # torchvision leaves it at zero, and then nothing has a gradient
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    if norms:  # untrained statistics let the signal die away in deep networks: take those of a batch
        for layer in norms:
            layer.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(2, 3, side, side))
    return model.eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SMALLEST else [pytest.mark.nightly]) for n in LISTED])
def test_wraps(name: str) -> None:
    torch.manual_seed(0)
    weights = models.get_model_weights(name).DEFAULT
    (side,) = weights.transforms().crop_size
    model = build(name, side)
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1)).eval()
    defended = purify.wrap(model, purifier, weights=weights)

    transform = weights.transforms()
    assert repr(defended.classifier.normalize) == repr(Normalize(transform.mean, transform.std))
    images = torch.rand(2, 3, side, side, requires_grad=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    logits = defended(images)
    one = images[:1].detach()
    with torch.no_grad():
        assert close(logits[:1], model((purifier(one) - mean) / std))
    assert logits.shape == (2, CLASSES)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the images matter, or nothing here is a test

    (gradient,) = torch.autograd.grad(torch.logsumexp(logits, 1).sum(), images)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().sum((1, 2, 3)) > 0).all()

    state = copy.deepcopy(defended.state_dict())
    program = torch.export.export(defended, (one,), strict=False)
    with torch.no_grad():
        assert close(program.module()(one), logits[:1])
        for parameter in defended.parameters():
            parameter.zero_()
        defended.load_state_dict(state)
        assert close(defended(one), logits[:1])
    del program, defended, model, state
    gc.collect()  # the largest have gigabytes, in cycles


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding in a deep network."""
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(other.detach().abs().max()))


def test_every_family_has_its_representative() -> None:
    """And a family that a later torchvision brings is seen here."""
    families = {family(name) for name in LISTED}
    assert families == {family(name) for name in SMALLEST}
    for name in SMALLEST:
        relatives = [other for other in LISTED if family(other) == family(name)]
        operations = {other: models.get_model_weights(other).DEFAULT.meta["_ops"] for other in relatives}
        assert min(operations, key=lambda other: operations[other]) == name


def family(name: str) -> str:
    """The name up to its size: resnet, resnext, regnet_x, mobilenet_v3, …"""
    for stem in ("efficientnet_v2", "mobilenet_v3", "wide_resnet", "shufflenet_v2", "regnet_x", "regnet_y", "swin_v2"):
        if name.startswith(stem):
            return stem
    return name.rstrip("0123456789x_d").split("_")[0].rstrip("0123456789")
