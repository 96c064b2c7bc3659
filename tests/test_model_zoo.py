"""Every classifier that torchvision lists, wrapped at its own input size: the smallest of each family here, the rest at night.

``pytest -m nightly tests/test_model_zoo.py`` runs the rest, the largest of which have 640 million parameters.
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
CLASSES = 10


def family(name: str) -> str:
    """Torchvision's module that builds it: ``resnet`` with the wide ones and ResNeXt, ``swin_transformer`` with version 2."""
    return str(models.get_model_builder(name).__module__)


def operations(name: str) -> float:
    """In thousand millions, as torchvision says."""
    return float(models.get_model_weights(name).DEFAULT.meta["_ops"])


SMALLEST = {min((n for n in LISTED if family(n) == kin), key=operations) for kin in {family(n) for n in LISTED}}


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
    return model.eval().requires_grad_(False)  # of the gradients only the images' is wanted, and the largest models are large


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
    if name not in SMALLEST:
        gc.collect()  # the largest have gigabytes, in cycles


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding in a deep network."""
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(other.detach().abs().max()))


def test_every_family_has_its_representative() -> None:
    assert {"alexnet", "inception_v3", "maxvit_t", "regnet_y_400mf", "resnet18", "swin_t", "vit_b_32"} <= SMALLEST
    assert 17 <= len(SMALLEST) < 25
