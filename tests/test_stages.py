"""Whatever stands around a wrapped classifier, its attacker reaches its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.attacks import APGD, ThreatModel
from purify.eval import Settings, evaluate
from purify.eval.evaluate import gradient_paths
from purify.eval.fakes import HardQuantiser
from purify.eval.stages import PurifierChain, taken_apart

THREAT = ThreatModel("linf", 0.15)


class _Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


def test_a_compiled_defence_has_all_its_paths(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defended = purify.wrap(quick_victim, "digits-dsae")
    plain = gradient_paths(defended, digits[0][:2])
    assert "without the clip" in plain
    assert "straight through" in plain
    for around in (torch.compile(defended), nn.DataParallel(defended), torch.compile(nn.DataParallel(defended))):
        assert taken_apart(around) is defended  # type: ignore[arg-type]
        assert list(gradient_paths(around, digits[0][:2])) == list(plain)  # type: ignore[arg-type]
    assert taken_apart(quick_victim) is quick_victim


def test_two_wraps_are_attacked_like_one(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """A quantiser inside: attacked through both parts, it falls as it does alone."""
    x, y = digits[0][:40], digits[1][:40]
    once = purify.wrap(quick_victim, HardQuantiser().eval())
    twice = purify.wrap(once, nn.Identity().eval())
    apart = taken_apart(twice)
    assert isinstance(apart, purify.PurifiedClassifier)
    assert torch.equal(apart(x), twice(x))
    assert isinstance(apart.purifier, PurifierChain)
    left = {}
    for name, model in (("once", once), ("twice", twice)):
        paths = gradient_paths(model, x[:2])
        broken = torch.stack([APGD(THREAT, steps=20)(model, x, y, gradient=path).success for path in paths.values()]).any(0)
        left[name] = int((~broken).sum())
    assert left["twice"] <= left["once"] < 15


def test_each_part_of_a_chain_has_stand_ins(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Behind a quantiser the other part's own gradient is of use, and only a path through the one stand-in has it."""
    inner = purify.wrap(quick_victim, "digits-dsae")
    paths = gradient_paths(purify.wrap(inner, HardQuantiser().eval()), digits[0][:2])
    assert "exact" not in paths  # the quantiser's is zero
    assert {"first straight through", "straight through", "transfer"} <= set(paths)
    both = gradient_paths(purify.wrap(inner, "digits-dsae"), digits[0][:2])
    assert {"exact", "without the clip", "first without the clip", "second without the clip"} <= set(both)
    chain = PurifierChain(purify.load("digits-dsae"), purify.load("digits-dsae"))
    x = digits[0][:4]
    torch.testing.assert_close(chain.relaxed(x), chain.second.relaxed(chain.first.relaxed(x)))  # type: ignore[operator]
    torch.testing.assert_close(chain.first.relaxed(x).clamp(0, 1), chain.first(x))  # type: ignore[operator]


def test_a_wrapped_classifier_out_of_reach_is_refused(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    hidden = _Outer(purify.wrap(quick_victim, "digits-dsae"))
    with pytest.raises(ValueError, match="a wrapped classifier inside this _Outer"):
        evaluate(hidden, digits[0][:4], digits[1][:4], THREAT, settings=Settings(suite="fast"), quiet=True)
    normalised = purify.wrap(purify.wrap(quick_victim, nn.Identity().eval()), nn.Identity().eval(), mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="a wrapped classifier inside this PurifiedClassifier"):
        gradient_paths(normalised, digits[0][:2])
