"""The purifier: shapes, sparsity, the dictionary's norm, and ISTA against scikit-learn."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from purify import DenoisingSparseAutoencoder, DSAEConfig
from purify.noise import estimate_noise


def small(**changes: object) -> DenoisingSparseAutoencoder:
    torch.manual_seed(0)
    return DenoisingSparseAutoencoder(DSAEConfig(**{"units": 8, "width": 6, "depth": 1, "channels": 3, **changes})).eval()  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    encoder=st.sampled_from(["deep", "linear", "tied"]),
    steps=st.integers(1, 3),
    stride=st.integers(1, 4),
)
def test_any_size(channels: int, height: int, width: int, encoder: str, steps: int, stride: int) -> None:
    purifier = small(channels=channels, encoder=encoder, steps=steps, stride=stride, atom=stride + 2)
    images = torch.rand(2, channels, height, width)
    with torch.no_grad():
        code = purifier.encode(images)
        purified = purifier(images)
    assert code.shape == (2, 8, -(-height // stride), -(-width // stride))
    assert code.min() >= 0
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(purified, purifier.decode(code, size=(height, width)))


def test_atoms_have_unit_norm_and_thresholds_are_never_negative() -> None:
    purifier = small()
    with torch.no_grad():
        purifier.atoms.mul_(7)
        purifier.raw_threshold.fill_(-30)
    assert torch.allclose(purifier.dictionary.flatten(1).norm(dim=1), torch.ones(8))
    assert (purifier.threshold >= 0).all()


def test_one_step_is_the_classic_sparse_autoencoder() -> None:
    purifier = small(encoder="linear", channels=1)
    images = torch.rand(2, 1, 10, 10)
    by_hand = torch.relu(purifier.analysis(images - purifier.offset) - purifier.threshold)
    assert torch.allclose(purifier.encode(images), by_hand)


def test_unrolled_tied_steps_descend_from_the_start() -> None:
    """With overlapping atoms ‖DᵀD‖ exceeds 2: a step of 1 would diverge."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (1, 2, 4, 8):
        torch.manual_seed(0)
        purifier = small(channels=1, units=32, atom=4, stride=2, encoder="tied", steps=steps)
        assert purifier.tied_analysis_norm((8, 8)) > 2
        with torch.no_grad():
            purifier.raw_threshold.fill_(-20.0)  # no threshold: least squares
            errors.append(float((purifier.relaxed(x) - x).square().mean()))
    assert errors[1] > errors[2] > errors[3]


def test_unrolled_tied_steps_solve_the_lasso() -> None:
    """With atoms as large as the image there is one position, and ISTA must reach scikit-learn's non-negative lasso."""
    side, units, eta, penalty = 6, 20, 0.1, 0.05
    purifier = small(channels=1, units=units, atom=side, stride=side, encoder="tied", steps=3000).double()
    with torch.no_grad():
        purifier.log_step_size.fill_(np.log(eta))
        purifier.raw_threshold.fill_(np.log(np.expm1(eta * penalty)))
        purifier.offset.fill_(0.3)
        image = torch.rand(1, 1, side, side, dtype=torch.float64)
        code = purifier.encode(image).flatten()
    assert eta < 2 / purifier.tied_analysis_norm((side, side))
    dictionary = purifier.dictionary.detach().flatten(1).numpy().T  # (pixels, units)
    target = (image - 0.3).flatten().numpy()
    lasso = Lasso(alpha=penalty / len(target), positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = lasso.fit(dictionary, target).coef_
    assert 0 < (expected > 0).sum() < units
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-6)


def test_norm_of_the_dictionary_against_dense_algebra() -> None:
    purifier = small(channels=1, encoder="tied", atom=4, stride=2).double()
    basis = torch.eye(8 * 4 * 4, dtype=torch.float64).view(-1, 8, 4, 4)
    dense = purifier._synthesise(basis).flatten(1).T
    assert purifier.tied_analysis_norm((8, 8), iterations=500) == pytest.approx(
        torch.linalg.matrix_norm(dense, 2).item() ** 2, rel=1e-3
    )


def test_statistics_by_hand() -> None:
    purifier = small(channels=1)
    images = torch.rand(5, 1, 8, 8)
    code = purifier.encode(images)
    found = purifier.statistics(images)
    assert found.l0 == pytest.approx(float((code > 0).sum() / 5))
    assert found.density == pytest.approx(found.l0 / code[0].numel())
    rest, spread = (images - purifier(images)).square().sum(), (images - images.mean(0)).square().sum()
    assert found.explained_variance == pytest.approx((1 - rest / spread).item(), abs=1e-5)
    with torch.no_grad():
        purifier.raw_threshold[3] = 1e4
    assert purifier.statistics(images).dead_units >= 1 / 8
    whole, parts = purifier.statistics(images), purifier.statistics(images, batch_size=2)
    assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 19), width=st.integers(1, 19), stride=st.sampled_from([4, 8]))
