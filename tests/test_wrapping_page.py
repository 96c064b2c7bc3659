"""The examples of docs/wrapping.md, run in their order on small things with random weights."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

import purify
from purify.checkpoint import Card, save
from purify.cli import main

PAGE = (ROOT / "docs" / "wrapping.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for granted: a photograph, a purifier, and classifiers that need no download."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((700, 500)).save("photo.jpg")
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1))
    architecture = dataclasses.asdict(purifier.config)
    card = Card(name="photographs", kind="purifier", architecture=architecture, image_shape=(3, 64, 64))
    save(purifier, card, "photographs.safetensors")
    state = models.squeezenet1_0().state_dict()
    save_file(state, "squeezenet.safetensors")
    monkeypatch.setattr(models.SqueezeNet1_0_Weights, "get_state_dict", lambda self, **options: state)
    return tmp_path


def test_python(folder: Path) -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    assert timm
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64
    )
    transformers.ViTForImageClassification(config).save_pretrained("my-vit")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained("my-vit")
    names: dict[str, Any] = {"torch": torch}
    for code in blocks("python"):
        exec(code.replace("pretrained=True", "pretrained=False"), names)
        if "logits" in code:
            assert names["logits"].ndim == 2
    assert names["batch"].shape == (3, 3, 224, 224)
    assert names["purified"].shape == names["pixels"].shape == (1, 3, 500, 700)


def test_commands(folder: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("purify ")]
    assert len(lines) == 2
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    assert (folder / "out.report.png").exists()
