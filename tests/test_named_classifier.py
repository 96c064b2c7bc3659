"""The classifier that a command names: its weights, its normalisation, and the images that it gets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import purify
from purify.attacks import ThreatModel
from purify.checkpoint import read_card, save
from purify.cli import main
from purify.commands.data_options import DataOptions
from purify.commands.named_classifier import named_classifier
from purify.eval import Settings, evaluate, tables
from purify.eval.store import RunStore
from purify.eval.tables import TableSpec, defence_table
from purify.normalization import NormalizedClassifier

FEW = Settings(suite="fast", oblivious_steps=1, norm_images=0, check_images=0, pictures=0)


def make_pictures(folder: Path, size: tuple[int, int], classes: int = 2, each: int = 12, mode: str = "RGB") -> str:
    """Noise, brighter from class to class; the name of the data set."""
    random = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            pixels = random.integers(20 * label, 60 + 20 * label, (size[1], size[0], 3), dtype=np.uint8)
            file = folder / f"class-{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert(mode).save(file)
    return f"imagefolder:{folder}"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a SqueezeNet of two classes."""
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_grey_images_before_a_classifier_of_colour(tmp_path: Path, weights: str) -> None:
    named = named_classifier("squeezenet1_1", weights)
    grey = purify.load_dataset("digits", "test")
    images = named.load(DataOptions(), "digits", "test")
    assert images.image_shape == (3, 8, 8)
    assert images.pixels.data_ptr() == images.pixels[:, 2:].data_ptr()  # not copied
    for chosen in (slice(3, 6), torch.tensor([5, 1])):
        assert torch.equal(images.batch(chosen)[0], grey.batch(chosen)[0].expand(-1, 3, -1, -1))
    data = make_pictures(tmp_path / "grey", (30, 20), mode="L")
    assert purify.load_dataset(data, "train", size=20).image_shape == (1, 20, 20)
    assert named.load(DataOptions(size=20), data, "train").first(4).image_shape == (3, 20, 20)
    with pytest.raises(ValueError, match="expected grey images, got 3 channels"):
        images.with_channels(3)


def test_a_folder_is_resized_to_what_a_checkpoint_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path / "cache"))
    data = make_pictures(tmp_path / "pictures", (12, 10), mode="L")
    named = named_classifier("digits-shufflenet")
    assert named.load(DataOptions(), data, "test").image_shape == (1, 8, 8)
    assert named.load(DataOptions(resize=9), data, "test").image_shape == (1, 8, 8)
    assert named.load(DataOptions(size=10), data, "test").image_shape == (1, 10, 10)
    oblong = dataclasses.replace(named, image_shape=(1, 8, 9))
    assert oblong.load(DataOptions(), data, "test").image_shape == (1, 10, 12)


@pytest.mark.usefixtures("short_attacks")
def test_evaluation_and_audit_of_a_torchvision_classifier(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[NormalizedClassifier, dict[str, nn.Module], torch.Size]] = []

    def audited(
        model: NormalizedClassifier, purifiers: dict[str, nn.Module], _: Tensor, images: Tensor, *__: object, **___: object
    ) -> None:
        seen.append((model, purifiers, images.shape))
        raise InterruptedError("enough")

    monkeypatch.setattr("purify.eval.spectrum.spectral_audit", audited)
    data = make_pictures(tmp_path / "pictures", (30, 26), each=20)
    command = ["evaluate", "--data", data, "--classifier", "squeezenet1_1", "--weights", weights, "--mean", "0.5", "0.4", "0.3"]
    command += ["--std", "0.25", "0.25", "0.25", "--size", "24", "--purifier", "gaussian", "--eps", "0.01", "--images", "4"]
    command += ["--suite", "fast", "--checks", "0", "--norms", "0", "--out", str(tmp_path), "--quiet"]
    assert main(command) == 0
    store = tmp_path / "imagefolder-pictures.gaussian.sqlite"
    said = f"--classifier squeezenet1_1 --weights {weights} --mean 0.5 0.4 0.3 --std 0.25 0.25 0.25 --purifier gaussian"
    page = store.with_suffix(".md").read_text(encoding="utf-8")
    assert said in page
    assert "--size 24" in page
    assert main(["audit", str(store), "--images", "3", "--quiet"]) == 1
    assert "enough" in capsys.readouterr().err
    ((model, purifiers, shape),) = seen
    assert repr(model.normalize) == "Normalize(mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25))"
    assert "gaussian" in purifiers
    assert shape == (3, 3, 24, 24)
    for option, value in (("--weights", "other.pt"), ("--size", "32")):
        assert main(["audit", str(store), option, value]) == 1
        assert f"{option}: the audit of a run is of what that run says" in capsys.readouterr().err
    assert main([*command[:5], "--weights", "other.pt", "--out", str(tmp_path)]) == 1
    assert "no weights file other.pt" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_commands")