def test_pyramid_takes_any_size_and_purifies_each_image_by_itself(height: int, width: int, stride: int) -> None:
    purifier = small(encoder="pyramid", stride=stride, atom=stride + 4)
    images = torch.rand(3, 3, height, width)
    with torch.no_grad():
        purified = purifier(images)
        alone = torch.cat([purifier(image[None]) for image in images])
    assert purified.shape == images.shape
    assert torch.allclose(purified, alone, atol=1e-5)


def test_pyramid_joins_its_scales() -> None:
    """A change in one corner reaches the code in the opposite one, through the coarse scale alone."""
    purifier = small(encoder="pyramid", stride=4, atom=8, depth=2, width=16)
    for module in purifier.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    x = torch.rand(1, 3, 32, 32)
    y = x.clone()
    y[..., :4, :4] = 1 - y[..., :4, :4]
    with torch.no_grad():
        assert not torch.equal(purifier.analyse(x)[..., -1, -1], purifier.analyse(y)[..., -1, -1])


@pytest.mark.parametrize("changes", [{"depth": 2}, {"encoder": "pyramid", "stride": 4, "atom": 8, "depth": 2, "global_units": 4}])
def test_every_layer_learns(changes: dict[str, object]) -> None:
    """A block that begins as the identity must not stay it: a layer whose gradient is zero for ever would only cost time."""
    purifier = small(**changes).train()
    optimizer = torch.optim.SGD(purifier.parameters(), lr=0.01)
    images = torch.rand(8, 3, 16, 16)
    for _ in range(3):
        optimizer.zero_grad()
        purifier.relaxed(images).sub(images).square().mean().backward()
        optimizer.step()
    assert not [name for name, p in purifier.named_parameters() if not p.grad.abs().sum() > 0]


def test_global_units_see_and_write_on_the_whole_image() -> None:
    plain = small(encoder="pyramid", stride=4, atom=8)
    purifier = small(encoder="pyramid", stride=4, atom=8, global_units=5, global_atom=16)
    shared = {k: v for k, v in purifier.state_dict().items() if "global" not in k and not k.startswith("whole")}
    plain.load_state_dict(shared)
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        purifier.whole.norm.bias.copy_(torch.tensor([0.5, 1.0, 0.0, 2.0, -1.0]))
        code = purifier.encode(images)
        assert code.shape == (3, 8 + 5, 4, 4)
        assert torch.equal(code[:, :8], plain.encode(images))  # the local units are what they were
        first = purifier.global_code(code)
        assert (first > 0).any()
        assert purifier.statistics(images).density == pytest.approx(float((code > 0).sum() / 3) / (8 * 16 + 5))
        assert torch.equal(code[:, 8:].sum((2, 3)), first)  # they have one position, and are counted once
        atoms = torch.nn.functional.normalize(purifier.whole.atoms.flatten(1), dim=1).view(5, 3, 16, 16)
        pattern = torch.einsum("ng,gchw->nchw", first, atoms)
        assert torch.allclose(purifier.synthesise(code), plain.synthesise(code[:, :8]) + pattern, atol=1e-5)
        larger = purifier.synthesise(purifier.encode(torch.rand(1, 3, 21, 30)), (21, 30))
        assert larger.shape == (1, 3, 21, 30)
        summary = purifier.analyse(images)[:, 8:, 0, 0]
        assert torch.allclose(first, (summary - purifier.threshold[8:].flatten()).relu(), atol=1e-6)
    alone = torch.cat([purifier(image[None]) for image in images])
    assert torch.allclose(purifier(images), alone, atol=1e-5)


def test_the_encoders_parameters_decide_the_code_and_no_others() -> None:
    purifier = small(encoder="pyramid", stride=4, atom=8, global_units=5, global_atom=16)
    images = torch.rand(2, 3, 16, 16)
    before = purifier.encode(images)
    of_encoder = {id(p) for p in purifier.encoder_parameters()}
    with torch.no_grad():
        for parameter in purifier.parameters():
            if id(parameter) not in of_encoder:
                parameter.add_(torch.randn_like(parameter))
    assert torch.equal(purifier.encode(images), before)
    assert len(of_encoder) == len(list(purifier.parameters())) - 2


