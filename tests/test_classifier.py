"""Wrapping: any torchvision family, normalisation from its weights, and everything that torch does to a module."""

from __future__ import annotations

import copy
import io
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.v2
from test_preprocessing import small
from torch import Tensor, nn
from torchvision import models

import purify
from purify.normalization import Normalize

FAMILIES: dict[str, Callable[[], nn.Module]] = {  # test_model_zoo.py has them all, at their own size
    "resnet": lambda: models.resnet18(num_classes=5),
    "mobilenet": lambda: models.mobilenet_v3_small(num_classes=5),
    "vit": lambda: models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=5),
    "swin": lambda: models.swin_t(num_classes=5),
    "maxvit": lambda: models.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 16, 0.1, num_classes=5),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    if isinstance(model, models.VisionTransformer):
        nn.init.normal_(model.heads.head.weight)  # torchvision leaves it at zero, and then nothing has a gradient
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    identity = purify.wrap(model, nn.Identity(), mean=MEAN, std=STD)
    bare = model((images - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1))
    assert torch.allclose(identity(images), bare, atol=1e-5)

    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1)).eval()
    defended = purify.wrap(model, purifier, mean=MEAN, std=STD)
    logits = defended(images)
    assert logits.shape == (2, 5)
    assert logits.dtype == images.dtype
    assert logits.device == images.device
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert torch.equal(defended.purify(images), purifier(images))
    assert torch.allclose(defended.undefended(images), bare, atol=1e-5)
    assert defended.double()(images.double()).dtype == torch.float64
    assert not defended.training


@pytest.fixture
def defended() -> purify.PurifiedClassifier:
    torch.manual_seed(0)
    model = models.shufflenet_v2_x0_5(num_classes=5).eval()
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1)).eval()
    return purify.wrap(model, purifier, mean=MEAN, std=STD)


