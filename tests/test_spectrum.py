"""The audit's measurements on purifiers whose spectrum is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quick_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from torch import Tensor, nn

from purify import load, load_dataset
from purify.eval.baselines import JPEG, GaussianFilter
from purify.eval.spectrum import AuditSettings
from purify.eval.spectrum.band_attacks import band_accuracy, margin_slopes, smallest_norms
from purify.eval.spectrum.bases import Band, CosineBasis, bands, pca_basis, random_basis
from purify.eval.spectrum.energy import energy_spectrum
from purify.eval.spectrum.fourier import fourier_direction, fourier_map
from purify.eval.spectrum.gains import GainCurve, fit_wiener, wiener_gain
from purify.eval.spectrum.jacobian import (
    JacobianSummary,
    NotDifferentiableError,
    check_differentiable,
    dense_jacobian,
    directional_gains,
    leading_spectrum,
    spectrum_of,
)

FEW = AuditSettings(images=6, jacobians=2, attack_steps=3, norm_steps=6, band_images=4, band_steps=2, frequencies=3, natural=200)


class Linear(nn.Module):
    """x ↦ A x on flattened images: its Jacobian is A, everywhere."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.matrix.T.to(images)).view_as(images)


@pytest.fixture(scope="module")
def natural() -> Tensor:
    return load_dataset("digits", "train").batch(slice(None))[0]


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wiener(natural: Tensor, sigma: float) -> tuple[Linear, Tensor]:
    """The Wiener filter in the principal components' basis, and its gains."""
    basis = pca_basis(natural)
    gains = torch.from_numpy(wiener_gain(basis.order.numpy(), sigma)).float()
    return Linear(basis.directions.T @ torch.diag(gains) @ basis.directions), gains


# ---- bases


def test_principal_components_are_a_whole_orthonormal_basis(natural: Tensor) -> None:
    basis = pca_basis(natural)
    assert len(basis) == 64
    torch.testing.assert_close(basis.directions @ basis.directions.T, torch.eye(64), atol=1e-4, rtol=0)
    assert bool((basis.order.diff() <= 1e-9).all())
    torch.testing.assert_close(basis.analyse(natural).double().var(0)[:30], basis.order[:30], atol=1e-5, rtol=1e-3)


def test_fewer_images_than_directions_leave_the_rest_without_variance(natural: Tensor) -> None:
    basis = pca_basis(natural[:10])
    assert len(basis) == 64
    assert int((basis.order > 0).sum()) == 9
    torch.testing.assert_close(basis.directions @ basis.directions.T, torch.eye(64), atol=1e-4, rtol=0)


def test_large_images_get_a_partial_basis_whose_last_band_is_all_the_rest() -> None:
    images = torch.rand(12, 3, 40, 40, generator=torch.Generator().manual_seed(0))  # 4,800 values
    basis = pca_basis(images, limit=6)
    assert len(basis) == 6
    parts = bands(basis)
    assert [part.size for part in parts] == [3, 3, 4794]
    x = noise((2, 3, 40, 40))
    torch.testing.assert_close(sum(part.project(x) for part in parts), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 1, 9)])
def test_cosines_are_scipys_and_ordered_by_frequency(shape: tuple[int, int, int]) -> None:
    basis = CosineBasis(shape)
    x = noise((3, *shape))
    expected = dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(3, -1)
    np.testing.assert_allclose(np.sort(basis.analyse(x).numpy(), 1), np.sort(expected, 1), atol=1e-5)
    assert bool((basis.order.diff() >= 0).all())
    assert basis.order[0] == 0
    torch.testing.assert_close(basis.synthesise(basis.analyse(x)), x, atol=1e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))
def test_bands_cut_an_image_into_orthogonal_parts(channels: int, height: int, width: int) -> None:
    basis = CosineBasis((channels, height, width))
    x = noise((2, channels, height, width))
    parts = [band.project(x) for band in bands(basis)]
    torch.testing.assert_close(sum(parts), x, atol=1e-4, rtol=0)
    total = sum(part.square().sum() for part in parts)
    torch.testing.assert_close(total, x.square().sum(), atol=1e-3, rtol=1e-4)
    for band, part in zip(bands(basis), parts, strict=True):
        torch.testing.assert_close(band.project(part), part, atol=1e-4, rtol=0)


def test_random_directions_are_orthonormal() -> None:
    basis = random_basis((1, 5, 5), 7)
    torch.testing.assert_close(basis.directions @ basis.directions.T, torch.eye(7), atol=1e-5, rtol=0)


