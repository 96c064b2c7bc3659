"""``purify clean``: pictures as a user has them, in and out; and tiles that give what the whole picture gives."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import purify
from purify.checkpoint import Card, save
from purify.cli import main
from purify.commands.clean import suitable_purifier
from purify.denoisers import DenoiserConfig, build_denoiser
from purify.picture import picture_to_tensor, read_picture
from purify.tiling import purify_in_tiles, reach_of


def make_purifier(channels: int = 3, **options: Any) -> purify.DenoisingSparseAutoencoder:
    torch.manual_seed(0)
    config = {"units": 8, "width": 4, "depth": 1} | options
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=channels, **config)).eval()
    for parameter in purifier.parameters():  # blocks start as the identity; here they are to do something
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.2)
    return purifier


def checkpoint(path: Path, channels: int = 3, side: int = 64) -> str:
    purifier = make_purifier(channels)
    architecture = dataclasses.asdict(purifier.config)
    save(purifier, Card(name=path.stem, kind="purifier", architecture=architecture, image_shape=(channels, side, side)), path)
    return str(path)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small purifier of colour pictures with random weights."""
    return checkpoint(tmp_path_factory.mktemp("purifier") / "colour.safetensors")


def photograph(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


# Tiles


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 3, "units": 32, "width": 16},
        {"stride": 4, "atom": 8},
        {"stride": 3, "atom": 5},
        {"stride": 1, "atom": 3},
        {"shortcut": True},
        {"adaptive": True},
        {"encoder": "linear"},
        {"encoder": "tied", "steps": 3},
        {"encoder": "pyramid", "stride": 4, "atom": 8},
        {"code": "hard"},
        {"code": "top-k"},
        {"code": "batch-top-k"},
    ],
    ids=str,
)
def test_tiles_give_what_the_whole_picture_gives(options: dict[str, Any]) -> None:
    purifier = make_purifier(**options)
    images = torch.rand(2, 3, 211, 149)
    with torch.no_grad():
        whole = purifier(images)
    assert torch.allclose(purify_in_tiles(purifier, images, tile=48), whole, atol=1e-5)
    small = images[..., :40, :30]
    assert torch.equal(purify_in_tiles(purifier, small, tile=48), purifier(small))


@pytest.mark.parametrize("kind", ["linear", "dense", "inside another module"])
def test_tiles_keep_to_a_grid_wherever_it_is(kind: Any) -> None:
    """A stride of 3, of which 16 is no multiple."""
    torch.manual_seed(0)
    if kind == "inside another module":
        purifier: nn.Module = nn.Sequential(make_purifier(stride=3, atom=5))
    else:
        purifier = build_denoiser(DenoiserConfig(network=kind, channels=3, units=8, atom=5, stride=3, width=4, depth=1)).eval()
    images = torch.rand(1, 3, 101, 70)
    with torch.no_grad():
        whole = purifier(images)
    assert torch.allclose(purify_in_tiles(purifier, images, tile=16), whole, atol=1e-5)


def test_what_tiles_spare() -> None:
    """The purifier never sees more than a tile and its surroundings."""
    purifier = make_purifier()
    seen = []
    purifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    purify_in_tiles(purifier, torch.rand(1, 3, 300, 400), tile=64)
    reach = 10
    tiles = seen[2:]  # after the two probes of the reach
    assert len(tiles) == 5 * 7
    assert max(max(size) for size in tiles) <= 64 + 2 * 16  # the reach, rounded up to the grid
    assert reach_of(purifier, 3) == reach


@pytest.mark.parametrize(("depth", "stride", "atom"), [(0, 2, 6), (3, 2, 6), (1, 4, 4), (2, 4, 8)])
def test_reach_is_what_arithmetic_says(depth: int, stride: int, atom: int) -> None:
    """Two 3×3 convolutions a block and one more, on the code's grid; a further code where atoms overlap, and then its overlap."""
    purifier = make_purifier(depth=depth, stride=stride, atom=atom)
    codes = 2 * depth + 1 + math.ceil(purifier.overlap / stride)
    assert reach_of(purifier, 3) == stride * codes + purifier.overlap


@pytest.mark.parametrize("code", ["soft", "hard", "batch-top-k"])
def test_reach_is_found_where_the_probe_leaves_all_units_silent(code: str) -> None:
    """What wakes them in other pictures looks as far."""
    purifier = make_purifier(code=code, depth=3)
    with torch.no_grad():
        purifier.raw_threshold.fill_(30.0)
    if code == "batch-top-k":
        purifier.sparsify.level.fill_(30.0)
    assert not purifier.encode(torch.rand(1, 3, 64, 64)).any()
    assert reach_of(purifier, 3) == 2 * (2 * 3 + 1 + 1) + 2


