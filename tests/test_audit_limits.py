"""Where an audit could say more than it measured: directions that a basis leaves out, few images, rounding, hidden gradients."""

from __future__ import annotations

import csv
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from purify.attacks import ThreatModel
from purify.eval.exhibit import Exhibit
from purify.eval.spectrum import Audit, AuditSettings, spectral_audit
from purify.eval.spectrum.band_attacks import smallest_norms
from purify.eval.spectrum.bases import Band, CosineBasis, pca_basis
from purify.eval.spectrum.claim import paired_ratio
from purify.eval.spectrum.energy import energy_spectrum
from purify.eval.spectrum.gains import GainCurve
from purify.eval.spectrum.margin_exhibits import lipschitz_exhibit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def large() -> Audit:
    """Of the identity, which lets everything through, before a small classifier of images with 4,800 values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model, images = nn.Sequential(*layers).eval(), draw(2, 3, 40, 40)
    with torch.no_grad():
        labels = model(images).argmax(1)
    few = AuditSettings(
        images=2, jacobians=1, natural=9, directions=6, attack_steps=2, norm_steps=2, band_images=1, band_steps=1, frequencies=2
    )
    natural, threat = draw(9, 3, 40, 40, seed=1), ThreatModel("linf", 0.03)
    return spectral_audit(model, {"identity": nn.Identity()}, natural, images, labels, threat, settings=few, quiet=True)


def test_energy_that_is_left_counts_the_directions_that_a_basis_leaves_out(large: Audit) -> None:
    images, change = draw(9, 1, 12, 12), draw(4, 1, 12, 12, seed=1) - 0.5
    spectrum = energy_spectrum(pca_basis(images, 3), "oblivious", change, 0.5 * change)
    assert sum(spectrum.after) < 0.1
    assert spectrum.left == pytest.approx(0.25)
    found = next(exhibit.found for exhibit in large.exhibits if exhibit.id == "energy-pca")
    assert "identity, oblivious: 100 % of the energy is left" in found
    assert "in the directions that are drawn" in found


def test_bands_of_unequal_dimension_are_not_called_thirds(large: Audit) -> None:
    assert any("have 3, 3 and 4,794 dimensions" in note for note in large.notes)
    assert not any("third" in sentence for sentence in large.words())
    reading = next(exhibit.reading for exhibit in large.exhibits if exhibit.id == "margin-spectrum")
    assert "equal dimension" not in reading


def test_words_say_what_the_adaptive_attack_was(large: Audit) -> None:
    assert any("PGD of 2 steps along the exact gradient alone" in sentence for sentence in large.words())


def test_few_images_have_no_interval_and_decide_nothing(large: Audit) -> None:
    """The least and the largest of five values enclose their median with less than 95 %."""
    five, six = (paired_ratio(torch.linspace(1.1, 1.5, n), torch.ones(n)) for n in (5, 6))
    assert five.low != five.low
    assert "5 images: too few for an interval" in str(five)
    assert six.low > 1
    assert large.verdicts[0].adaptive != "supported"


def test_a_constant_gain_rises_with_nothing_whatever_the_rounding() -> None:
    gains = 0.7 + 1e-7 * (draw(1, 64) - 0.5).expand(5, 64)
    curve = GainCurve.of("PCA", torch.arange(64), torch.linspace(1, 0, 64), gains)
    assert curve.correlation.value != curve.correlation.value


def test_norms_are_found_where_the_margin_is_within_bfloat16s_rounding() -> None:
    """Logits of 40 are a quarter apart in bfloat16: every image seems to stand, or to be broken by nothing."""
    weights = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    difference = weights[0] - weights[1]

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights.T + 40

    images = draw(300, 1, 4, 4)
    labels = model(images).argmax(1)
    margins = (images.flatten(1) @ difference).abs()
    near = (margins > 0.01) & (margins < 0.2)
    assert int(near.sum()) > 5
    everything = Band("all", CosineBasis((1, 4, 4)), 0, 16)
    found = smallest_norms(model, images[near], labels[near], everything, bfloat16=True)
    exact = margins[near] / difference.norm()
    assert bool(torch.isfinite(found).all())
    assert float((found / exact).max()) < 2


def test_images_without_a_gradient_are_named_and_none_is_cut_off_the_figure() -> None:
    slopes = torch.tensor([1.0, 1.0, 1.0, 1e-6, 0.0])
    measured = SimpleNamespace(
        subject=SimpleNamespace(name="masked"),
        clean_slope=slopes,
        clean_margin=torch.ones(5),
        norms={"all": torch.arange(1.0, 6)},
    )
    exhibit = lipschitz_exhibit([cast(Any, measured)], cast(Any, None))
    assert exhibit is not None
    assert "1 more without a gradient or a break" in exhibit.found
    assert len(exhibit.rows) == 4


def test_numbers_that_are_not_known_are_empty_in_a_csv() -> None:
    exhibit = Exhibit(id="a", title="", reading="", found="", columns=("n", "x"), rows=[(1, 0.5), (2, float("nan")), (3, None)])
    assert list(csv.reader(exhibit.csv().splitlines())) == [["n", "x"], ["1", "0.5"], ["2", ""], ["3", ""]]
    assert "–" in exhibit.markdown()


def test_what_an_audit_cannot_take_is_said_before_it_is_measured() -> None:
    images, labels, threat = draw(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1)
    with pytest.raises(ValueError, match='no purifier can be called "bare"'):
        spectral_audit(nn.Flatten(), {"bare": nn.Identity()}, images, images, labels, threat)
    with pytest.raises(ValueError, match="empty batch"):
        spectral_audit(nn.Flatten(), {"same": nn.Identity()}, images, images[:0], labels[:0], threat)
    with pytest.raises(ValueError, match="frequencies must be at least 2, got 1"):
        AuditSettings(frequencies=1)
    with pytest.raises(ValueError, match="fourier_images must be at least 1, got 0"):
        AuditSettings(fourier_images=0)
