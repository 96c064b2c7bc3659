"""The whole audit: what it says of purifiers that it cannot measure, of random ones, of colours and of large images."""

from __future__ import annotations

import pytest
import torch
from conftest import quick_classifier
from test_spectrum import FEW, Linear
from torch import Tensor, nn

from purify import load_dataset
from purify.attacks import ThreatModel
from purify.eval.baselines import JPEG, GaussianFilter, GaussianNoise
from purify.eval.spectrum import Audit, AuditSettings, spectral_audit
from purify.eval.spectrum.subjects import matched_blur

LINF = ThreatModel("linf", 0.15)


@pytest.fixture(scope="module")
def natural() -> Tensor:
    return load_dataset("digits", "train").batch(slice(None))[0]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return load_dataset("digits", "test").first(6).batch(slice(None))


def short_audit(
    model: nn.Module,
    purifiers: dict[str, nn.Module],
    natural: Tensor,
    images: Tensor,
    threat: ThreatModel = LINF,
    labels: Tensor | None = None,
) -> Audit:
    """Of few images; without labels (n,) they are what the model says of the images (n, C, H, W)."""
    with torch.no_grad():
        labels = model(images).argmax(1) if labels is None else labels
    return spectral_audit(model, purifiers, natural, images, labels, threat, settings=FEW, quiet=True)


@pytest.mark.usefixtures("unsaved_figures")
def test_audit_of_a_purifier_without_gradient_says_so_and_makes_the_rest(natural: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    audit = short_audit(quick_classifier(), {"jpeg": JPEG()}, natural, digits[0], labels=digits[1])
    assert [e.id for e in audit.exhibits] == ["energy-pca", "energy-dct", "fourier", "margin-spectrum", "band-pgd", "lipschitz"]
    assert any("jpeg passes no gradient" in note for note in audit.notes)
    assert audit.verdicts[0].adaptive == "not measurable"


@pytest.mark.usefixtures("unsaved_figures")
def test_audit_of_a_random_purifier_averages_draws(natural: Tensor, digits: tuple[Tensor, Tensor], toy: nn.Module) -> None:
    audit = short_audit(toy, {"noise": GaussianNoise(0.05)}, natural, digits[0])
    assert any("means over 20 draws" in note for note in audit.notes)
    gain = next(e for e in audit.exhibits if e.id == "gain")
    assert [row[2] for row in gain.rows if row[1] == "PCA"] == list(range(1, 65))


@pytest.mark.usefixtures("unsaved_figures")
def test_audit_of_the_identity_does_not_support_the_claim(
    natural: Tensor, digits: tuple[Tensor, Tensor], quick_victim: nn.Module
) -> None:
    """The measurement can come out against the claim."""
    audit = short_audit(quick_victim, {"identity": nn.Identity()}, natural, digits[0], labels=digits[1])
    assert (audit.verdicts[0].oblivious, audit.verdicts[0].adaptive) == ("not supported", "not supported")


@pytest.mark.usefixtures("unsaved_figures")
def test_audit_of_colour_images_of_odd_size_with_few_natural_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 9, 7, generator=generator)
    natural = torch.rand(20, 3, 9, 7, generator=generator)
    audit = short_audit(model, {"blur": GaussianFilter(0.8)}, natural, images, ThreatModel("l2", 0.5))
    assert any("20 natural images have variance along at most 19 of 189 directions" in note for note in audit.notes)
    assert len(audit.exhibits) == 8


@pytest.mark.usefixtures("unsaved_figures")
def test_audit_of_large_images_takes_no_dense_jacobian() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 48, 48, generator=generator)
    natural = torch.rand(30, 3, 48, 48, generator=generator)
    audit = short_audit(model, {"blur": GaussianFilter(1.0)}, natural, images, ThreatModel("linf", 0.03))
    jacobian = next(e for e in audit.exhibits if e.id == "jacobian")
    largest = next(row[3] for row in jacobian.rows if row[2] == "largest singular value")
    assert largest == pytest.approx(1, abs=0.05)  # a blur passes what is smooth; a flat top of the spectrum is underestimated


def test_audit_rejects_what_it_cannot_compare(natural: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    classifier, threat = quick_classifier(), LINF
    with pytest.raises(ValueError, match="at least one purifier"):
        spectral_audit(classifier, {}, natural, *digits, threat)
    with pytest.raises(ValueError, match="natural images are"):
        spectral_audit(classifier, {"same": nn.Identity()}, natural[..., :7], *digits, threat)
    with pytest.raises(ValueError, match="at least two samples"):
        spectral_audit(classifier, {"same": nn.Identity()}, natural[:1], *digits, threat)
    with pytest.raises(ValueError, match="images must be at least 1"):
        AuditSettings(images=0)
    assert AuditSettings.suited(784) == AuditSettings()
    assert AuditSettings.suited(3 * 224 * 224, images=None, seed=3).images < AuditSettings().images
    assert AuditSettings.suited(3 * 224 * 224, images=7).images == 7


def test_matched_blur_costs_no_more_than_the_purifier() -> None:
    images, labels = load_dataset("digits", "val").batch(slice(None))
    classifier = quick_classifier()
    gentle = matched_blur(classifier, nn.Identity(), images, labels)
    free = matched_blur(classifier, Linear(torch.zeros(64, 64)), images, labels)  # costs nearly everything
    assert gentle.sigma < free.sigma
