"""Steps in bfloat16, verdicts in float32; batches that fit into memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purify.attacks import APGD, FMN, PGD, Attack, ThreatModel, eot, exact
from purify.attacks import precision as precision_module
from purify.attacks.memory import batch_size_from_memory, free_memory, graph_bytes_per_image
from purify.attacks.precision import steps_in_bfloat16

LINF = ThreatModel("linf", 0.04)


@pytest.fixture
def batch(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return digits[0], toy(digits[0]).argmax(1)


ATTACKS: list[Attack] = [PGD(LINF), APGD(LINF), APGD(LINF, early_stop=False), FMN(LINF), FMN(LINF, stop_inside=True)]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_bfloat16_steps_find_what_float32_finds(attack: Attack, toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    full, low = (attack(toy, x, y, precision=name) for name in ("float32", "bfloat16"))
    with torch.no_grad():
        assert torch.equal(low.success, toy(low.adversarial).argmax(1) != y)
    assert 0.05 < full.success.float().mean() < 0.95
    assert abs(int(full.success.sum()) - int(low.success.sum())) <= 3


class Liar(nn.Module):
    """Under autocast it says that every image is broken."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.lies, self.wrong = model, 0, int((labels[0] + 1) % 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        if torch.is_autocast_enabled("cpu"):
            self.lies += 1
            logits = logits.float() + 100 * nn.functional.one_hot(torch.full((len(images),), self.wrong), 10)
        return logits


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_a_break_that_float32_denies_is_no_break(attack: Attack, toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """The attack goes on, and what it cannot break so is attacked again in float32: never weaker than float32 alone."""
    x, y = batch
    same = y == y[0]  # so that the lie is a lie for all of them
    x, y = x[same], y[same]
    liar = Liar(toy, y).eval()
    honest, result = attack(toy, x, y, precision="float32"), attack(liar, x, y, precision="bfloat16")
    assert liar.lies > 0
    assert result.success.sum() >= honest.success.sum() > 0
    with torch.no_grad():
        assert torch.equal(result.success, toy(result.adversarial).argmax(1) != y)


def test_auto_asks_the_processor_and_the_size_of_the_model(monkeypatch: pytest.MonkeyPatch, toy: nn.Module) -> None:
    large, small = nn.Conv2d(3, 64, 3, padding=1), toy
    image = torch.rand(2, 3, 32, 32)  # 64 · 27 · 1024 = 1.8 million multiply-accumulates
    monkeypatch.setattr(precision_module, "_processor_has_bfloat16", lambda device: True)
    assert steps_in_bfloat16("auto", large, image)
    assert not steps_in_bfloat16("auto", small, torch.rand(2, 1, 8, 8))
    assert not steps_in_bfloat16("auto", lambda x: x.flatten(1), image)
    assert not steps_in_bfloat16("auto", large.double(), image.double())
    monkeypatch.setattr(precision_module, "_processor_has_bfloat16", lambda device: False)
    assert not steps_in_bfloat16("auto", large.float(), image)
    assert steps_in_bfloat16("bfloat16", large, image)
    assert not steps_in_bfloat16("float32", large, image)
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        steps_in_bfloat16("half", large, image)  # type: ignore[arg-type]


# ---- memory


def test_graph_bytes_of_a_known_graph() -> None:
    """A convolution keeps its input, a ReLU its output; weights are kept once and do not count."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    assert graph_bytes_per_image(model, torch.rand(1, 3, 16, 16)) == 4 * 16 * 16 * (3 + 8)


def test_batch_size_from_memory() -> None:
    model, image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.rand(1, 3, 16, 16)
    each = 2 * 4 * 16 * 16 * 11 + 16 * 4 * 16 * 16 * 3
    assert batch_size_from_memory(model, image, free=4 * each * 37) == 32
    assert batch_size_from_memory(model, image, free=10**12) == 256
    assert batch_size_from_memory(model, image, free=1) == 1
    assert free_memory(torch.device("cpu")) > 10**6


def test_eot_holds_one_graph_at_a_time(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A step of the model that counts the graphs it is part of: up when built, down when freed."""
    alive, most, draws = 0, 0, 0

    class Held:
        def __init__(self) -> None:
            nonlocal alive, most, draws
            alive, draws = alive + 1, draws + 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.held = Held()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    def model(images: Tensor) -> Tensor:
        logits: Tensor = toy(Counted.apply(images + 0.01 * torch.rand(1)))  # type: ignore[no-untyped-call]
        return logits

    eot(exact(model), 20)(batch[0], lambda logits: logits.sum(1))
    assert (draws, most, alive) == (20, 1, 0)
