"""Baselines: each is what its library or its formula says, and a module from images to images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import median as skimage_median
from torch import nn

import purify
from purify.attacks import FGSM
from purify.attacks.result import AttackResult
from purify.checkpoint import load_classifier, load_denoiser, read_card, save
from purify.eval import Settings, evaluate, judge, trained
from purify.eval.baselines import (
    BASELINES,
    JPEG,
    BitDepth,
    GaussianFilter,
    GaussianNoise,
    MedianFilter,
    PCAProjection,
    make_baseline,
)
from purify.eval.evaluate import gradient_paths
from purify.eval.figures import draw_curves, save_figures
from purify.eval.reference import read_reference
from purify.eval.report import Report
from purify.eval.shared import SharedAttacks
from purify.eval.tables import TABLES, DefenceTable, defence_table
from purify.training.catalogue import find_recipe


def test_median_is_scikit_images() -> None:
    images = torch.rand(2, 3, 9, 7)
    found = MedianFilter(3)(images)
    for image, out in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(out.numpy(), skimage_median(image.numpy(), np.ones((3, 3)), mode="nearest"))


@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_torchvisions(channels: int) -> None:
    io = pytest.importorskip("torchvision.io")
    if not hasattr(io, "encode_jpeg"):
        pytest.skip("this torchvision has no JPEG any more")
    images = torch.nn.functional.interpolate(torch.rand(3, channels, 4, 4), (32, 25), mode="bilinear")
    found = JPEG(75)(images)
    mode = io.ImageReadMode.GRAY if channels == 1 else io.ImageReadMode.RGB
    pixels = (images * 255).round().byte()
    expected = torch.stack([io.decode_jpeg(io.encode_jpeg(image, quality=75), mode=mode) for image in pixels]) / 255
    assert (found - expected).abs().mean() < 0.005  # libraries may round differently
    assert 0.0001 < (found - images).abs().mean() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_jpeg_is_nearly_jpeg_and_its_gradient_leads_somewhere(channels: int) -> None:
    """A step along the smooth one's gradient raises what the real one gives; a step straight through does not as much."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(8, channels, 8, 8, generator=generator), (32, 32), mode="bilinear")
    weights = torch.randn(images.shape, generator=generator)
    jpeg = JPEG(50)
    x = images.clone().requires_grad_()
    smooth = jpeg.smooth(x)
    assert smooth.shape == images.shape
    assert (smooth - jpeg(images)).abs().mean() < 0.5 * (images - jpeg(images)).abs().mean()
    gradient = torch.autograd.grad((smooth * weights).sum(), x)[0]

    def gain(direction: torch.Tensor) -> float:
        return float(((jpeg((images + 0.03 * direction.sign()).clamp(0, 1)) - jpeg(images)) * weights).sum())

    assert gain(gradient) > 1.1 * gain(weights) > 0


def test_the_median_has_an_exact_gradient() -> None:
    images = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)  # no two pixels alike: differentiable here
    assert torch.autograd.gradcheck(MedianFilter(3), images, eps=1e-7)


def test_the_paths_of_a_baseline() -> None:
    """JPEG cuts its gradient off, and gives the attacker a stand-in; the median filter needs none."""
    classifier, x = load_classifier("digits-shufflenet"), torch.rand(2, 1, 8, 8)
    assert list(gradient_paths(purify.wrap(classifier, JPEG()), x)) == ["smooth rounding", "straight through", "transfer"]
    assert list(gradient_paths(purify.wrap(classifier, MedianFilter()), x)) == ["exact", "straight through", "transfer"]
    clipped = make_baseline("pca", purify.load_dataset("digits", "train")), make_baseline("noise")
    for purifier in clipped:  # an image at its wall has no gradient through the clip
        assert "without the clip" in gradient_paths(purify.wrap(classifier, purifier.eval()), x)


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    training = purify.load_dataset("digits", "train")
    projection = make_baseline("pca", training)
    assert isinstance(projection, PCAProjection)
    pca = PCA(n_components=0.9, svd_solver="full").fit(training.batch(slice(None))[0].flatten(1).double().numpy())
    images, _ = purify.load_dataset("digits", "test").first(5).batch(slice(None))
    expected = pca.inverse_transform(pca.transform(images.flatten(1).double().numpy())).clip(0, 1)
    np.testing.assert_allclose(projection(images).flatten(1).numpy(), expected, atol=1e-5)