def test_reach_of_other_purifiers() -> None:
    assert reach_of(nn.Identity(), 1) == 0
    assert reach_of(nn.AvgPool2d(9, stride=1, padding=4), 3) == 4
    assert reach_of(make_purifier(code="top-k"), 3) is None

    class LessItsMean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images - images.mean((2, 3), keepdim=True)

    assert reach_of(LessItsMean(), 1) is None
    images = torch.rand(1, 1, 70, 70)
    assert torch.equal(purify_in_tiles(LessItsMean(), images, tile=16), LessItsMean()(images))
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        purify_in_tiles(nn.Identity(), images, tile=0)


def test_bytes_in_bytes_out() -> None:
    purifier = make_purifier()
    pixels = torch.randint(0, 256, (1, 3, 100, 90), dtype=torch.uint8)
    purified = purify_in_tiles(purifier, pixels, tile=32)
    assert purified.dtype == torch.uint8
    with torch.no_grad():
        assert (purified.float() - 255 * purifier(pixels / 255)).abs().max() <= 0.51


# The command


def test_a_photograph(tmp_path: Path, colour: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "photo.jpg", tmp_path / "new" / "out.png"
    photograph(130, 201).save(source)
    assert main(["clean", str(source), "-o", str(out), "--purifier", colour, "--tile", "64"]) == 0
    said = capsys.readouterr().out
    assert "201×130, colour" in said
    assert f"wrote {out}\n" in said
    written = picture_to_tensor(Image.open(out))
    pixels = picture_to_tensor(read_picture(source))
    with torch.no_grad():
        wanted = purify.load(colour)(pixels[None] / 255)[0] * 255
    assert written.shape == pixels.shape
    assert (written - wanted).abs().max() <= 0.51
    assert not list(tmp_path.rglob("*report*"))


def test_report_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A digit, which the shipped purifier and classifier know."""
    x, labels = purify.load_dataset("digits", "test").first(1).batch(slice(None))
    source, out = tmp_path / "$digit_$.png", tmp_path / "out.png"  # which matplotlib takes for mathematics, and refuses
    Image.fromarray((x[0, 0] * 255).round().byte().numpy()).save(source)
    assert main(["clean", str(source), "-o", str(out), "--report", "--model", "digits-shufflenet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "8×8, grey, purified by digits-dsae" in said[0]
    classifier = purify.load_classifier("digits-shufflenet")
    for line, path in ((said[2], source), (said[3], out)):
        with torch.no_grad():
            first, second = classifier(picture_to_tensor(Image.open(path))[None] / 255)[0].topk(2).values
        assert f"class {int(labels)}, margin {first - second:+.2f} (class {int(labels)} {first:.2f}, " in line
    report = Image.open(tmp_path / "out.report.png")
    assert min(report.size) > 300
    assert said[-1] == f"wrote {out}, {tmp_path / 'out.report.png'}"


def test_a_classifier_of_torchvision(tmp_path: Path, colour: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "photo.png", tmp_path / "out.png"
    photograph(260, 700).save(source)
    torch.manual_seed(0)
    model = models.shufflenet_v2_x0_5().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    words = ["clean", str(source), "-o", str(out), "--purifier", colour, "--model", "shufflenet_v2_x0_5"]
    assert main([*words, "--weights", str(tmp_path / "weights.safetensors"), "--report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    weights = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    for line, path in ((lines[2], source), (lines[3], out)):
        with torch.no_grad():
            best = int(model(weights.transforms()(Image.open(path))[None])[0].argmax())
        assert f": {weights.meta['categories'][best]}, margin +" in line.replace("  ", " ")
    assert (tmp_path / "out.report.png").exists()
    assert main(words) == 1
    assert "give the weights of torchvision's shufflenet_v2_x0_5 with --weights" in capsys.readouterr().err


def test_pictures_of_every_kind(tmp_path: Path, colour: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    picture = photograph(40, 60)
    grey = np.asarray(picture.convert("L"))
    animation = {"save_all": True, "append_images": [Image.new("RGB", (60, 40), "blue")]}
    for name, saved, options, mode, size in (
        ("cmyk.jpg", picture.convert("CMYK"), {}, "RGB", (60, 40)),
        ("grey.png", picture.convert("L"), {}, "L", (60, 40)),
        ("grey-in-colour.png", picture.convert("L").convert("RGB"), {}, "L", (60, 40)),
        ("clear.png", picture.convert("RGBA"), {}, "RGB", (60, 40)),
        ("sixteen.png", Image.fromarray(grey.astype(np.uint16) * 257), {}, "L", (60, 40)),
        ("animated.gif", picture, animation, "RGB", (60, 40)),
        ("rotated.jpg", picture, {"exif": exif}, "RGB", (40, 60)),
        ("pixel.png", Image.new("RGB", (1, 1), "red"), {}, "RGB", (1, 1)),
        ("line.png", photograph(1, 300), {}, "RGB", (300, 1)),
    ):
        saved.save(tmp_path / name, **options)
        out = tmp_path / f"{name}.out.png"
        assert main(["clean", str(tmp_path / name), "-o", str(out), "--purifier", colour, "--report"]) == 0
        with Image.open(out) as purified:
            assert (purified.mode, purified.size) == (mode, size)
    first, sixteen = (np.asarray(Image.open(tmp_path / f"{name}.png.out.png")) for name in ("grey", "sixteen"))
    assert np.array_equal(first, sixteen)


def test_what_goes_wrong_is_said(tmp_path: Path, colour: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "photo.png", tmp_path / "out.png"
    photograph(300, 400).save(source)
    buffer = io.BytesIO()
    photograph(300, 400).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[:-500])
    for words, says in (
        ([cut, "-o", out, "--purifier", colour], "cut.jpg cannot be read: image file is truncated"),
        ([tmp_path / "none.jpg", "-o", out], "no picture"),
        ([source, "-o", out, "--purifier", "mnist-dsae"], "takes grey pictures and this one is in colour"),
        ([source, "-o", out, "--purifier", "nothing"], "unknown checkpoint 'nothing'"),
        ([source, "-o", out, "--purifier", "mnist-resnet18"], "is a classifier, not a purifier"),
        ([source, "-o", out, "--purifier", colour, "--model", "nothing"], "unknown checkpoint 'nothing'"),
        ([source, "-o", out, "--purifier", colour, "--tile", "0"], "got 0"),
        ([source, "-o", tmp_path / "out.txt"], "ends with .png"),
        ([source, "-o", tmp_path / "out"], "ends with .png"),
        ([source, "-o", source], "would overwrite"),
    ):
        assert main(["clean", *map(str, words)]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.startswith("purify clean: ")
        assert "Traceback" not in error
        assert not out.exists()


def test_the_default_purifier_suits_channels_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suitable_purifier(1, 28, 28) == "mnist-dsae"
    assert suitable_purifier(1, 8, 8) == "digits-dsae"
    monkeypatch.setattr("purify.checkpoint.FOLDER", tmp_path)
    with pytest.raises(ValueError, match="shipped: none; give the name or path of one with --purifier"):
        suitable_purifier(3, 300, 400)
    checkpoint(tmp_path / "digits-dsae.safetensors", 1, 8)
    checkpoint(tmp_path / "cifar10-dsae.safetensors", 3, 32)
    with pytest.raises(ValueError, match=r"picture of 3×300×400.*cifar10-dsae \(3×32×32\), digits-dsae \(1×8×8\)"):
        suitable_purifier(3, 300, 400)
    assert suitable_purifier(3, 32, 32) == "cifar10-dsae"
    assert suitable_purifier(3, 1, 1) == "cifar10-dsae"
    assert suitable_purifier(1, 30, 30) == "cifar10-dsae"  # grey, in three equal channels
    checkpoint(tmp_path / "imagenet-dsae.safetensors", 3, 128)
    assert suitable_purifier(3, 32, 32) == "cifar10-dsae"
    for size in ((300, 400), (4000, 6000), (1, 100)):
        assert suitable_purifier(3, *size) == suitable_purifier(1, *size) == "imagenet-dsae"
    assert suitable_purifier(1, 8, 8) == "digits-dsae"


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_a_large_picture_fits_into_memory(tmp_path: Path, colour: str) -> None:
    photograph(4000, 6000).save(tmp_path / "large.jpg")
    program = (
        "import pathlib, sys; from purify.cli import main; code = main(sys.argv[1:]); "
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); sys.exit(code)"
    )
    words = ["clean", "large.jpg", "-o", "purified.jpg", "--purifier", colour, "--report"]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "6000×4000" in done.stdout
    # kB; the libraries alone take about 700,000. (ru_maxrss would start from the peak of the process that runs the tests.)
    assert int(done.stdout.split()[-1]) < 2_000_000
    with Image.open(tmp_path / "purified.jpg") as picture:
        assert picture.size == (6000, 4000)
