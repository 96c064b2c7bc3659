"""A purifier for one's own classifier and pictures: from Python and on the command line, whole."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import purify
from purify.cli import main
from purify.commands.data_options import DataOptions
from purify.commands.named_classifier import named_classifier
from purify.fitting import _takes, fit_to, suggest_recipe
from purify.training.catalogue import find_recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.usefixtures("short_attacks")
def test_a_purifier_for_ones_own_classifier(tmp_path: Path, quick_victim: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    victim = copy.deepcopy(quick_victim)
    images, labels = purify.load_dataset("digits", "train").batch(slice(None))
    victim.requires_grad_(True)
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    fitted = purify.fit(victim, images, labels, eps=0.15, epochs=8, folder=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())
    assert all(parameter.requires_grad for parameter in victim.parameters())
    report = fitted.report
    assert report.clean.share > 0.6  # a fifteenth of the epochs of the shipped one
    assert report.oblivious["PGD"].share > report.undefended["PGD"].share + 0.3
    assert report.adaptive.n == 100
    assert torch.equal(purify.load(fitted.path)(images[:4]), fitted.purifier(images[:4]))
    assert "| fitted-dsae |" in capsys.readouterr().out


@pytest.mark.usefixtures("short_attacks")
def test_labels_are_the_classifiers_own_where_none_are_given(tmp_path: Path, quick_victim: nn.Module) -> None:
    images = purify.load_dataset("digits", "train").first(200).batch(slice(None))[0]
    pixels = (images * 255).round().to(torch.uint8)
    fitted = purify.fit(quick_victim, pixels, epochs=1, folder=tmp_path, quiet=True)
    assert fitted.report.undefended_clean.share == 1.0  # agreement with itself


@pytest.mark.usefixtures("short_attacks")
def test_a_folder_goes_on_with_its_own_pictures_and_classifier_only(tmp_path: Path, quick_victim: nn.Module) -> None:
    images, labels = purify.load_dataset("digits", "train").first(100).batch(slice(None))
    purify.fit(quick_victim, images, labels, epochs=1, folder=tmp_path, quiet=True)
    purify.fit(quick_victim, images, labels, epochs=1, folder=tmp_path, quiet=True)  # as it is
    with pytest.raises(ValueError, match=r"holds a run with other training images; give another folder"):
        purify.fit(quick_victim, images.flip(3), labels, epochs=1, folder=tmp_path, quiet=True)
    other = copy.deepcopy(quick_victim)
    next(other.parameters()).data.mul_(1.01)
    with pytest.raises(ValueError, match=r"holds a run with other classifiers; give another folder"):
        purify.fit(other, images, labels, epochs=1, folder=tmp_path, quiet=True)


@pytest.mark.usefixtures("short_attacks")
def test_what_was_fitted_takes_pictures_as_the_weights_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    pixels = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    fitted = purify.fit(model, pixels, weights="SqueezeNet1_0_Weights.DEFAULT", epochs=1, folder=tmp_path, quiet=True)
    batch = fitted.defended.preprocess(Image.new("RGB", (300, 260), "red"))
    assert batch.shape == (1, 3, 224, 224)
    assert fitted.defended(batch).shape == (1, 2)


def test_a_classifier_that_takes_no_image_at_all_is_no_classifier_of_one_size() -> None:
    with pytest.raises(RuntimeError):
        _takes(nn.Conv2d(5, 1, 1), (3, 128, 128), 64)


def test_old_weights_lack_a_counter(tmp_path: Path) -> None:
    """Batch normalisation did not always count its batches, and nothing that is computed asks for it."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    save_file({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.safetensors")
    assert torch.equal(purify.load_torchvision("resnet18", tmp_path / "old.safetensors").model.fc.weight, state["fc.weight"])


def pictures(folder: Path, images: Tensor, labels: Tensor) -> None:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / "ab"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(place / f"{number}.png")


