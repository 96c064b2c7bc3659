"""Intervals, recovered accuracy and paired comparisons: against formulas and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purify.eval import Accuracy, Recovery
from purify.eval.intervals import bootstrap_interval, mean_interval, wilson_interval
from purify.eval.margin import MarginSummary
from purify.eval.paired import PairedComparison
from purify.eval.spectrum.gains import GainCurve


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_its_formula(case: tuple[int, int]) -> None:
    k, n = case
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson_interval(k, n)
    assert low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1, centre + half), abs=1e-9)


def test_bad_counts() -> None:
    for k, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"got {k} of {n}"):
            wilson_interval(k, n)


def test_bootstrap_of_a_median_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(size=300)
    expected = bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    low, high = bootstrap_interval(values, "median")
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.05)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.05)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_interval_of_a_mean_is_students(n: int) -> None:
    """With the normal's 1.96 the mean of two images would be outside its 95 % interval three times in ten."""
    from scipy.stats import ttest_1samp

    rows = np.random.default_rng(0).normal(size=(n, 3))
    expected = ttest_1samp(rows, 0).confidence_interval(0.95)
    mean, low, high = mean_interval(rows)
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose((low, high), (expected.low, expected.high))
    curve = GainCurve.of("PCA", torch.arange(3), torch.tensor([3.0, 2.0, 1.0]), torch.from_numpy(rows))
    np.testing.assert_allclose(curve.low, low)
    assert np.isnan(mean_interval(rows[:1])[1]).all()


def test_recovery() -> None:
    clean = torch.tensor([True] * 90 + [False] * 10)
    attacked = torch.tensor([True] * 10 + [False] * 90)
    purified = torch.tensor([True] * 70 + [False] * 30)
    found = Recovery.of(clean, attacked, purified)
    assert found.share == pytest.approx((70 - 10) / (90 - 10))
    assert found.low < found.share < found.high
    nothing = Recovery.of(clean, clean, clean)
    assert math.isnan(nothing.share)
    assert str(nothing) == "–"


def test_an_attack_that_helped_as_often_as_it_hurt_leaves_nothing_to_recover() -> None:
    """Half of the resamples then have more images right under the attack than without: a share of the wrong sign."""
    clean = torch.tensor([True] * 900 + [False] * 100)
    attacked, purified = clean.clone(), clean.clone()
    attacked[:30], attacked[900:930], purified[:10] = False, True, False
    found = Recovery.of(clean, attacked, purified)
    assert math.isnan(found.share)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    attacked[910:930] = False
    assert Recovery.of(clean, attacked, purified).low < 0.5
    attacked[910:928] = True
    assert str(Recovery.of(clean, attacked, clean)) == "100.0 [–]"  # too often there is nothing to recover


def test_words() -> None:
    accuracy = Accuracy.of(torch.tensor([True] * 95 + [False] * 5), "clean")
    assert str(accuracy) == "95.0 [88.8, 97.8]"
    summary = MarginSummary.of(torch.tensor([-1.0, 2.0, 3.0]))
    assert (summary.median, summary.negative) == (2.0, pytest.approx(1 / 3))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_by_hand(b: int, c: int) -> None:
    first = torch.tensor([True] * b + [False] * c + [True, False])
    second = torch.tensor([False] * b + [True] * c + [True, False])
    n, k = b + c, min(b, c)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert PairedComparison.of(first, second).p == pytest.approx(exact)