def test_normalisation_from_weights() -> None:
    model = models.shufflenet_v2_x0_5().eval()
    weights = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    x = torch.rand(1, 3, 64, 64)
    for given in (weights, "ShuffleNet_V2_X0_5_Weights.DEFAULT"):
        wrapped = purify.wrap(model, nn.Identity(), weights=given)
        expected = model(torchvision.transforms.functional.normalize(x, MEAN, STD))
        assert torch.allclose(wrapped(x), expected, atol=1e-5)
    assert "mean=(0.485, 0.456, 0.406)" in repr(wrapped)
    with pytest.warns(UserWarning, match=r"ShuffleNetV2 of torchvision does not normalise its images.* mean=\(0, 0, 0\)"):
        assert "normalisation: none given" in repr(purify.wrap(model, nn.Identity()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purify.wrap(model, nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1))
        purify.wrap(purify.NormalizedClassifier(model), nn.Identity())
        purify.wrap(purify.load_classifier("digits-shufflenet"), nn.Identity())


def test_by_name(victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    assert torch.equal(purify.wrap(victim, "digits-dsae")(x), victim(purify.load("digits-dsae")(x)))


def test_copies(defended: purify.PurifiedClassifier) -> None:
    x = torch.rand(2, 3, 32, 32)
    expected = defended(x)
    assert torch.equal(copy.deepcopy(defended)(x), expected)
    buffer = io.BytesIO()
    torch.save(defended, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    state = {k: v.clone() for k, v in defended.state_dict().items()}
    with torch.no_grad():
        for p in defended.parameters():
            p.add_(1)
    assert not torch.equal(defended(x), expected)
    defended.load_state_dict(state)
    assert torch.equal(defended(x), expected)
    assert torch.allclose(defended.to(torch.bfloat16)(x.bfloat16()).float(), expected, atol=0.1)


def test_compile_without_graph_break(defended: purify.PurifiedClassifier) -> None:
    x = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(defended, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), defended(x), atol=1e-5)


def test_export(defended: purify.PurifiedClassifier) -> None:
    x = torch.rand(2, 3, 32, 32)
    program = torch.export.export(defended, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    more = torch.rand(5, 3, 32, 32)
    assert torch.allclose(program.module()(more), defended(more), atol=1e-5)


def test_modes_are_left_alone() -> None:
    model, purifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.Identity()
    model.eval()
    purifier.train()
    wrapped = purify.wrap(model, purifier)
    assert (model.training, purifier.training, wrapped.training) == (False, True, False)
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        purify.wrap(model, purifier)
    assert model.training


def test_bad_input(defended: purify.PurifiedClassifier) -> None:
    with pytest.raises(ValueError, match="normalised already"):
        defended(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="batch axis"):
        defended(torch.rand(3, 32, 32))
    with pytest.raises(TypeError, match="torch.float64 and the model is torch.float32"):
        defended(torch.rand(2, 3, 32, 32).double())
    with pytest.raises(TypeError, match="torch.uint8"):
        defended(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected images \(N, 3, H, W\), got shape \(2, 1, 32, 32\)"):
        defended(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="expected images"):
        purify.load("digits-dsae").statistics(torch.rand(2, 3, 8, 8))
    unchecked = purify.wrap(defended.classifier, nn.Identity(), validate=False)
    assert torch.isfinite(unchecked(torch.randn(2, 3, 32, 32))).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mean": MEAN}, "belong together"),
        ({"std": STD}, "belong together"),
        ({"mean": MEAN, "std": STD, "weights": "ResNet50_Weights.DEFAULT"}, "not both"),
        ({"weights": 3}, "weights enum.*got 3"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"mean": (0.5,), "std": (0.1, 0.2)}, "one mean and one std"),
        ({"mean": (), "std": ()}, "one mean and one std"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"means in \[0, 1\], .* got \(123.7, .*: divide by 255"),
        ({"mean": float("nan"), "std": 1.0}, r"means in \[0, 1\]"),
    ],
)
def test_bad_normalisation(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        purify.wrap(nn.Identity().eval(), nn.Identity(), **options)  # type: ignore[arg-type]


def test_normalize_follows_the_input() -> None:
    normalize = Normalize((0.5,), (0.25,))
    assert normalize(torch.ones(1, 1, 2, 2, dtype=torch.float16)).dtype == torch.float16
    assert normalize(torch.ones(1, 1, 2, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda values: torch.tensor(values).view(1, -1, 1, 1)])
def test_a_normalisation_of_any_kind(kind: Callable[[Any], Any]) -> None:
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalize(kind(MEAN), kind(STD))(x), Normalize(MEAN, STD)(x))
    assert torch.equal(
        purify.wrap(nn.Flatten().eval(), nn.Identity(), mean=kind(MEAN), std=kind(STD))(x[:1]).view(3, 4, 4),
        Normalize(MEAN, STD)(x[0]),
    )
    assert torch.equal(Normalize(0.5, 0.25)(x), (x - 0.5) / 0.25)


def test_a_purifier_apart_from_its_classifier(defended: purify.PurifiedClassifier) -> None:
    x = torch.rand(2, 3, 32, 32)
    defended.classifier.half()
    for images in (x, x.half()):
        with pytest.raises(
            TypeError, match=r"purifier is torch.float32 on cpu and the classifier torch.float16 on cpu; .*defended.to"
        ):
            defended(images)
    assert defended.to(torch.float64)(x.double()).shape == (2, 5)
    defended.float().purifier.to("meta")
    with pytest.raises(TypeError, match=r"purifier is torch.float32 on meta and the classifier torch.float32 on cpu"):
        defended(x)


def test_a_classifier_that_converts_its_input_may_differ_from_the_purifier(defended: purify.PurifiedClassifier) -> None:
    class Converts(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner.double()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images.double())
            return logits

    wrapped = purify.wrap(Converts(defended.classifier).eval(), defended.purifier)
    assert wrapped(torch.rand(2, 3, 32, 32)).dtype == torch.float64


# Models whose output is not a tensor


@dataclass
class Answer:
    logits: Any = None
    scores: Any = None


class Gives(nn.Module):
    """A classifier that gives its logits in some wrapping."""

    def __init__(self, wrapping: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrapping = wrapping

    def forward(self, images: Tensor) -> Any:
        return self.wrapping(images.mean((2, 3)))


def test_logits_of_an_object() -> None:
    x = torch.rand(2, 3, 8, 8)
    named = namedtuple("named", "logits aux")
    for wrapping in (lambda z: Answer(logits=z), lambda z: named(z, None)):
        defended = purify.wrap(Gives(wrapping).eval(), nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1))
        assert torch.equal(defended(x), x.mean((2, 3)))
        assert torch.equal(defended.undefended(x), x.mean((2, 3)))


@pytest.mark.parametrize(
    ("wrapping", "says"),
    [
        (lambda z: {"scores": z, "boxes": z}, "a dict with the keys 'scores', 'boxes'"),
        (lambda z: (z, z, None), r"a tuple of 3 \(Tensor, Tensor, NoneType\)"),
        (lambda z: [z], r"a list of 1 \(Tensor\)"),
        (lambda z: Answer(scores=z), "an? Answer"),
        (lambda z: None, "a NoneType"),
    ],
)
def test_what_gives_no_logits_is_named(wrapping: Callable[[Tensor], Any], says: str) -> None:
    defended = purify.wrap(Gives(wrapping).eval(), nn.Identity())
    with pytest.raises(TypeError, match=f"expected logits.*got {says}; wrap the model in a module"):
        defended(torch.rand(2, 3, 8, 8))


# Normalisation given twice, or otherwise than the model has it


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Normalize(MEAN, STD), small()),
        nn.Sequential(torchvision.transforms.Normalize(MEAN, STD), small()),
        nn.Sequential(nn.Sequential(torchvision.transforms.v2.Normalize(MEAN, STD)), small()),
        purify.NormalizedClassifier(small(), Normalize(MEAN, STD)),
        purify.wrap(small(), nn.Identity(), mean=MEAN, std=STD),
    ],
    ids=["ours", "torchvision", "v2", "NormalizedClassifier", "wrapped already"],
)
def test_normalising_twice_is_warned_of(model: nn.Module) -> None:
    model.eval()
    with pytest.warns(UserWarning, match=r"normalised twice: by Normalize\(mean=\(0.485.*wrap it without weights"):
        purify.wrap(model, nn.Identity(), weights="ResNet18_Weights.DEFAULT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purify.wrap(model, nn.Identity())
        purify.wrap(small(), nn.Identity(), weights="ResNet18_Weights.DEFAULT")


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_transform_input(name: str) -> None:
    """These two turn ImageNet's normalisation into their own, and do so only where they are told."""
    weights = models.get_model_weights(name).DEFAULT
    build = models.get_model_builder(name)
    model = build(init_weights=False, transform_input=True, num_classes=5, aux_logits=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = purify.wrap(model, nn.Identity(), weights=weights)
    side = weights.transforms().crop_size[0]
    x = torch.rand(1, 3, side, side)
    expected = model(torchvision.transforms.functional.normalize(x, MEAN, STD))
    assert torch.allclose(wrapped(x), expected, atol=1e-5)
    for options in ({}, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}):
        with pytest.warns(UserWarning, match="transform_input=True expects images with ImageNet's normalisation"):
            purify.wrap(model, nn.Identity(), **options)
    model.transform_input = False
    with pytest.warns(UserWarning, match="set model.transform_input = True"):
        purify.wrap(model, nn.Identity(), weights=weights)


def test_auxiliary_logits_of_training_mode() -> None:
    """There googlenet, like inception_v3, gives a tuple; the main logits are taken."""
    model = models.googlenet(init_weights=False, num_classes=5, transform_input=True, dropout=0.0, dropout_aux=0.0)
    with pytest.warns(UserWarning, match="training mode"):
        wrapped = purify.wrap(model, nn.Identity(), weights="GoogLeNet_Weights.DEFAULT")
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(wrapped(x), model(wrapped.classifier.normalize(x)).logits, atol=1e-5)
    assert wrapped.eval()(x).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2"])
def test_small_stems_keep_the_resolution(name: str) -> None:
    model = purify.build_classifier(purify.ClassifierConfig(model=name, channels=1, small_stem=True)).eval()
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    shapes: list[torch.Size] = []
    stem.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert shapes[0][2:] == (32, 32)


def test_stems_that_cannot_be_changed_are_named() -> None:
    with pytest.raises(ValueError, match="stem of 'densenet121'"):
        purify.build_classifier(purify.ClassifierConfig(model="densenet121", small_stem=True))
    with pytest.raises(ValueError, match="mobilenet_v2 has no max-pooling"):
        purify.build_classifier(purify.ClassifierConfig(model="mobilenet_v2", max_pool=False))


def test_a_purifier_by_its_path_and_in_the_models_precision(toy: nn.Module) -> None:
    path = purify.checkpoint.FOLDER / "digits-dsae.safetensors"
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(purify.wrap(toy, path)(x), purify.wrap(toy, "digits-dsae")(x))
    half = purify.wrap(copy.deepcopy(toy).bfloat16(), "digits-dsae")
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="expected a purifier as a module, or as the name or path of a checkpoint, got int"):
        purify.wrap(toy, 3)  # type: ignore[arg-type]