def test_of_several_steps_the_atoms_decide_the_code_too() -> None:
    """Each step encodes what the last one did not rebuild."""
    purifier = small(encoder="linear", steps=2)
    images = torch.rand(2, 3, 8, 8)
    before = purifier.encode(images)
    with torch.no_grad():
        purifier.atoms.add_(torch.randn_like(purifier.atoms))
    assert not torch.equal(purifier.encode(images), before)
    assert any(parameter is purifier.atoms for parameter in purifier.encoder_parameters())


@pytest.mark.parametrize("encoder", ["deep", "pyramid"])
def test_shortcut_starts_as_a_linear_autoencoder_and_learns_beyond_it(encoder: str) -> None:
    purifier = small(encoder=encoder, shortcut=True, units=96, atom=6, stride=4, width=8)
    images = torch.rand(4, 3, 12, 12)
    linear = torch.nn.functional.conv2d(images - purifier.offset, purifier.dictionary, None, 4, 1)
    assert torch.allclose(purifier.analyse(images), 0.5 * linear, atol=1e-5)
    assert torch.equal(purifier.atoms[48:], -purifier.atoms[:48])  # with its negative each atom passes either sign
    purifier.relaxed(images).sub(images).square().sum().backward()
    assert purifier.analysis.weight.grad.abs().sum() > 0


def test_adaptive_thresholds_follow_the_noise_around_each_place() -> None:
    purifier, plain = small(adaptive=True), small()
    shared = {name: value for name, value in purifier.state_dict().items() if name != "raw_threshold_slope"}
    plain.load_state_dict(shared)
    flat, noisy = torch.full((1, 3, 40, 40), 0.5), 0.5 + 0.1 * torch.randn(1, 3, 40, 40)
    assert torch.allclose(purifier.encode(flat), plain.encode(flat), atol=1e-6)  # no noise: the thresholds of the other one
    rise = torch.nn.functional.softplus(purifier.raw_threshold_slope) * estimate_noise(noisy, purifier.config.stride)
    assert torch.allclose(purifier.encode(noisy), (purifier.analyse(noisy) - purifier.threshold - rise).relu(), atol=1e-6)
    beside = torch.cat([flat, noisy], dim=3)  # quiet on the left, noisy on the right
    assert torch.allclose(purifier.encode(beside)[..., :5], plain.encode(beside)[..., :5], atol=1e-6)
    purifier.encode(noisy).sum().backward()
    assert purifier.raw_threshold_slope.grad.abs().sum() > 0
    assert "raw_threshold_slope" in dict(purifier.unit_rows())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shortcut": True},
        {"adaptive": True},
        {"encoder": "pyramid", "stride": 4, "atom": 8},
        {"encoder": "linear"},
        {"encoder": "tied"},
    ],
)
def test_revived_units_fire_again(changes: dict[str, object]) -> None:
    purifier = small(channels=1, **changes)
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        purifier.train()
        for _ in range(30):  # batch statistics, where there are some
            purifier(images)
        purifier.eval()
        purifier.raw_threshold[:4] = 1e4
    before = copy.deepcopy(purifier)
    assert not (purifier.encode(images)[:, :4] > 0).any()
    purifier.revive(torch.arange(4), images, torch.Generator().manual_seed(0))
    assert (purifier.encode(images)[:, :4] > 0).any()
    assert torch.equal(before.atoms[4:], purifier.atoms[4:])
    assert not torch.equal(before.atoms[:4], purifier.atoms[:4])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shortcut": True},
        {"encoder": "pyramid", "stride": 4, "atom": 8},
        {"encoder": "pyramid", "stride": 4, "atom": 8, "global_units": 3, "global_atom": 8},
    ],
)
def test_gradient_reaches_the_input_and_every_parameter(changes: dict[str, object]) -> None:
    purifier = small(**changes).train()
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    purifier(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in purifier.parameters())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"depth": -1}, "depth must not be negative"),
        ({"atom": 5, "stride": 2}, "even number.*got atom 5 with stride 2"),
        ({"atom": 2, "stride": 4}, "at least the stride"),
        ({"encoder": "other"}, "'other'"),
        ({"encoder": "tied", "shortcut": True}, "shortcut is for the encoders 'deep' and 'pyramid', got 'tied'"),
        ({"encoder": "pyramid", "stride": 2}, "stride that is a multiple of 4"),
        ({"global_units": -1}, "global_units must not be negative"),
        (
            {"global_units": 4, "encoder": "pyramid", "stride": 4, "atom": 8, "code": "top-k"},
            "code 'soft' or 'hard', got.*'top-k'",
        ),
        ({"global_units": 4}, "global_units need encoder 'pyramid'.*got encoder 'deep'"),
    ],
)
def test_bad_config(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DSAEConfig(**changes)  # type: ignore[arg-type]