@pytest.mark.usefixtures("short_attacks")
def test_command_line_on_a_small_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    images = torch.rand(60, 3, 24, 24, generator=generator) * 0.4
    images[:, 0] += 0.5 * labels.view(-1, 1, 1)  # one class is redder
    pictures(tmp_path / "pictures", images, labels)
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    command = ["train", "--data", f"imagefolder:{tmp_path / 'pictures'}", "--model", "squeezenet1_1"]
    command += ["--weights", str(tmp_path / "weights.safetensors"), "--size", "24"]
    assert main([*command, "--epochs", "1", "--images", "6", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "oblivious" in out
    assert "adaptive" in out
    assert f"wrote {tmp_path / 'run' / 'fitted-dsae.safetensors'}" in out
    purifier = tmp_path / "run" / "fitted-dsae.safetensors"
    assert purify.load(purifier).config.channels == 3

    command = ["tables", *command[1:], "--purifiers", str(purifier), "--eps", "0.01", "0.02", "--suite", "fast", "--quiet"]
    assert main([*command, "--images", "6", "--checks", "0", "--out", str(tmp_path / "tables")]) == 0
    out = capsys.readouterr().out
    assert not list((tmp_path / "tables").glob("*-eps.png"))  # without checks no curve is measured
    for eps in ("0.01", "0.02"):
        assert f"### imagefolder-pictures, squeezenet1_1, eps {eps}, " in out
        figures = json.loads((tmp_path / "tables" / f"imagefolder-pictures-squeezenet1_1-eps-{eps}.json").read_text("utf-8"))
        assert [row["name"] for row in figures["rows"]] == ["none", "fitted-dsae", "jpeg", "median"]
        assert all(row["clean"]["n"] == 6 for row in figures["rows"])
    assert main([*command, "--check"]) == 1
    assert "neither --variants, --rows nor --check" in capsys.readouterr().err


def test_a_folder_is_resized_as_the_weights_want(tmp_path: Path) -> None:
    """To 256 and cropped to 224, from pictures of any size."""
    pictures(tmp_path / "pictures", torch.rand(15, 3, 30, 40), torch.zeros(15, dtype=torch.int64))
    Image.new("RGB", (300, 260), "red").save(tmp_path / "pictures" / "a" / "x.png")
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    named = named_classifier("squeezenet1_1", str(tmp_path / "weights.safetensors"))
    assert named.resize == 256
    name = f"imagefolder:{tmp_path / 'pictures'}"
    assert named.load(DataOptions(), name, "train").image_shape == (3, 224, 224)
    assert named.load(DataOptions(size=24), name, "train").image_shape == (3, 24, 24)
    assert named_classifier("digits-shufflenet").load(DataOptions(), "digits", "test").image_shape == (1, 8, 8)


def test_what_is_wrong_is_said(tmp_path: Path, victim: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="N, C, H, W"):
        purify.fit(victim, torch.zeros(4, 8, 8, dtype=torch.uint8), quiet=True)
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet'"):
        purify.load_torchvision("resnet", "x.safetensors")
    with pytest.raises(ValueError, match="expected a weights file or one of IMAGENET1K_V1.* got 'BEST'"):
        purify.load_torchvision("resnet18", "BEST")
    save_file({"fc.weight": torch.zeros(7, 512)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of resnet18: it has no conv1.weight of its shape, nor"):
        purify.load_torchvision("resnet18", tmp_path / "other.safetensors")
    torch.manual_seed(0)
    save_file(torchvision.models.resnet34(num_classes=3).state_dict(), tmp_path / "larger.safetensors")
    with pytest.raises(ValueError, match="holds the weights of another model than resnet18, which has no layer1.2"):
        purify.load_torchvision("resnet18", tmp_path / "larger.safetensors")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"garbage.safetensors cannot be read as a state dict"):
        purify.load_torchvision("resnet18", tmp_path / "garbage.safetensors")
    with pytest.raises(ValueError, match="4 images are too few: nothing is left for test"):
        purify.fit(victim, torch.rand(4, 1, 8, 8), torch.arange(4), folder=tmp_path, quiet=True)
    assert main(["train", "--data", "digits", "--model", "nonesuch"]) == 1
    assert "unknown checkpoint 'nonesuch'" in capsys.readouterr().err


def test_the_number_of_classes_is_read_from_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "seven.safetensors")
    torch.save(network.state_dict(), tmp_path / "seven.pt")
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        for file in ("seven.safetensors", "seven.pt"):
            torch.testing.assert_close(
                purify.load_torchvision("mobilenet_v3_small", tmp_path / file)(x), network((x - mean) / std)
            )


def test_a_classifier_of_one_size_learns_from_whole_images(tmp_path: Path) -> None:
    """The windows that other classifiers of photographs learn from would stop a vision transformer."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=128, patch_size=32, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=2
    ).eval()
    pixels = torch.randint(256, (6, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        wrong = 1 - network(pixels / 255).argmax(1)  # nothing is left to attack in the table
    images = purify.data.ImageSet("x", "train", pixels, wrong, ("a", "b"))
    assert suggest_recipe(images).window == 64
    fitted = fit_to(network, images, images, images, epochs=2, folder=tmp_path, tested=1, quiet=True)
    assert json.loads(fitted.path.with_suffix(".json").read_text(encoding="utf-8"))["recipe"]["window"] == 0


def test_recipes_follow_the_images() -> None:
    def images(channels: int, side: int, n: int = 400) -> purify.data.ImageSet:
        pixels = torch.zeros(n, channels, side, side, dtype=torch.uint8)
        return purify.data.ImageSet("x", "train", pixels, torch.zeros(n, dtype=torch.int64), ("a",))

    grey, small, photographs = (suggest_recipe(images(*size)) for size in ((1, 28), (3, 32), (3, 224)))
    assert grey.architecture == purify.load("mnist-dsae").config
    assert grey.eps[1] == 0.2
    assert small.architecture.channels == 3
    assert small.eps[1] == pytest.approx(8 / 255)
    assert photographs.architecture.stride == 4
    assert photographs.architecture == find_recipe("imagenet-dsae").architecture
    assert photographs.window == 112
    assert photographs.epochs == 120  # 3,000 steps of 16 images
    assert suggest_recipe(images(1, 28), epochs=3, eps=0.1).epochs == 3


def test_the_defence_alone_loads_no_attacks() -> None:
    code = "import sys, purify; assert not any(m.startswith(('purify.attacks', 'purify.eval')) for m in sys.modules); purify.fit"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("classes", [1000, 4])
def test_weight_files_of_peculiar_models(classes: int, tmp_path: Path) -> None:
    """One reads a version from its state dict; one has heads for training, and changes ImageNet's normalisation to its own."""
    torch.manual_seed(0)
    path, x = tmp_path / "weights.safetensors", torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for model in ("mnasnet0_5", "googlenet"):
        options = {"init_weights": False, "transform_input": True} if model == "googlenet" else {}
        network = torchvision.models.get_model(model, weights=None, num_classes=classes, **options).eval()
        kept = {n: v for n, v in network.state_dict().items() if not n.startswith("aux")}
        save_file(kept, path)
        fine_tuned = model == "googlenet" and classes == 4
        with pytest.warns(UserWarning, match="model.model.transform_input = False") if fine_tuned else nullcontext():
            loaded = purify.load_torchvision(model, path)
        assert loaded.model.state_dict().keys() >= kept.keys()
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), network((x - mean) / std))
    loaded.model.transform_input = network.transform_input = False  # as the warning says
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network((x - mean) / std))
        from_nothing = purify.load_torchvision("googlenet", path, mean=(0.5,) * 3, std=(0.5,) * 3)
        torch.testing.assert_close(from_nothing(x), network((x - 0.5) / 0.5))


def test_heads_for_training_may_know_other_classes(tmp_path: Path) -> None:
    """As where only the last layer was replaced before the fine-tuning."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(init_weights=False)
    network.fc = nn.Linear(1024, 4)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match="transform_input"):
        loaded = purify.load_torchvision("googlenet", tmp_path / "weights.safetensors")
    assert loaded(torch.rand(1, 3, 64, 64)).shape == (1, 4)


def test_a_normalisation_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=2).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    x = torch.rand(1, 3, 64, 64)
    loaded = purify.load_torchvision("squeezenet1_1", tmp_path / "weights.safetensors", mean=0.5, std=0.25)
    assert torch.allclose(loaded(x), network((x - 0.5) / 0.25), atol=1e-5)
    with pytest.raises(ValueError, match="mean and std belong together"):
        purify.load_torchvision("squeezenet1_1", tmp_path / "weights.safetensors", mean=0.5)
