"""The noise estimate against the truth, against scikit-image, and on images that hold none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.restoration import estimate_sigma

from purify.noise import estimate_noise


@given(st.floats(0.001, 0.3), st.integers(0, 10**6))
def test_white_noise_is_found(sigma: float, seed: int) -> None:
    noise = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    found = estimate_noise(0.5 + sigma * noise, stride=4)
    assert found.shape == (2, 1, 16, 24)
    assert found.mean((1, 2, 3)).tolist() == pytest.approx([sigma, sigma], rel=0.05)
    assert found[..., 4:-4, 4:-4].flatten().tolist() == pytest.approx([sigma] * (2 * 8 * 16), rel=0.2)


def test_noise_is_found_where_it_is() -> None:
    image = torch.full((1, 1, 64, 64), 0.5)
    image[..., :32] += 0.1 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    found = estimate_noise(image, stride=2)
    assert found[..., :11].mean() > 0.08
    assert found[..., 21:].abs().max() < 1e-6


def test_agrees_with_the_wavelet_estimate_on_a_picture() -> None:
    rows, columns = np.mgrid[0:128, 0:128] / 128
    smooth = 0.5 + 0.3 * np.sin(4 * rows) * np.cos(3 * columns)
    noisy = smooth + 0.03 * np.random.default_rng(0).standard_normal(smooth.shape)
    theirs = estimate_sigma(noisy)
    ours = estimate_noise(torch.from_numpy(noisy)[None, None]).mean().item()
    assert ours == pytest.approx(theirs, rel=0.05)
    assert ours == pytest.approx(0.03, rel=0.05)


def test_ramps_and_edges_are_no_noise() -> None:
    ramp = torch.linspace(0, 1, 20).expand(1, 1, 20, 20)
    edge = (ramp > 0.5).float()
    for image in (ramp, edge, ramp.transpose(2, 3)):
        assert estimate_noise(image).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3)])
def test_tiny_images(size: tuple[int, int]) -> None:
    found = estimate_noise(torch.rand(2, 1, *size))
    assert found.shape == (2, 1, *size)
    assert torch.isfinite(found).all()