def test_gaussian_filter_is_scipys() -> None:
    images = torch.rand(1, 1, 16, 16)
    expected = gaussian_filter(images[0, 0].double().numpy(), 0.7, mode="mirror", radius=3)
    np.testing.assert_allclose(GaussianFilter(0.7)(images)[0, 0].numpy(), expected, atol=1e-5)


def test_bit_depth_by_hand() -> None:
    found = BitDepth(2)(torch.tensor([[[[0.0, 0.16, 0.17, 0.5, 0.84, 1.0]]]]))
    np.testing.assert_allclose(found.numpy().ravel(), [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-6)


@pytest.mark.parametrize("name", ["total-variation", "wavelet"])
def test_denoisers_denoise(name: str) -> None:
    """Nearer to the smooth image than the noisy one was, in three channels and in one; and a flat image stays what it is."""
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        smooth = torch.linspace(0.2, 0.8, 32).expand(2, channels, 32, 32)
        noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
        found = make_baseline(name)(noisy)
        assert found.shape == noisy.shape
        assert (found - smooth).square().mean() < 0.5 * (noisy - smooth).square().mean()
    flat = torch.full((1, 1, 8, 8), 0.4)
    np.testing.assert_allclose(make_baseline(name)(flat).numpy(), 0.4, atol=1e-6)


def test_noise_is_new_each_time_and_as_strong_as_it_says() -> None:
    noise = GaussianNoise(0.1)
    images = torch.full((1, 1, 100, 100), 0.5)
    first, second = noise(images), noise(images)
    assert not torch.equal(first, second)
    assert float((first - images).std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "pca"])
def test_every_baseline_is_a_module_from_images_to_images(name: str) -> None:
    images = torch.rand(2, 3, 17, 12)
    found = make_baseline(name)(images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_bad_baselines() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'blur'; known: jpeg, median, gaussian"):
        make_baseline("blur")
    with pytest.raises(ValueError, match="needs training images"):
        make_baseline("pca")


@pytest.mark.parametrize("name", ["linear", "robust", "retrained"])
@pytest.mark.usefixtures("quick_commands")
def test_trained_baselines_are_trained_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At their first use into the cache, from then on loaded; each gets a row of the full table."""
    recipe = dataclasses.replace(find_recipe(f"digits-{name}"), epochs=1, attack_steps=1)  # type: ignore[call-arg]
    monkeypatch.setattr(trained, "find_recipe", lambda _: recipe)
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path))
    few = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=0)
    spec = dataclasses.replace(TABLES["digits"], images=20, settings=few, purifiers=(), baselines=(name,))
    first = defence_table(spec, quiet=True)
    (weights,) = tmp_path.glob(f"baselines/digits-{name}-*/digits-{name}.safetensors")
    written = weights.stat().st_mtime_ns
    second = defence_table(spec, quiet=True)
    assert weights.stat().st_mtime_ns == written
    assert [report.name for report in first.reports] == ["none", name]
    assert bool(first.reports[1].recovered) == (name == "linear")  # a robust classifier has no purifier in front
    assert first.reports[1].adaptive == second.reports[1].adaptive


def test_another_recipe_of_the_same_name_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are other images; and a checkpoint without its card, as a kill may leave it, is finished first."""
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path))
    images = purify.load_dataset("digits", "val")
    recipe = dataclasses.replace(find_recipe("digits-shufflenet"), name="brief", epochs=1)  # type: ignore[call-arg]
    first = trained.trained_by(recipe, images, images, quiet=True)
    longer = trained.trained_by(dataclasses.replace(recipe, epochs=2), images, images, quiet=True)
    fewer = trained.trained_by(recipe, images.first(80), images, quiet=True)
    assert len({first, longer, fewer}) == 3
    first.with_suffix(".json").unlink()
    assert trained.trained_by(recipe, images, images, quiet=True) == first
    assert read_card(first).recipe["epochs"] == 1


