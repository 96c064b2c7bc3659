"""Defences compiled, and with fewer bits: the same classes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel
from purify.classifier import PurifiedClassifier
from purify.data import ImageSet
from purify.export import export_onnx, load_onnx


@pytest.fixture(scope="module")
def defended() -> PurifiedClassifier:
    return purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")


@pytest.fixture(scope="module")
def test_digits() -> tuple[Tensor, Tensor]:
    """All 450 test digits: images (450, 1, 8, 8) and labels."""
    return purify.load_dataset("digits", "test").batch(slice(None))


def test_compile_without_graph_break(quick_victim: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    """A shipped purifier and what is behind it in one graph, and so are the gradients to the images."""
    defended = purify.wrap(quick_victim, "digits-dsae")
    compiled = torch.compile(defended, fullgraph=True, backend="aot_eager")
    x = test_digits[0][:32].clone().requires_grad_()
    wanted, found = defended(x), compiled(x)
    assert torch.allclose(found, wanted, atol=1e-4)
    slopes = [torch.autograd.grad(logits.logsumexp(1).sum(), x)[0] for logits in (wanted, found)]
    assert slopes[0].abs().max() > 0.1
    assert torch.allclose(*slopes, atol=1e-4)


@pytest.mark.parametrize(("dtype", "logits"), [(torch.float16, 0.1), (torch.bfloat16, 0.5)], ids=str)
@pytest.mark.parametrize("how", ["converted", "autocast"])
def test_half_precision(
    how: str, dtype: torch.dtype, logits: float, defended: PurifiedClassifier, test_digits: tuple[Tensor, Tensor]
) -> None:
    """Measured: the same class for all 450, logits up to 0.04 (float16) and 0.21 (bfloat16) away, of up to 17."""
    x, y = test_digits
    with torch.no_grad():
        wanted = defended(x)
        if how == "converted":
            found = copy.deepcopy(defended).to(dtype)(x.to(dtype))
            assert found.dtype == dtype
        else:
            with torch.autocast("cpu", dtype):
                found = defended(x)
    assert (found.float() - wanted).abs().max() < logits
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() >= 0.995
    assert abs(accuracy(found, y) - accuracy(wanted, y)) <= 0.5


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def int8_accuracy(pair: PurifiedClassifier, x: Tensor, y: Tensor, folder: Path) -> tuple[float, float]:
    """Accuracy in per cent with the purifier in float32 and in int8; the classifier is float32 both times."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    export_onnx(pair.purifier, folder / "purifier.onnx", tuple(x.shape[1:]), output="purified", int8="")
    quantised = load_onnx(folder / "purifier.onnx")
    with torch.no_grad():
        found = [torch.cat([pair.undefended(p(b)) for b in x.split(100)]) for p in (pair.purifier, quantised)]
    return accuracy(found[0], y), accuracy(found[1], y)


def test_int8_purifier_keeps_the_digits(defended: PurifiedClassifier, test_digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """Clean, and attacked by someone who does not know the purifier."""
    x, y = test_digits
    attack = PGD(ThreatModel("linf", 0.15), steps=10, early_stop=False)  # full strength, as in the defence tables
    attacked = attack(defended.undefended, x, y, generator=torch.Generator().manual_seed(0))
    assert accuracy(defended.undefended(attacked.adversarial), y) < 10
    for pictures in (x, attacked.adversarial):
        whole, quantised = int8_accuracy(defended, pictures, y, tmp_path)
        assert whole > 90
        assert abs(whole - quantised) <= 0.5


def test_int8_purifier_keeps_mnist(mnist_test: ImageSet, tmp_path: Path) -> None:
    pair = purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")
    whole, quantised = int8_accuracy(pair, *mnist_test.first(500).batch(slice(None)), tmp_path)
    assert whole > 99
    assert abs(whole - quantised) <= 0.5