# ---- gains and Jacobians in closed form


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_wiener_filter_has_its_gains_and_is_found(natural: Tensor, sigma: float) -> None:
    purifier, expected = wiener(natural, sigma)
    basis = pca_basis(natural)
    gains = directional_gains(purifier, natural[0], basis.direction(torch.arange(64)))
    torch.testing.assert_close(gains, expected, atol=1e-3, rtol=0)
    curve = GainCurve.of("PCA", torch.arange(len(basis)), basis.order, torch.stack([gains, gains]))
    assert curve.noise == pytest.approx(sigma, rel=1e-2)
    assert curve.wiener_error < 1e-3
    assert curve.correlation.value > 0.999
    assert fit_wiener(basis.order.numpy(), expected.double().numpy()) == pytest.approx(sigma, rel=1e-2)


def test_projection_has_gains_of_one_and_zero(natural: Tensor) -> None:
    basis = pca_basis(natural)
    kept = basis.directions[:20]
    purifier = Linear(kept.T @ kept)
    gains = directional_gains(purifier, natural[0], basis.direction(torch.arange(64)))
    torch.testing.assert_close(gains, torch.cat([torch.ones(20), torch.zeros(44)]), atol=1e-3, rtol=0)
    summary = JacobianSummary.of(spectrum_of(dense_jacobian(purifier, natural[0])), basis.directions)
    assert summary.effective_dimension == pytest.approx(20, abs=1e-2)
    assert summary.symmetry == pytest.approx(1, abs=1e-3)
    assert summary.overlap == pytest.approx(1, abs=1e-3)
    assert summary.overlap_by_chance == pytest.approx(20 / 64)


def test_identity_passes_everything(natural: Tensor) -> None:
    spectrum = spectrum_of(dense_jacobian(nn.Identity(), natural[0] + 0.0))
    torch.testing.assert_close(spectrum.values, torch.ones(64), atol=1e-4, rtol=0)
    curve = GainCurve.of("PCA", torch.arange(64), pca_basis(natural).order, torch.ones(3, 64))
    assert np.isnan(curve.correlation.value)  # a constant rises with nothing


def test_blur_passes_a_wave_as_its_kernel_says() -> None:
    """A wave that fits the image passes a circular Gaussian blur with exp(−σ²ω²/2), sampled: the kernel's own sum."""
    purifier, side, sigma = GaussianFilter(1.0), 32, 1.0
    x = torch.full((1, 1, side, side), 0.5)
    offsets = torch.arange(-3, 4).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for frequency in (1, 4, 8):
        wave = fourier_direction(0, frequency, side, side, 1)
        middle = torch.zeros_like(wave)
        middle[..., 8:-8] = wave[..., 8:-8]  # away from the border, where torchvision reflects
        passed = purifier(x + 0.1 * wave) - x
        expected = float((kernel * torch.cos(2 * torch.pi * frequency * offsets / side)).sum())
        measured = float((passed * middle).sum() / (0.1 * wave * middle).sum())
        assert measured == pytest.approx(expected, abs=1e-3)


def test_randomised_spectrum_is_the_dense_one() -> None:
    draw = noise((100, 100))
    left, _, right = torch.linalg.svd(draw)
    values = 0.7 ** torch.arange(100).float()
    purifier, image = Linear(left @ torch.diag(values) @ right), torch.rand(1, 10, 10)
    found = leading_spectrum(purifier, image, 12, iterations=3)
    torch.testing.assert_close(found.values, values[:12], atol=1e-3, rtol=0)
    torch.testing.assert_close((found.right * right[:12]).sum(1).abs(), torch.ones(12), atol=1e-3, rtol=0)
    torch.testing.assert_close((found.left * left.T[:12]).sum(1).abs(), torch.ones(12), atol=1e-3, rtol=0)


def test_effective_dimension_counts_more_than_the_listed_singular_values() -> None:
    """A projection onto 80 of 144 directions, of which 12 are listed."""
    basis = torch.linalg.qr(noise((144, 80)))[0]
    found = leading_spectrum(Linear(basis @ basis.T), torch.rand(1, 12, 12), 12)
    summary = JacobianSummary.of(found, torch.eye(144)[:64])
    assert len(summary.values) == 12
    assert summary.effective_dimension == pytest.approx(80, rel=0.15)


def test_jacobian_of_a_trained_purifier_agrees_with_autograd() -> None:
    purifier = load("digits-dsae")
    image = load_dataset("digits", "test").batch(slice(0, 1))[0][0]
    expected = torch.autograd.functional.jacobian(lambda x: purifier(x[None])[0], image).view(64, 64)
    torch.testing.assert_close(dense_jacobian(purifier, image), expected, atol=1e-5, rtol=0)


