"""The low pass against scipy, by frequency, and before a purifier."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

import purify
from purify import DenoisingSparseAutoencoder, DSAEConfig
from purify.checkpoint import read_card, save
from purify.fingerprint import fingerprint_model
from purify.low_pass import low_pass
from purify.training.catalogue import find_recipe
from purify.training.recipes import PurifierRecipe
from purify.training.warm_start import first_weights


@settings(deadline=None)
@given(st.floats(1.01, 4), st.integers(1, 20), st.integers(1, 20))
def test_agrees_with_scipy_at_any_size(factor: float, height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = np.arange(-8, 9)
    kernel = np.where(np.abs(t) < 2 * factor, np.sinc(t / factor) * np.sinc(t / factor / 2), 0)
    kernel /= kernel.sum()
    expected = correlate1d(correlate1d(images.numpy(), kernel, axis=2, mode="nearest"), kernel, axis=3, mode="nearest")
    assert np.allclose(low_pass(images, factor).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("period", "left"), [(16, (0.95, 1.05)), (6, (0.6, 0.95)), (4, (0.4, 0.6)), (3, (0.0, 0.25)), (2.1, (0.0, 0.02))]
)
def test_what_is_finer_than_the_factor_is_gone(period: float, left: tuple[float, float]) -> None:
    wave = torch.sin(2 * torch.pi * torch.arange(240) / period).expand(1, 1, 240, 240)
    inside = low_pass(wave, 2)[..., 20:-20, 20:-20]
    low, high = left
    assert low <= float(inside.std() / wave[..., 20:-20].std()) <= high


def test_one_leaves_everything() -> None:
    images = torch.rand(1, 3, 9, 7)
    assert low_pass(images, 1) is images


def test_the_encoder_sees_no_more(tmp_path: Path) -> None:
    before = purify.load("digits-dsae")
    coarse = purify.load("digits-dsae", low_pass=2)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coarse(images), before(low_pass(images, 2)))
    assert torch.equal(coarse.analyse(images), before.analyse(low_pass(images, 2)))
    assert not torch.equal(coarse(images), before(images))

    card = dataclasses.replace(read_card("digits-dsae"), architecture=dataclasses.asdict(coarse.config))
    save(coarse, card, tmp_path / "coarse.safetensors")
    assert purify.load(tmp_path / "coarse.safetensors").config.low_pass == 2
    assert torch.equal(purify.load(tmp_path / "coarse.safetensors")(images), coarse(images))
    assert torch.equal(purify.load(tmp_path / "coarse.safetensors", low_pass=1)(images), before(images))


def test_training_goes_on_with_another_low_pass() -> None:
    recipe = find_recipe("digits-dsae")
    assert isinstance(recipe, PurifierRecipe)
    coarse = dataclasses.replace(recipe.architecture, low_pass=2.0)
    purifier = first_weights(dataclasses.replace(recipe, warm_start="digits-dsae", architecture=coarse))
    assert purifier.config.low_pass == 2
    assert torch.equal(purifier.atoms, purify.load("digits-dsae").atoms)


@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf")])
def test_factors_that_mean_nothing(factor: float) -> None:
    with pytest.raises(ValueError, match="low_pass must be at least 1"):
        DSAEConfig(low_pass=factor)
    with pytest.raises(ValueError, match="low_pass must be at least 1"):
        purify.load("digits-dsae", low_pass=factor)


def test_gradients_pass() -> None:
    purifier = DenoisingSparseAutoencoder(DSAEConfig(channels=3, units=8, width=4, depth=1, low_pass=2.0))
    images = torch.rand(1, 3, 12, 12, requires_grad=True)
    purifier.relaxed(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_only_a_low_pass_changes_a_purifiers_digest() -> None:
    """Runs that are older than the setting go on, those of another low pass do not."""
    assert "low_pass" not in repr(purify.load("digits-dsae"))
    assert fingerprint_model(purify.load("digits-dsae", low_pass=2)) != fingerprint_model(purify.load("digits-dsae"))