def test_other_weights_to_begin_with_make_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path))
    images = purify.load_dataset("digits", "val")
    recipe = dataclasses.replace(find_recipe("digits-shufflenet"), name="first", epochs=1)  # type: ignore[call-arg]
    first = trained.trained_by(recipe, images, images, quiet=True)
    further = dataclasses.replace(
        find_recipe("digits-retrained"), name="further", epochs=1, attack_steps=1, warm_start=str(first)
    )  # type: ignore[call-arg]
    before = trained.trained_by(further, images, images, quiet=True)
    longer = trained.trained_by(dataclasses.replace(recipe, epochs=2), images, images, quiet=True)
    for suffix in (".safetensors", ".json"):
        first.with_suffix(suffix).write_bytes(longer.with_suffix(suffix).read_bytes())
    assert trained.trained_by(further, images, images, quiet=True) != before


def test_a_shipped_baseline_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path))
    images = purify.load_dataset("digits", "val")
    found = trained.trained_baseline("dense", "digits", images, images, quiet=True)
    x, _ = images.batch(slice(4))
    assert torch.equal(found(x), load_denoiser("digits-dense")(x))
    assert not list(tmp_path.iterdir())


def test_a_table_trains_another_classifier_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a checkpoint where there is one; otherwise a recipe of that name makes it, once."""
    recipe = dataclasses.replace(find_recipe("digits-shufflenet"), name="digits-other", epochs=1, held_out=False)  # type: ignore[call-arg]
    monkeypatch.setattr(trained, "find_recipe", lambda _: recipe)
    monkeypatch.setattr(trained, "list_recipes", lambda: ["digits-other"])
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path))
    x, _ = purify.load_dataset("digits", "test").batch(slice(4))

    def logits(name: str) -> torch.Tensor:
        return trained.trained_classifier(name, purify.load_dataset, quiet=True)(x)

    first = logits("digits-other")
    (written,) = tmp_path.glob("baselines/digits-other-*/digits-other.safetensors")
    when = written.stat().st_mtime_ns
    assert torch.equal(logits("digits-other"), first)
    assert written.stat().st_mtime_ns == when
    assert torch.equal(logits(str(written)), first)
    assert torch.equal(logits("digits-shufflenet"), load_classifier("digits-shufflenet")(x))


@pytest.mark.usefixtures("quick_commands")
def test_an_oblivious_attack_is_made_once_for_all_rows(monkeypatch: pytest.MonkeyPatch, quick_victim: nn.Module) -> None:
    made = []

    class Counted(FGSM):
        def __call__(self, *args: Any, **kwargs: Any) -> AttackResult:
            made.append(args)
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr(judge, "FGSM", Counted)
    sizes = iter((6, 12, 12, 4))  # what fits into memory: no defence, bare classifier, the two defences
    monkeypatch.setattr(conftest.evaluate, "batch_size_from_memory", lambda model, probe: next(sizes))
    few = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=0)
    spec = dataclasses.replace(TABLES["digits"], images=20, settings=few, baselines=("jpeg",))
    table = defence_table(spec, quiet=True)
    assert len(made) == 2  # batches, not times rows
    few = dataclasses.replace(few, batch_size=12)
    images = purify.load_dataset("digits", "test").first(20)
    defended = purify.wrap(quick_victim, "digits-dsae")
    alone = evaluate(defended, images, None, spec.threat, settings=few, quiet=True)
    assert len(made) == 4
    assert table.reports[1].oblivious == alone.oblivious
    assert table.reports[1].margins == alone.margins


def test_what_does_not_fit_is_made_again() -> None:
    shared, made = SharedAttacks(limit=5 * 4 * 3), []

    def attack() -> AttackResult:
        made.append(1)
        return AttackResult(*torch.zeros(5, 2))

    assert shared.get("a", attack) is shared.get("a", attack)  # 40 bytes, of 60
    assert shared.get("b", attack) is not shared.get("b", attack)
    assert len(made) == 3


@pytest.mark.usefixtures("short_attacks")
def test_rows_before_another_classifier(tmp_path: Path) -> None:
    """Does what a purifier learnt before one classifier help another? Rows of their own say so; files bear the table's name."""
    torch.manual_seed(0)
    card = read_card("digits-shufflenet")
    other = tmp_path / "other.safetensors"
    save(load_classifier("digits-shufflenet"), dataclasses.replace(card, name="other"), other)
    few = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=0)
    spec = dataclasses.replace(
        TABLES["digits"],
        images=10,
        settings=few,
        name="two classifiers",
        baselines=("jpeg",),
        other_classifiers=(str(other),),
    )
    table = defence_table(spec, stores=tmp_path / "stores", quiet=True)
    assert [r.name for r in table.reports] == ["none", "digits-dsae", "jpeg", "none, other", "digits-dsae, other"]
    assert spec.row_names == tuple(r.name for r in table.reports)
    assert table.reports[1].adaptive == table.reports[4].adaptive  # it is the same classifier under another name
    assert table.markdown().startswith("### two classifiers, L∞")
    assert {path.name for path in table.save(tmp_path)} >= {"two-classifiers.md", "two-classifiers.digits-dsae-other.csv"}


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows would be called x: rows bear the names of the files"):
        dataclasses.replace(TABLES["digits"], purifiers=("a/x.safetensors", "b/x.safetensors"))


