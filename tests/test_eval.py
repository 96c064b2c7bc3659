"""The judge: intervals, recovery, baselines, cost, one evaluation checked by hand, tables and their reference."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.filters import median as skimage_median
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel
from purify.cost import count_macs, count_parameters, milliseconds_per_image
from purify.eval import Accuracy, Recovery, Report, Settings, evaluate
from purify.eval.baselines import JPEG, MedianFilter, PCAProjection, make_baseline
from purify.eval.intervals import bootstrap_interval, wilson_interval
from purify.eval.margin import MarginSummary
from purify.eval.reference import compare_with_reference, read_reference
from purify.eval.report import COLUMNS
from purify.eval.tables import TABLES

THREAT = ThreatModel("linf", 0.15)


# ---- intervals and recovery


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


def test_words() -> None:
    accuracy = Accuracy.of(torch.tensor([True] * 95 + [False] * 5), "clean")
    assert str(accuracy) == "95.0 [88.8, 97.8]"
    summary = MarginSummary.of(torch.tensor([-1.0, 2.0, 3.0]))
    assert (summary.median, summary.negative) == (2.0, pytest.approx(1 / 3))


# ---- baselines


def test_median_is_scikit_images() -> None:
    images = torch.rand(2, 3, 9, 7)
    found = MedianFilter(3)(images)
    for image, out in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(out.numpy(), skimage_median(image.numpy(), np.ones((3, 3)), mode="nearest"))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_nearly_pillows(channels: int, tmp_path: Path) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, channels, 4, 4), (32, 24), mode="bilinear")
    found = JPEG(75)(smooth)
    assert found.shape == smooth.shape
    pixels = (smooth[0] * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=75)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "x.jpg"))).float().div(255).view(32, 24, channels).permute(2, 0, 1)
    assert (found[0] - expected).abs().mean() < 0.01
    assert 0.0001 < (found - smooth).abs().mean() < 0.05


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    training = purify.load_dataset("digits", "train")
    projection = make_baseline("pca", training)
    assert isinstance(projection, PCAProjection)
    pca = PCA(n_components=0.9, svd_solver="full").fit(training.batch(slice(None))[0].flatten(1).double().numpy())
    images, _ = purify.load_dataset("digits", "test").first(5).batch(slice(None))
    expected = pca.inverse_transform(pca.transform(images.flatten(1).double().numpy())).clip(0, 1)
    np.testing.assert_allclose(projection(images).flatten(1).numpy(), expected, atol=1e-5)


def test_bad_baselines() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'blur'; known: jpeg, median, pca"):
        make_baseline("blur")
    with pytest.raises(ValueError, match="needs training images"):
        make_baseline("pca")


# ---- cost


def test_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    assert count_macs(model, (3, 6, 6)) == 36 * 8 * 27 + 8 * 36 * 5
    assert count_parameters(model) == 8 * 27 + 8 + 8 * 36 * 5 + 5
    assert count_macs(MedianFilter(), (3, 6, 6)) == 0
    assert milliseconds_per_image(model, torch.rand(4, 3, 6, 6)) > 0


# ---- one evaluation


@pytest.fixture(scope="module")
def report() -> Report:
    x, y = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    return evaluate(defended, x, y, THREAT, settings=Settings(steps=20), quiet=True)


def test_evaluation_by_hand(report: Report, victim: nn.Module, purifier: nn.Module) -> None:
    """The figures follow from the models by a shorter way."""
    x, y = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    with torch.no_grad():
        assert report.undefended_clean.right == int((victim(x).argmax(1) == y).sum())
        assert report.clean.right == int((victim(purifier(x)).argmax(1) == y).sum())
    attack = PGD(THREAT, steps=20, early_stop=False)
    attacked = attack(victim, x, y, generator=torch.Generator().manual_seed(0)).adversarial
    with torch.no_grad():
        assert report.undefended["PGD"].right == int((victim(attacked).argmax(1) == y).sum())
        assert report.oblivious["PGD"].right == int((victim(purifier(attacked)).argmax(1) == y).sum())
    lost = report.undefended_clean.right - report.undefended["PGD"].right
    assert report.recovered["PGD"].share == pytest.approx((report.oblivious["PGD"].right - report.undefended["PGD"].right) / lost)


def test_worst_case_is_below_everything(report: Report) -> None:
    assert report.adaptive.right <= min(report.clean.right, report.oblivious["PGD"].right, report.oblivious["FGSM"].right)
    assert report.adaptive.right == report.adaptive.n - sum(report.broken_by.values())
    rows = report.per_image
    assert (rows["adaptive_margin"] <= rows["clean_margin"]).all()
    assert (rows["adaptive_margin"] <= rows["oblivious_PGD_margin"]).all()


def test_claims_are_kept_apart(report: Report) -> None:
    assert report.clean.claim == "clean"
    assert {a.claim for a in report.oblivious.values()} == {"oblivious"}
    assert report.adaptive.claim == "adaptive"
    assert "transfer" in report.adaptive.attack
    assert str(THREAT) in report.adaptive.attack
    assert [c for c in COLUMNS if "GD" in c or "GSM" in c] == [
        "FGSM, oblivious",
        "PGD, oblivious",
        "recovered from PGD",
        "PGD, adaptive",
    ]


def test_adaptive_images_are_what_they_claim(report: Report, victim: nn.Module, purifier: nn.Module) -> None:
    x, y = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    THREAT.verify(report.adaptive_images, x)
    with torch.no_grad():
        wrong = victim(purifier(report.adaptive_images)).argmax(1) != y
    assert (wrong <= (report.per_image["adaptive_margin"] <= 0)).all()


def test_written_files(report: Report, tmp_path: Path) -> None:
    figures = json.loads(report.to_json(tmp_path / "new" / "r.json").read_text(encoding="utf-8"))
    assert figures["adaptive"]["n"] == 150
    assert figures["threat"] == {"norm": "linf", "eps": 0.15}
    assert "torch" in figures["versions"]
    with report.to_csv(tmp_path / "r.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["adaptive_margin"]) > 0 for row in rows) == report.adaptive.right
    assert sum(float(row["oblivious_PGD_margin"]) > 0 for row in rows) == report.oblivious["PGD"].right
    lines = report.table().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert str(report.adaptive) in lines[2]


def test_bare_classifier(victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    found = evaluate(victim, x, y, THREAT, settings=Settings(steps=10), quiet=True, name="none")
    assert found.recovered == {}
    assert found.purifier_macs == 0
    assert found.clean.right == found.undefended_clean.right
    assert found.oblivious["PGD"].right == found.undefended["PGD"].right
    assert found.code is None


def test_a_purifier_without_gradient_is_attacked_straight_through(victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    found = evaluate(purify.wrap(victim, JPEG()), x, y, THREAT, settings=Settings(steps=20), quiet=True)
    assert list(found.broken_by) == ["clean", "transfer", "straight through, cross-entropy"]
    assert found.adaptive.share < 0.3


def test_bad_input(victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(ValueError, match="empty batch"):
        evaluate(victim, x[:0], y[:0], THREAT)
    with pytest.raises(ValueError, match="outside|0 … 9"):
        evaluate(victim, x, y + 1, THREAT, quiet=True)


# ---- the shipped defence, on the embedded digits and on MNIST


def test_digits_keep_their_promise(victim: nn.Module) -> None:
    """What the README says of the digits, within the noise of a subset."""
    x, y = purify.load_dataset("digits", "test").batch(slice(None))
    found = evaluate(purify.wrap(victim, "digits-dsae"), x, y, THREAT, settings=Settings(steps=20), quiet=True)
    assert found.undefended_clean.share >= 0.96
    assert found.undefended["PGD"].share < 0.10
    assert found.recovered["PGD"].share >= 0.88
    assert found.undefended_clean.share - found.clean.share <= 0.012
    assert found.margins["attacked"].median < 0 < found.margins["purified"].median


def test_mnist_keeps_its_promise(mnist_test: purify.data.ImageSet) -> None:
    x, y = mnist_test.first(120).batch(slice(None))
    defended = purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")
    found = evaluate(defended, x, y, ThreatModel("linf", 0.2), settings=Settings(steps=10), quiet=True)
    assert found.undefended_clean.share >= 0.98
    assert found.undefended["PGD"].share < 0.10
    assert found.recovered["PGD"].share >= 0.88
    assert found.undefended_clean.share - found.clean.share <= 0.015
    assert found.margins["attacked"].median < 0 < found.margins["purified"].median
    assert found.purifier_macs <= 0.5 * found.classifier_macs


# ---- reference tables


@pytest.mark.parametrize("name", TABLES)
def test_reference_is_committed_and_agrees_with_itself(name: str) -> None:
    reference = read_reference(name)
    assert reference is not None
    assert compare_with_reference(reference, reference) == []
    spec = TABLES[name]
    assert reference["spec"]["classifier"] == spec.classifier
    assert [row["name"] for row in reference["rows"]] == ["none", *spec.purifiers, "jpeg", "median", "pca"]


def test_differences_from_the_reference_are_named() -> None:
    reference = read_reference("digits")
    assert reference is not None
    other = copy.deepcopy(reference)
    other["rows"][1]["adaptive"]["right"] = other["rows"][1]["adaptive"]["n"]
    assert [d.split(":")[0] for d in compare_with_reference(other, reference)] == ["digits-dsae, adaptive"]
    other = copy.deepcopy(reference)
    other["rows"].pop()
    assert compare_with_reference(other, reference) == ["pca: this row is missing"]
    other = copy.deepcopy(reference)
    other["spec"]["images"] = 7
    assert "made with" in compare_with_reference(other, reference)[0]
    assert read_reference("nothing") is None
