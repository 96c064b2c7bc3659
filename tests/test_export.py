"""Defences as files for other runtimes: the same logits, or no file; from the command line, too."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT
from safetensors.torch import save_file
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel
from purify.checkpoint import Card, save
from purify.classifier import PurifiedClassifier
from purify.cli import main
from purify.commands.export import ExportCommand, export
from purify.convolution import SmallMapConv2d
from purify.export import ExportError, check_parity, export_onnx, export_program, load_onnx, load_program
from purify.latency import latency_table

SHAPE = (1, 8, 8)
FORMATS = ["onnx", "pt2"]


def need_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


def write(module: nn.Module, path: Path, shape: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """Export by the path's suffix, and load what was written."""
    if path.suffix == ".onnx":
        need_onnx()
        export_onnx(module, path, shape)
        return load_onnx(path)
    export_program(module, path, shape)
    return load_program(path)


@pytest.fixture(scope="module")
def defended(victim: nn.Module, purifier: nn.Module) -> PurifiedClassifier:
    return purify.wrap(victim, purifier)


@pytest.fixture(scope="module")
def small(purifier: nn.Module) -> PurifiedClassifier:
    """The digits' purifier before a classifier that is exported in a second."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return purify.wrap(classifier.eval(), purifier, mean=(0.5,), std=(0.3,))


@pytest.fixture(scope="module")
def test_digits() -> tuple[Tensor, Tensor]:
    """All 450 test digits: images (450, 1, 8, 8) and labels."""
    return purify.load_dataset("digits", "test").batch(slice(None))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every Python block of docs/deployment.md has run, one after the other."""
    need_onnx()
    folder = tmp_path_factory.mktemp("page")
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, "docs/deployment.md", "exec"), names)
    return folder


# ---- parity


@pytest.mark.parametrize("format", FORMATS)
def test_parity(format: str, page: Path, defended: PurifiedClassifier, test_digits: tuple[Tensor, Tensor]) -> None:
    """Logits within 1e-4 and the same classes on 200 digits, whatever number comes at once, from the page's files."""
    exported = {"onnx": load_onnx, "pt2": load_program}[format](page / f"defended.{format}")
    x = test_digits[0][:200]
    with torch.no_grad():
        wanted = defended(x)
        for size in (1, 32, 200):
            found = torch.cat([exported(batch) for batch in x.split(size)])
            assert (found - wanted).abs().max() < 1e-4
            assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert {file.name for file in page.iterdir()} == {"defended.onnx", "defended.pt2"}  # weights inside, nothing partial


