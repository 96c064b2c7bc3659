"""The theory, executed: each statement against an independent computation, and each experiment able to fail."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_root, need
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from purify import load_dataset
from purify.cli import main
from purify.eval.theory.experiments import TheorySettings
from purify.eval.theory.features import cut_patches, dictionary_stability, hoyer_sparsity, learn_features
from purify.eval.theory.landscape import critical_points, loss, recover_atoms, symmetric_codes
from purify.eval.theory.proximal import OPERATORS, compare_with_minimiser
from purify.eval.theory.subspace import compare_with_pca
from purify.linear import fit_linear_autoencoder, principal_angles, principal_components
from purify.sparse import BatchTopK, jump_relu, make_code, top_k


def patches(name: str) -> torch.Tensor:
    if name == "mnist":
        need("mnist")
    images = load_dataset(name, "train", data_root=data_root() if name == "mnist" else None).first(3000).batch(slice(None))[0]
    return images.flatten(1) if name == "digits" else cut_patches(images, 8, 8000).flatten(1)


# ---- PCA and the linear autoencoder


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_linear_autoencoder_finds_the_subspace_of_pca(name: str) -> None:
    found = compare_with_pca(name, patches(name), 10)
    assert found.largest_angle < 1
    assert abs(found.excess) < 1e-3
    assert found.alignment < 0.95  # the subspace, not its axes
    assert found.losses[0] > 2 * found.losses[-1]


def test_principal_components_are_scikit_learns() -> None:
    samples = patches("digits")
    found = principal_components(samples, 12)
    pca = PCA(12, svd_solver="full").fit(samples.double().numpy())
    np.testing.assert_allclose(found.variances.numpy(), pca.explained_variance_, rtol=1e-6)
    assert float(principal_angles(found.directions, torch.from_numpy(pca.components_)).max()) < 1e-4


def test_autoencoder_of_too_many_units_says_so() -> None:
    with pytest.raises(ValueError, match="1 to 3 units"):
        fit_linear_autoencoder(torch.rand(5, 3), 4)
    with pytest.raises(ValueError, match="at least two samples"):
        principal_components(torch.rand(1, 3))


# ---- proximal operators


@pytest.mark.parametrize("name", OPERATORS)
def test_thresholds_solve_their_problems(name: str) -> None:
    found = compare_with_minimiser(name)
    assert found.largest_gap < 1e-6
    assert found.largest_slope_gap < 1e-3


def test_comparison_notices_a_wrong_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = OPERATORS["soft threshold"].__class__(
        lambda v, t: v * (v.abs() > t), OPERATORS["soft threshold"].penalty, False, "a hard threshold is no soft one"
    )
    monkeypatch.setitem(OPERATORS, "soft threshold", wrong)
    assert compare_with_minimiser("soft threshold").largest_gap > 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=6), st.integers(1, 6))
def test_top_k_is_the_best_of_all_supports(values: list[float], k: int) -> None:
    """Against a search through every support of at most k entries."""
    v = torch.tensor([values], dtype=torch.float64)
    best = min(
        float(sum((x if i not in kept else min(x, 0.0)) ** 2 for i, x in enumerate(values)))
        for size in range(min(k, len(values)) + 1)
        for kept in combinations(range(len(values)), size)
    )
    z = top_k(v, k)
    assert float((z - v).square().sum()) == pytest.approx(best, abs=1e-6)
    assert int((z > 0).sum()) <= k
    assert bool((z >= 0).all())


def test_jump_relu_learns_its_threshold_near_the_jump_only() -> None:
    v = torch.tensor([0.2, 0.49, 0.51, 2.0], requires_grad=True)
    threshold = torch.full((4,), 0.5, requires_grad=True)
    z = jump_relu(v, threshold, width=0.1)
    assert z.tolist() == pytest.approx([0, 0, 0.51, 2])
    by_v, by_threshold = torch.autograd.grad(z.sum(), (v, threshold))
    assert by_v.tolist() == [0, 0, 1, 1]
    assert by_threshold.tolist() == pytest.approx([0, -5, -5, 0])  # −θ/w inside the window


def test_batch_top_k_keeps_a_level_and_then_needs_no_batch() -> None:
    code = BatchTopK(0.25, steps=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        out = code(torch.randn(16, 4, 2, 2, generator=generator), torch.zeros(4, 1, 1), 0)
        assert int((out > 0).sum()) == 64
    code.eval()
    v = torch.randn(400, 4, 2, 2, generator=generator)
    alone = torch.cat([code(one[None], torch.zeros(4, 1, 1), 0) for one in v])
    torch.testing.assert_close(alone, code(v, torch.zeros(4, 1, 1), 0))
    assert float((alone > 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_unknown_code_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="known: soft, hard, top-k, batch-top-k"):
        make_code("softmax", density=0.1, steps=1)  # type: ignore[arg-type]


# ---- landscape


def test_penalty_turns_rotated_dictionaries_into_saddles() -> None:
    without, penalised = critical_points(0.0), critical_points(0.1)
    assert [point.kind for point in without] == ["flat"] * 3
    assert [point.kind for point in penalised] == ["strict minimum", "saddle", "saddle"]
    assert all(point.gradient < 1e-8 for point in (*without, *penalised))
    assert penalised[0].value < penalised[1].value < penalised[2].value


def test_hessian_agrees_with_finite_differences() -> None:
    samples = symmetric_codes()
    generator = torch.Generator().manual_seed(0)
    at = torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    way = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    hessian = torch.func.jacrev(torch.func.grad(lambda d: loss(d, samples, 0.1)))(at).view(16, 16)
    step = 1e-4
    difference = (
        loss(at + step * way, samples, 0.1) - 2 * loss(at, samples, 0.1) + loss(at - step * way, samples, 0.1)
    ) / step**2
    assert float(way.flatten() @ hessian @ way.flatten()) == pytest.approx(float(difference), rel=1e-3)


def test_true_atoms_are_found_with_the_penalty_and_not_without() -> None:
    few = {"starts": 8, "steps": 500}
    assert recover_atoms(0.1, **few).recovered == 8
    assert recover_atoms(0.0, **few).recovered == 0


# ---- features


def test_hoyer_sparsity_is_scale_free_and_between_bounds() -> None:
    rows = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    sparsity = hoyer_sparsity(rows)
    assert bool(((sparsity > 0) & (sparsity < 1)).all())
    torch.testing.assert_close(hoyer_sparsity(7 * rows), sparsity)
    assert float(hoyer_sparsity(torch.zeros(1, 4))) == 1


def test_dictionary_stability_knows_shuffled_and_flipped_atoms() -> None:
    atoms = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    shuffled = -atoms[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    assert dictionary_stability(atoms, shuffled) == pytest.approx(1, abs=1e-5)
    assert dictionary_stability(atoms, torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(2))) < 0.8


def test_sparse_features_are_sparser_than_dense_ones() -> None:
    images = load_dataset("digits", "train").batch(slice(None))[0]
    pca, dense, sparse = learn_features("digits", images, side=8, units=32, steps=150, seeds=2)
    assert sparse.l0 < 0.7 * dense.l0
    assert sparse.code_sparsity > dense.code_sparsity
    assert pca.explained_variance > 0.9
    assert all(one.atoms.shape == (32, 1, 8, 8) for one in (pca, dense, sparse))
    with pytest.raises(ValueError, match="patches of 9 pixels"):
        cut_patches(images, 9, 10)


def test_command_runs_the_theory(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(TheorySettings, subspace_steps=500, starts=3, recovery_steps=100, feature_steps=60, feature_seeds=2)
    monkeypatch.setattr("purify.eval.theory.experiments.TheorySettings", few)
    assert main(["audit", "--theory", "--out", str(tmp_path), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "specialised: strict minimum" in said
    page = (tmp_path / "theory" / "theory.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in ("subspace", "proximal", "landscape", "features-digits"))