@pytest.mark.parametrize("name", ["mnist-0.3", "cifar10", "cifar10-l2"])
def test_a_figure_has_a_line_for_every_row(name: str) -> None:
    """More rows than colours, too: none is dropped in silence. The bare classifier has no oblivious line."""
    reference = read_reference(name)
    assert reference is not None
    reports = [Report.from_dict(row) for row in reference["rows"]]
    oblivious, adaptive = draw_curves(DefenceTable(TABLES[name], reports)).axes
    assert adaptive.get_legend_handles_labels()[1] == [report.name for report in reports]
    assert oblivious.get_legend_handles_labels()[1] == [report.name for report in reports if report.recovered]
    lines = {str(line.get_label()): line for line in adaptive.lines}
    for row in (report.name for report in reports):
        defence, _, other = row.partition(", ")
        assert lines[row].get_color() == lines[defence].get_color()
        assert lines[row].get_linestyle() == ("--" if other else "-")
    defences = {row.partition(", ")[0] for row in lines if not row.startswith("_")}  # matplotlib's own begin with a dash
    assert len({lines[defence].get_color() for defence in defences}) == len(defences), "two defences share a colour"


@pytest.mark.usefixtures("short_attacks", "quick_commands")
def test_rows_are_measured_alone_and_the_others_taken_over(tmp_path: Path) -> None:
    few = Settings(suite="fast", oblivious_steps=2, norm_images=4, check_images=4, check_steps=2, random_draws=10, pictures=0)
    spec = dataclasses.replace(TABLES["digits"], images=20, settings=few, baselines=("jpeg", "median"))
    part = defence_table(spec, rows=("none", "jpeg"), quiet=True)
    assert "Not measured yet: digits-dsae, median." in part.markdown()
    whole = defence_table(spec, rows=("median", "digits-dsae"), earlier=json.loads(json.dumps(part.to_dict())), quiet=True)
    assert [r.name for r in whole.reports] == list(spec.row_names)
    assert "Not measured yet" not in whole.markdown()
    assert whole.reports[2].cells() == part.reports[1].cells()
    assert whole.to_dict()["rows"][2] == part.to_dict()["rows"][1]
    written = {path.name for path in whole.save(tmp_path)}
    assert "digits.median.csv" in written
    assert "digits.jpeg.csv" not in written  # its rows for each image are not at hand
    odd = DefenceTable(spec, [dataclasses.replace(r, name=f"${r.name}_$") for r in whole.reports])  # as a file may be called
    drawn = {path.name for path in save_figures(odd, tmp_path, "digits")}
    assert drawn == {f"digits-{name}.png" for name in ("examples", "margins", "eps")}
    with pytest.raises(ValueError, match=r"cannot be taken from a table that differs \(images: .*measure all rows"):
        defence_table(dataclasses.replace(spec, images=10), rows=("none",), earlier=part.to_dict(), quiet=True)
    other = json.loads(json.dumps(part.to_dict()))
    other["rows"][1]["configuration"]["images"]["digest"] = "of other images"
    with pytest.raises(ValueError, match="the rows jpeg are of other images than digits holds now"):
        defence_table(spec, rows=("none",), earlier=other, quiet=True)
    assert "earlier version" not in whole.markdown()
    del other["rows"][1]["configuration"]["evaluation"]  # the first version had none
    earlier = DefenceTable(spec, [Report.from_dict(row) for row in other["rows"]])
    assert "Measured by an earlier version of this evaluation (docs/evaluation.md): jpeg." in earlier.markdown()
    with pytest.raises(ValueError, match="digits has no row blur; its rows: none, digits-dsae, jpeg, median"):
        defence_table(spec, rows=("blur",), quiet=True)