def test_attacks_go_through_a_program(page: Path, defended: PurifiedClassifier, test_digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:40] for part in test_digits)
    attack = PGD(ThreatModel("linf", 0.2), steps=3, random_start=False)
    ours, theirs = (attack(model, x, y) for model in (defended, load_program(page / "defended.pt2")))
    assert 0 < ours.success.sum() < 40
    assert torch.equal(ours.success, theirs.success)
    assert torch.allclose(ours.adversarial, theirs.adversarial, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "config",
    [
        {"encoder": "deep", "code": "hard", "low_pass": 2.0},
        {"encoder": "pyramid", "shortcut": True, "adaptive": True, "stride": 4, "atom": 8},
        {"encoder": "pyramid", "stride": 4, "atom": 8},
        {"encoder": "pyramid", "stride": 4, "atom": 8, "global_units": 4, "global_atom": 8},
        {"encoder": "tied", "steps": 3, "code": "batch-top-k"},
        {"encoder": "linear", "code": "top-k"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_every_encoder_and_code(config: dict[str, object], format: str, tmp_path: Path) -> None:
    """On images that need padding, too; each exporter checks parity itself."""
    torch.manual_seed(0)
    settings = purify.DSAEConfig(channels=3, units=8, width=4, depth=1, **config)  # type: ignore[arg-type]
    purifier = purify.DenoisingSparseAutoencoder(settings).eval()
    exported = write(purifier, tmp_path / f"purifier.{format}", (3, 9, 7))
    x = torch.rand(3, 3, 9, 7)
    assert torch.allclose(exported(x), purifier(x), atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_convolutions_on_small_maps_leave_the_number_of_images_free(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(SmallMapConv2d(384, 384, 3, padding=1, stride=2), nn.Flatten()).eval()
    exported = write(module, tmp_path / f"module.{format}", (384, 4, 4))
    x = torch.rand(5, 384, 4, 4)
    assert torch.allclose(exported(x), module(x), atol=1e-4)


# ---- what is refused


class Noisy(nn.Module):
    """Another answer each time."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + torch.rand_like(images).flatten(1)


class Pairs(nn.Module):
    """Knows two images at once and no other number."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(2, -1)


class Several(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images.flatten(1)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Noisy(), "the export differs from the module: 8 random images, largest difference"),
        (Pairs(), "Pairs cannot be traced by torch.export for any number of images at once"),
        (Several(), "expected a module that gives one tensor, got dict"),
    ],
    ids=["noisy", "pairs", "several"],
)
def test_refused_without_a_file(module: nn.Module, says: str, format: str, tmp_path: Path) -> None:
    """What stood at the path stays; a file that fails its parity check is never there."""
    path = tmp_path / f"module.{format}"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match=re.escape(says)) as caught:
        write(module.eval(), path, SHAPE)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_parity_sees_shapes_and_nan(small: PurifiedClassifier) -> None:
    with pytest.raises(ExportError, match=re.escape("outputs of shape (8, 9), the module (8, 10)")):
        check_parity(lambda x: small(x)[:, 1:], small, SHAPE)
    with pytest.raises(ExportError, match="largest difference nan"):
        check_parity(lambda x: small(x) * torch.nan, small, SHAPE)
    with pytest.raises(ExportError, match="same class on 8 of 8"):
        check_parity(lambda x: small(x) * 1.01, small, SHAPE)


def test_wrong_calls(small: PurifiedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="training mode"):
        export_program(copy.deepcopy(small).train(), tmp_path / "a.pt2", SHAPE)
    partly = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).eval()
    partly[0].train()
    with pytest.raises(ValueError, match="training mode"):
        export_program(partly, tmp_path / "a.pt2", SHAPE)
    with pytest.raises(ValueError, match=re.escape("expected a file *.pt2")):
        export_program(small, tmp_path / "a.onnx", SHAPE)
    with pytest.raises(ValueError, match=re.escape("expected an image shape (C, H, W), got (8, 8)")):
        export_program(small, tmp_path / "a.pt2", SHAPE[1:])
    with pytest.raises(FileNotFoundError, match="no exported program"):
        load_program(tmp_path / "none.pt2")
    with pytest.raises(FileNotFoundError, match="no ONNX file"):
        load_onnx(tmp_path / "none.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'purify-defense[onnx]'")):
        export_onnx(small, tmp_path / "a.onnx", SHAPE)
    assert list(tmp_path.iterdir()) == []


# ---- fewer bits


