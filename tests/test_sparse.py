"""Each proximal operator solves the problem that its docstring states."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from purify.sparse import nonnegative_soft_threshold, soft_threshold

values = st.floats(-5, 5, width=32)
thresholds = st.floats(0, 3, width=32)


def at(operator, v: float, threshold: float) -> float:  # type: ignore[no-untyped-def]
    return float(operator(torch.tensor(v, dtype=torch.float64), threshold))


@given(values, thresholds)
def test_soft_threshold_minimises(v: float, threshold: float) -> None:
    found = minimize_scalar(lambda z: 0.5 * (z - v) ** 2 + threshold * abs(z), bounds=(-10, 10), options={"xatol": 1e-9})
    assert abs(at(soft_threshold, v, threshold) - found.x) < 1e-4


@given(values, thresholds)
def test_nonnegative_soft_threshold_minimises(v: float, threshold: float) -> None:
    found = minimize_scalar(lambda z: 0.5 * (z - v) ** 2 + threshold * z, bounds=(0, 10), options={"xatol": 1e-9})
    assert abs(at(nonnegative_soft_threshold, v, threshold) - found.x) < 1e-4


@given(values, values, thresholds)
def test_non_expansive(a: float, b: float, threshold: float) -> None:
    for operator in (soft_threshold, nonnegative_soft_threshold):
        assert abs(at(operator, a, threshold) - at(operator, b, threshold)) <= abs(a - b) + 1e-12


@given(values, thresholds)
def test_nonnegative_form_is_a_shifted_relu_and_the_positive_half(v: float, threshold: float) -> None:
    assert at(nonnegative_soft_threshold, v, threshold) == max(v - threshold, 0)
    assert at(nonnegative_soft_threshold, v, threshold) == max(at(soft_threshold, v, threshold), 0)


def test_gradients() -> None:
    v = torch.tensor([-2.0, -0.3, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nonnegative_soft_threshold, (v, threshold))
    assert torch.autograd.gradcheck(soft_threshold, (v, threshold))
