"""Balls, projections and losses, against their formulas and by properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from purify.attacks import FGSM, PGD, ThreatModel
from purify.attacks.objective import make_objective
from purify.attacks.result import margin

LINF, L2, L1 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.6), ThreatModel("l1", 3.0)

# ---- threat models


@given(norm=st.sampled_from(["linf", "l2", "l1"]), eps=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_projection_and_random_points_stay_inside(norm: Any, eps: float, seed: int) -> None:
    threat, generator = ThreatModel(norm, eps), torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 4, 5, generator=generator)
    far = x + torch.randn(x.shape, generator=generator)
    inside = threat.project(far, x)
    threat.verify(inside, x)
    threat.verify(threat.random_point(x, generator), x)
    assert torch.allclose(threat.project(inside, x), inside, atol=1e-6)
    assert (threat.distance(inside, x) <= threat.distance(far, x) + 1e-6).all()


@given(eps=st.floats(0, 12), spread=st.floats(0.01, 3), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_l1_projection_is_the_nearest_point(eps: float, spread: float, seed: int) -> None:
    """Against pyautoattack's, and against bisection for the threshold in float64."""
    from pyautoattack.autopgd_base import L1_projection

    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 2, 3, 5, generator=generator)
    x[0] = x[0].round()  # values at the ends of the box
    far = x + spread * torch.randn(x.shape, generator=generator)
    found = ThreatModel("l1", eps).project(far, x)
    low, high = torch.zeros(4, 1, 1, 1, dtype=torch.float64), torch.full((4, 1, 1, 1), 20.0, dtype=torch.float64)
    change = far.double() - x.double()

    def at(threshold: Tensor) -> Tensor:
        return (x.double() + change.sign() * (change.abs() - threshold).clamp_min(0)).clamp(0, 1) - x.double()

    for _ in range(60):
        middle = (low + high) / 2
        outside = at(middle).abs().sum((1, 2, 3), keepdim=True) > eps
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    assert torch.allclose(found.double() - x.double(), at(high), atol=2e-6)
    theirs = far + L1_projection(x, far - x, eps)
    assert float((far - found).norm()) <= float((far - theirs).norm()) + 1e-4


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_steepest_direction_has_unit_norm(threat: ThreatModel) -> None:
    direction = threat.steepest(torch.randn(4, 3, 5, 5))
    assert torch.allclose(threat.distance(direction, torch.zeros_like(direction)), torch.ones(4), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_uniform_draws_fill_the_ball(norm: Any) -> None:
    """In d dimensions the share of draws within r·eps is r to the power d."""
    threat, middle = ThreatModel(norm, 0.4), torch.full((4000, 1, 2, 2), 0.5)
    distance = threat.distance(threat.random_point(middle, torch.Generator().manual_seed(0)), middle)
    assert abs(float((distance < 0.8 * 0.4).float().mean()) - 0.8**4) < 0.03


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_leaving_the_ball_raises(threat: ThreatModel) -> None:
    x = torch.full((2, 1, 8, 8), 0.5)
    for bad in (x + 0.2, x + float("nan")):
        with pytest.raises(RuntimeError, match="outside"):
            threat.verify(bad, x)
    with pytest.raises(RuntimeError, match="outside"):
        ThreatModel("linf", 1).verify(x + 0.6, x)

    class Cheat(FGSM):
        norms = ("linf", "l2", "l1")

        def _search(self, *_: Any) -> Tensor:
            return x + 0.3

    with pytest.raises(RuntimeError, match="outside"):
        Cheat(threat)(lambda z: z.flatten(1), x, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("norm", "eps", "says"),
    [
        ("linf", -0.1, "eps of 0 or more, got -0.1"),
        ("linf", 8, "at most 1.*got 8; write 8 / 255"),
        ("l2", float("nan"), "got nan"),
        ("l1.5", 0.1, "unknown norm 'l1.5'; known: linf, l2, l1"),
    ],
)
def test_bad_threat(norm: Any, eps: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ThreatModel(norm, eps)


def test_names() -> None:
    assert [str(ThreatModel("linf", 8 / 255)), str(ThreatModel("l2", 0.5)), str(LINF)] == ["L∞ 8/255", "L2 0.5", "L∞ 0.1"]


# ---- objectives


def test_objectives_against_their_formulas() -> None:
    z, y, t = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 6, (torch.arange(20) + 2) % 6
    for row in range(20):
        own, target = float(z[row, y[row]]), float(z[row, t[row]])
        others = max(float(v) for k, v in enumerate(z[row]) if k != y[row])
        top = sorted(z[row].tolist(), reverse=True)
        assert float(margin(z, y)[row]) == pytest.approx(own - others)
        assert float(make_objective("margin")(z, y, None)[row]) == pytest.approx(others - own)
        assert float(make_objective("dlr")(z, y, None)[row]) == pytest.approx(-(own - others) / (top[0] - top[2]))
        scale = top[0] - (top[2] + top[3]) / 2
        assert float(make_objective("dlr")(z, y, t)[row]) == pytest.approx(-(own - target) / scale)
        assert float(make_objective("ce")(z, y, t)[row]) == pytest.approx(float(z[row].log_softmax(0)[t[row]]))


def test_dlr_does_not_change_with_the_scale_of_the_logits() -> None:
    z, y = torch.randn(10, 5), torch.arange(10) % 5
    assert torch.allclose(make_objective("dlr")(z, y, None), make_objective("dlr")(1000 * z, y, None), atol=1e-4)


def test_bad_objectives() -> None:
    with pytest.raises(ValueError, match="unknown loss 'hinge'; known: ce, margin, dlr"):
        PGD(LINF, loss="hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 3 classes, got 2"):
        make_objective("dlr")(torch.zeros(1, 2), torch.tensor([0]), None)