def test_half_precision_as_onnx(small: PurifiedClassifier, test_digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    need_onnx()
    half, x = copy.deepcopy(small).half(), test_digits[0][:50]
    export_onnx(half, tmp_path / "half.onnx", SHAPE, tolerance=0.01)
    with torch.no_grad():
        assert (load_onnx(tmp_path / "half.onnx")(x.half()).float() - small(x)).abs().max() < 0.1
    with pytest.raises(ExportError, match="onnxruntime takes no torch.bfloat16 images"):
        export_onnx(copy.deepcopy(small).bfloat16(), tmp_path / "b.onnx", SHAPE)


def test_int8_leaves_the_classifier_alone(small: PurifiedClassifier, tmp_path: Path) -> None:
    need_onnx()
    import onnx

    sizes, kinds = [], []
    for part in (None, "purifier"):
        export_onnx(small, tmp_path / "defended.onnx", SHAPE, int8=part)
        nodes = [node.op_type for node in onnx.load(tmp_path / "defended.onnx").graph.node]
        kinds.append((nodes.count("Conv"), nodes.count("ConvInteger")))
        sizes.append((tmp_path / "defended.onnx").stat().st_size)
    in_purifier = sum(isinstance(module, nn.Conv2d) for module in small.purifier.modules())
    assert kinds[0][1] == 0
    assert kinds[1] == (kinds[0][0] - in_purifier, in_purifier)
    assert sizes[1] < sizes[0]
    with pytest.raises(ExportError, match="no convolution in nonesuch"):
        export_onnx(small, tmp_path / "none.onnx", SHAPE, int8="nonesuch")


# ---- latency


def test_latency_table(small: PurifiedClassifier) -> None:
    need_onnx()
    table = latency_table(small, SHAPE, bare=small.classifier, batch_sizes=(1, 8), repeats=3)
    caption, _, header, _, *rows = table.splitlines()
    assert "(N, 1, 8, 8), float32, on cpu" in caption
    assert "medians of 3 rounds" in caption
    assert header == "| runtime | batch | bare | defended | added | added / bare |"
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [row[:2] for row in cells] == [[name, size] for name in ("PyTorch", "pt2", "onnxruntime") for size in "18"]
    for row in cells:
        bare, whole, added, share = map(float, row[2:])
        assert added == pytest.approx(whole - bare, abs=0.02 * whole)
        assert share == pytest.approx(whole / bare - 1, abs=0.02 * whole / bare)


# ---- the command


@pytest.mark.usefixtures("quick_commands")
def test_command(quick_victim: nn.Module, purifier: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "defended.pt2"
    command = ["export", "digits-dsae", "--model", "digits-shufflenet", "--format", "pt2", "--out", str(path)]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {path} (")
    assert first.endswith("images (N, 1, 8, 8) in [0, 1] to logits (N, 10)")
    assert second.startswith("parity with PyTorch: 8 random images, largest difference ")
    assert second.endswith("same class on 8 of 8")
    x, defended = torch.rand(4, *SHAPE), purify.wrap(quick_victim, purifier)
    assert torch.allclose(load_program(path)(x), defended(x), atol=1e-4)
    assert main([*command[:-1], str(tmp_path / "defended.onnx")]) == 1
    assert capsys.readouterr().err == f"purify export: expected a file *.pt2, got {tmp_path / 'defended.onnx'}\n"


def test_command_on_a_purifier_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    need_onnx()
    monkeypatch.chdir(tmp_path)
    assert export(ExportCommand(checkpoint="digits-dsae", size=(9, 7), int8=True, latency=True, repeats=3)) == 0
    printed = capsys.readouterr().out
    assert f"wrote {Path('runs/export/digits-dsae.onnx')} (" in printed
    assert "to purified images (N, 1, 9, 7)" in printed
    assert "| onnxruntime | 32 | – | " in printed
    assert load_onnx("runs/export/digits-dsae.onnx")(torch.rand(2, 1, 9, 7)).shape == (2, 1, 9, 7)


@pytest.fixture
def colour(tmp_path: Path) -> str:
    """Path of a small purifier of colour images."""
    torch.manual_seed(0)
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1))
    architecture = {"channels": 3, "units": 8, "width": 4, "depth": 1}
    card = Card(name="colour", kind="purifier", architecture=architecture, image_shape=(3, 32, 32))
    save(purifier, card, tmp_path / "colour.safetensors")
    return str(tmp_path / "colour.safetensors")


def test_command_with_a_torchvision_model(colour: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=7)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    path = tmp_path / "defended.pt2"
    command = ExportCommand(
        checkpoint=colour,
        model="squeezenet1_1",
        weights=str(tmp_path / "weights.safetensors"),
        size=(48, 40),
        format="pt2",
        out=path,
    )
    assert export(command) == 0
    assert "images (N, 3, 48, 40) in [0, 1] to logits (N, 7)" in capsys.readouterr().out
    defended = purify.wrap(network.eval(), purify.load(colour), weights="SqueezeNet1_1_Weights.DEFAULT")
    x = torch.rand(3, 3, 48, 40)
    assert torch.allclose(load_program(path)(x), defended(x), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "nonesuch"}, "unknown checkpoint 'nonesuch'; known: "),
        ({"checkpoint": "mnist-resnet18"}, "mnist-resnet18 is a classifier: name a purifier first"),
        ({"checkpoint": "digits-dsae", "model": "nonesuch"}, "unknown checkpoint 'nonesuch'"),
        ({"checkpoint": "digits-dsae", "model": "resnet18"}, "give the weights of torchvision's resnet18 with --weights"),
        (
            {"checkpoint": "digits-dsae", "weights": "DEFAULT"},
            "--weights are those of a classifier of your own: name it with --model",
        ),
        ({"checkpoint": "digits-dsae", "int8": True, "format": "pt2"}, "--int8 is for --format onnx, got pt2"),
        ({"checkpoint": "digits-dsae", "out": Path("a.pt2")}, "expected a file *.onnx, got a.pt2"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_command_on_mistakes(options: dict[str, object], says: str) -> None:
    need_onnx()
    with pytest.raises(ValueError, match=re.escape(says)):
        export(ExportCommand(**options))  # type: ignore[arg-type]


def test_command_on_channels_that_do_not_fit(colour: str) -> None:
    with pytest.raises(ValueError, match=re.escape("purifies images of 3 channels, digits-shufflenet takes 1")):
        export(ExportCommand(checkpoint=colour, model="digits-shufflenet"))