def test_runs_without_weights_say_what_they_said(tmp_path: Path) -> None:
    """A run that another version began goes on."""
    few = ["--images", "4", "--suite", "fast", "--checks", "0", "--norms", "0", "--quiet", "--out", str(tmp_path)]
    assert main(["evaluate", *few]) == 0
    with RunStore(tmp_path / "digits.digits-dsae.sqlite", None) as store:
        about = store.configuration["about"]
    assert about == {"data": "digits", "split": "test", "classifier": "digits-shufflenet", "purifier": "digits-dsae"}


def test_an_audit_asks_for_what_a_card_does_not_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, path = read_card("digits-dsae"), tmp_path / "fitted-dsae.safetensors"
    said = {
        ("given", "images"): "names a classifier that is not known here ('given') and data that are not known here ('images'): "
        "give --classifier and --data",
        ("resnet18", "digits"): "names a classifier that is not known here ('resnet18'): give --classifier",
        ("digits-shufflenet", "mine"): "names data that are not known here ('mine'): give --data",
    }
    for (classifier, data), message in said.items():
        save(purify.load("digits-dsae"), dataclasses.replace(card, dataset=data, recipe={"classifier": classifier}), path)
        assert main(["audit", str(path)]) == 1
        assert message in capsys.readouterr().err


def test_a_run_of_what_has_no_checkpoint_cannot_be_audited(
    tmp_path: Path, toy: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    images = purify.load_dataset("digits", "test").first(4)
    store = tmp_path / "run.sqlite"
    about = {"data": "digits", "classifier": "digits-shufflenet", "purifier": "dense, digits-shufflenet"}
    evaluate(toy, images, None, ThreatModel("linf", 0.1), settings=FEW, about=about, store=store, quiet=True)
    assert main(["audit", str(store)]) == 1
    assert "run.sqlite cannot be audited: it is about dense, of which the run keeps no checkpoint" in capsys.readouterr().err


def test_rows_of_a_table_say_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit of a row has to find purifier and classifier again."""
    path, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    save(purify.load("digits-dsae"), read_card("digits-dsae"), path)
    save(purify.load_classifier("digits-shufflenet"), read_card("digits-shufflenet"), other)
    said: dict[str, dict[str, str]] = {}

    def evaluated(*_: object, name: str, about: dict[str, str], **__: object) -> None:
        said[name] = about

    monkeypatch.setattr(tables, "evaluate", evaluated)
    spec = TableSpec(
        data="digits",
        classifier="digits-shufflenet",
        purifiers=("digits-dsae", str(path)),
        baselines=("jpeg",),
        other_classifiers=(str(other),),
        threat=ThreatModel("linf", 0.1),
        images=4,
    )
    defence_table(spec, about={"weights": "w"}, quiet=True)
    plain = {"data": "digits", "split": "test", "weights": "w"}
    for row, classifier, purifier in (
        ("none", "digits-shufflenet", "none"),
        ("digits-dsae", "digits-shufflenet", "digits-dsae"),
        ("jpeg", "digits-shufflenet", "jpeg"),
        ("mine", "digits-shufflenet", str(path)),
        ("none, other", str(other), "none"),
        ("mine, other", str(other), str(path)),
    ):
        assert said[row] == {**plain, "classifier": classifier, "purifier": purifier}


def test_a_table_of_weights_says_them(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_pictures(tmp_path / "pictures", (30, 26), each=20)
    said: list[object] = []
    monkeypatch.setattr(tables, "defence_table", lambda *_, about, **__: said.append(about) or 1 / 0)
    command = ["tables", "--data", data, "--model", "squeezenet1_1", "--size", "24", "--eps", "0.1", "--out", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        main([*command, "--weights", weights])
    assert json.loads(json.dumps(said)) == [{"classifier": "squeezenet1_1", "weights": weights, "options": {"size": "24"}}]
