"""What users get wrong: a classifier and data that do not belong together, damaged files, files that would be lost."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel, make_suite, run_suite
from purify.cli import main
from purify.compatibility import check_classifier_fits
from purify.data import ImageSet
from purify.eval import evaluate
from purify.eval.tables import TABLES, DefenceTable
from purify.normalization import Normalize
from purify.preprocessing import preprocessing_of
from purify.pretrained import load_torchvision
from purify.training.catalogue import find_recipe
from purify.training.loop import train
from purify.training.tasks import make_task

SMALL = ThreatModel("linf", 0.1)
FEW = ["--suite", "fast", "--checks", "0", "--norms", "0", "--images", "6", "--quiet"]


def folder_of_digits(folder: Path, classes: tuple[int, ...], mode: str = "L", ending: str = "png") -> Path:
    digits = purify.load_dataset("digits", "test")
    for label in classes:
        for number, pixels in enumerate(digits.pixels[digits.labels == label][:3]):
            file = folder / str(label) / f"{number}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).convert(mode).save(file)
    return folder


# ---- a classifier and images that do not belong together


@pytest.mark.usefixtures("quick_commands")
@pytest.mark.parametrize("command", ["evaluate", "train", "tables"])
def test_fewer_class_folders_than_classes(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folder 7 would be class 0, and every figure false."""
    data = f"imagefolder:{folder_of_digits(tmp_path / 'pictures', (7, 8, 9))}"
    own = {
        "evaluate": ["evaluate", "--data", data, *FEW],
        "train": ["train", "--data", data, "--model", "digits-shufflenet", "--quiet"],
        "tables": ["tables", "--data", data, "--model", "digits-shufflenet", "--eps", "0.1", "--quiet"],
    }[command]
    assert main([*own, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "digits-shufflenet knows 10 classes, data set" in said
    assert "has 3" in said
    assert "--class-list" in said


@pytest.mark.parametrize(("classifier", "mode"), [("cifar10-resnet18", "L"), ("digits-shufflenet", "RGB")])
def test_other_channels_than_the_classifiers(classifier: str, mode: str, tmp_path: Path) -> None:
    data = f"imagefolder:{folder_of_digits(tmp_path / 'pictures', tuple(range(10)), 'RGB' if mode == 'RGB' else 'L')}"
    images = purify.load_dataset(data, "train")
    if mode == "RGB":
        images = ImageSet("coloured", "train", images.pixels.expand(-1, 3, -1, -1), images.labels, images.classes)
    with pytest.raises(ValueError, match=f"{classifier} does not take the images of"):
        check_classifier_fits(purify.load_classifier(classifier), images, classifier)


def test_a_normalisation_of_other_channels_and_of_bytes() -> None:
    normalize = Normalize((0.1, 0.2, 0.3), (1, 1, 1))
    with pytest.raises(ValueError, match="expected images with 3 channels, got 1"):
        normalize(torch.rand(2, 1, 4, 4))
    with pytest.raises(TypeError, match="divide bytes by 255"):
        normalize(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert Normalize((0.5,), (0.5,))(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)  # one for all


def test_a_purifier_that_changes_the_size(victim: nn.Module) -> None:
    defended = purify.wrap(victim, nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"made images \(2, 1, 4, 4\) of images \(2, 1, 8, 8\)"):
        defended(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("labelled", [True, False])
def test_fit_leaves_a_classifier_in_training_mode_alone(
    labelled: bool, victim: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    victim.train()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    with pytest.raises(ValueError, match="in training mode, and would change: call model.eval"):
        purify.fit(victim, digits[0], digits[1] if labelled else None, epochs=1, folder=tmp_path, quiet=True)
    victim.eval()
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())


@pytest.mark.parametrize("place", [torch.float16, torch.float64, "meta"])
def test_fit_says_where_it_trains(
    place: torch.dtype | str, toy: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"classifier on the CPU in float32.* got torch.float.* on .*copy.deepcopy\(model\)"):
        purify.fit(toy.to(place), digits[0], None, folder=tmp_path, quiet=True)  # type: ignore[call-overload]


# ---- what is given in the place of images, labels and logits


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_any_integer_type(dtype: torch.dtype, toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    attack = PGD(SMALL, steps=3)
    assert torch.equal(attack(toy, x, y.to(dtype)).adversarial, attack(toy, x, y).adversarial)
    assert torch.equal(
        run_suite(make_suite("fast", SMALL), toy, x, y.to(dtype)).robust, run_suite(make_suite("fast", SMALL), toy, x, y).robust
    )


def test_what_is_no_logits_is_said_by_suites_too(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    for model in (lambda images: {"logits": images.flatten(1)}, lambda images: images.flatten(1).argmax(1)):
        with pytest.raises(ValueError, match=r"expected the model to give logits \(4, classes\), got"):
            run_suite(make_suite("fast", SMALL), model, x, y, batch_size=4)  # type: ignore[arg-type]


def test_labels_beside_a_data_set_and_arrays(victim: nn.Module) -> None:
    digits = purify.load_dataset("digits", "test").first(4)
    with pytest.raises(ValueError, match="a data set has labels of its own"):
        evaluate(victim, digits, torch.zeros(4, dtype=torch.long), SMALL, quiet=True)
    with pytest.raises(TypeError, match="expected images as a tensor .* got ndarray"):
        evaluate(victim, np.zeros((4, 1, 8, 8)), None, SMALL, quiet=True)  # type: ignore[arg-type]


def test_negative_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a number of images, got -5"):
        purify.load_dataset("digits", "test").first(-5)
    assert main(["train", "digits-dsae", "--threads", "0", "--out", str(tmp_path)]) == 1
    assert "expected at least one thread" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a size of at least one pixel, got 0"):
        purify.load_dataset(f"imagefolder:{folder_of_digits(tmp_path / 'pictures', (1, 2))}", "train", size=0)


def test_a_size_for_images_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"--size and --resize: for imagefolder:PATH alone; the images of digits"):
        purify.load_dataset("digits", "test", size=32, resize=40)
    with pytest.raises(ValueError, match="unknown data set 'digit'"):
        purify.load_dataset("digit", "test", size=32)


# ---- folders


def test_gif_pictures_count_and_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    folder = folder_of_digits(tmp_path / "pictures", (0, 2))
    folder_of_digits(folder, (1,), ending="gif")
    (folder / "lonely.png").write_bytes((folder / "0" / "0.png").read_bytes())
    (folder / "notes").mkdir()
    (folder / "notes" / "read.txt").write_text("no picture", encoding="utf-8")
    images = purify.load_dataset(f"imagefolder:{folder}", "train")
    assert images.classes == ("0", "1", "2")
    assert images.skipped == ("lonely.png: in no class folder", "notes: no picture in it")


def test_a_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", b"0" * 100)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02")] = 0
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the zip .*pictures.zip is damaged"):
        purify.load_dataset(f"imagefolder:{path}", "test")


@pytest.mark.parametrize("content", [b"", b"\x00" * 40])
def test_a_damaged_data_set_is_not_called_missing(content: bytes, tmp_path: Path) -> None:
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{name}-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="mnist in .* is damaged"):
        purify.load_dataset("mnist", "test", data_root=tmp_path)


# ---- files


@pytest.mark.parametrize("content", [b"", b"just a text", [torch.zeros(2)], torch.zeros(2), {"a": 1}])
def test_what_is_no_state_dict(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights.pt (cannot be read as a|is no) state dict"):
        load_torchvision("squeezenet1_0", path)


def test_weights_that_torchvision_does_not_have() -> None:
    with pytest.raises(ValueError, match="torchvision has no weights SqueezeNet1_0_Weights.FOO"):
        preprocessing_of("SqueezeNet1_0_Weights.FOO")


@pytest.mark.parametrize("content", [b"cut short", {"weights": 1}])
def test_a_damaged_state_of_a_training(content: object, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "state.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "state.pt")
    recipe = find_recipe("digits-shufflenet")
    images = purify.load_dataset("digits", "val")
    with pytest.raises(ValueError, match=r"state.pt is damaged, or not of a training"):
        train(make_task(recipe, images, images), recipe, images, tmp_path, quiet=True)


@pytest.mark.usefixtures("quick_commands")
def test_no_result_is_written_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["evaluate", "--purifier", "none", *FEW, "--out", str(tmp_path)]
    assert main(own) == 0
    store, report = tmp_path / "digits.none.sqlite", tmp_path / "digits.none.json"
    before = {path: path.read_bytes() for path in (report, report.with_suffix(".csv"))}
    for format in ("csv", "json"):
        assert main(["runs", "export", str(store), "--to", format]) == 0
        assert (tmp_path / f"digits.none.rows.{format}").exists()
    assert main([*own, "--eps", "0.2", "--store", str(tmp_path / "other.sqlite")]) == 0
    assert json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))["threat"]["eps"] == 0.2
    assert all(path.read_bytes() == content for path, content in before.items())
    whole = store.read_bytes()
    assert main(["runs", "export", str(store), "--out", str(store)]) == 1
    assert "would overwrite the run" in capsys.readouterr().err
    assert store.read_bytes() == whole
    picture = folder_of_digits(tmp_path, (3,)) / "3" / "0.png"
    picture.rename(tmp_path / "a.report.png")
    assert main(["clean", str(tmp_path / "a.report.png"), "-o", str(tmp_path / "a.png"), "--report"]) == 1
    assert "would overwrite" in capsys.readouterr().err


def test_a_table_without_its_data_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    missing = DefenceTable(TABLES["mnist"], not_run="mnist is not here")
    assert [path.name for path in missing.save(tmp_path)] == ["mnist.md", "mnist.json"]
    (tmp_path / "mnist.md").write_text("measured", encoding="utf-8")
    assert missing.save(tmp_path) == []
    assert (tmp_path / "mnist.md").read_text(encoding="utf-8") == "measured"


@pytest.mark.usefixtures("quick_commands")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audit", "{run}", "--eps", "0.3"], "--eps: the audit of a run is of what that run says"),
        (["tables", "--variants", "--check"], "--check are not for the --variants"),
        (["train", "--quiet", "--data", "digits", "--model", "squeezenet1_0"], "give the weights of torchvision's squeezenet1_0"),
    ],
)
def test_no_option_is_ignored(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.sqlite"
    assert main([argument.format(run=run) for argument in arguments]) == 1
    assert says in capsys.readouterr().err