def test_purifiers_without_gradient_are_told_apart() -> None:
    check_differentiable(nn.Identity(), torch.rand(1, 4, 4))
    for purifier in (JPEG(), lambda x: x.round(), lambda x: x * float("nan")):
        with pytest.raises(NotDifferentiableError):
            check_differentiable(purifier, torch.rand(1, 8, 8))


# ---- energies


def test_energies_add_up_and_follow_the_filter(natural: Tensor) -> None:
    purifier, gains = wiener(natural, 0.3)
    change = noise((5, 1, 8, 8)) * 0.1
    spectrum = energy_spectrum(pca_basis(natural), "oblivious", change, purifier(change))
    assert sum(spectrum.before) == pytest.approx(1, abs=1e-4)
    assert sum(spectrum.after) == pytest.approx(float(purifier(change).square().sum() / change.square().sum()), abs=1e-4)
    assert all(
        low - 1e-9 <= b <= high + 1e-9
        for low, b, high in zip(spectrum.before_low, spectrum.before, spectrum.before_high, strict=True)
    )
    assert spectrum.passed[0] == pytest.approx(float(gains[0] ** 2), rel=0.1)
    assert spectrum.passed[-1] < 1e-6


# ---- margins in bands


def linear_classifier(seed: int = 0) -> tuple[nn.Module, Tensor]:
    weights = noise((2, 64), seed)

    class Classifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ weights.T

    return Classifier(), weights[0] - weights[1]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_smallest_norm_in_a_band_of_a_linear_classifier(place: int) -> None:
    """It is the margin over the length of the projected weight difference."""
    model, difference = linear_classifier()
    band = bands(CosineBasis((1, 8, 8)))[place]
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    margins, slopes = margin_slopes(model, images, labels)
    torch.testing.assert_close(slopes, difference.norm().expand(6), atol=1e-4, rtol=0)
    expected = margins / band.project(difference.view(1, 1, 8, 8)).norm()
    found = smallest_norms(model, images, labels, band)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


def test_no_norm_where_a_band_cannot_break_anything() -> None:
    """A purifier that removes a band leaves nothing to attack in it."""
    low, _, high = bands(CosineBasis((1, 8, 8)))
    model, _ = linear_classifier()
    images = torch.rand(4, 1, 8, 8)
    labels = model(low.project(images)).argmax(1)
    purified = Linear(torch.stack([low.project(row.view(1, 1, 8, 8)).flatten() for row in torch.eye(64)], 1))
    assert not torch.isfinite(smallest_norms(lambda x: model(purified(x)), images, labels, high)).any()
    assert torch.isfinite(smallest_norms(lambda x: model(purified(x)), images, labels, low)).all()


def test_pgd_in_bands_falls_with_the_radius_and_says_what_leaked() -> None:
    digits = load_dataset("digits", "test").first(12).batch(slice(None))
    classifier = quick_classifier()
    everything = Band("all", CosineBasis((1, 8, 8)), 0, 64)
    curve = band_accuracy(classifier, *digits, everything, [0.1, 0.4, 1.6, 6.4])
    assert all(a >= b for a, b in zip(curve.accuracy, curve.accuracy[1:], strict=False))
    assert curve.accuracy[-1] == 0
    assert all(leak < 1e-6 for leak in curve.leak if leak == leak)  # nothing can leak out of the whole space
    low = bands(CosineBasis((1, 8, 8)))[0]
    assert any(leak > 0.01 for leak in band_accuracy(classifier, *digits, low, [1.0, 4.0]).leak if leak == leak)


# ---- Fourier map


def test_fourier_waves_are_orthonormal_and_the_identity_passes_them() -> None:
    assert abs(float((fourier_direction(1, 0, 8, 8, 1) * fourier_direction(0, 1, 8, 8, 1)).sum())) < 1e-6
    images, labels = load_dataset("digits", "test").first(8).batch(slice(None))
    found = fourier_map(quick_classifier(), nn.Identity(), images, labels, 0.5)
    assert found.transfer == pytest.approx([1.0] * len(found.transfer), abs=1e-5)
    assert all(low <= error <= high for low, error, high in zip(found.low, found.error, found.high, strict=True))
    assert (found.down[0], found.across[0]) == (0, 0)


def test_fourier_map_of_odd_sizes_and_colours() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 9, 4)).eval()
    images = torch.rand(3, 3, 7, 9)
    found = fourier_map(model, GaussianFilter(0.5), images, model(images).argmax(1), 0.1, most=4)
    assert len(found.error) == len(found.transfer) == len(set(zip(found.down, found.across, strict=True)))
