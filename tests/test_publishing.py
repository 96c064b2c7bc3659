"""Where defences are published and compared, RobustBench and the Hugging Face Hub; and the page on other people's tools."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, accuracy, need_library
from torch import Tensor, nn

import purify
from purify.attacks import APGD, TargetedAPGD, ThreatModel, exact
from purify.checkpoint import CheckpointError

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """The first 60 test digits."""
    return purify.load_dataset("digits", "test").first(60).batch(slice(None))


# ---- RobustBench


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard version with fewer steps, classes and queries: in full it takes minutes for the images that stand."""
    need_library("robustbench")
    from pyautoattack import AutoAttack

    choose = AutoAttack._set_version

    def shorter(self: Any, version: str) -> None:
        choose(self, version)
        assert self.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
        self.apgd.n_iter = self.apgd_targeted.n_iter = 20
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 3
        self.fab.n_iter, self.square.n_queries = 5, 50

    monkeypatch.setattr(AutoAttack, "_set_version", shorter)


def test_robustbench(defended: nn.Module, batch: Batch, short_autoattack: None) -> None:
    """Its benchmark against native APGD of the same settings; their random starts may differ by two images of 40."""
    from purify.interop.robustbench import benchmark

    threat, images, labels = ThreatModel("linf", 0.06), batch[0][:40], batch[1][:40]
    before = torch.get_rng_state()
    theirs = benchmark(defended, threat, batch, n_examples=40, batch_size=40)
    assert torch.equal(torch.get_rng_state(), before)
    attacks = (APGD(threat, steps=20), TargetedAPGD(threat, steps=20, classes=3))
    broken = torch.stack([attack(defended, images, labels).success for attack in attacks]).any(0)
    assert theirs.clean == pytest.approx(accuracy(defended, images, labels))
    assert 0.5 < theirs.robust < 0.9
    assert theirs.robust == pytest.approx(1 - broken.float().mean().item(), abs=2.01 / 40)
    stand_ins = [name for name in ("autoattack", "pkg_resources") if find_spec(name) is None]
    assert not any(name in sys.modules for name in stand_ins)


def test_what_robustbench_asks_of_a_defence(defended: purify.PurifiedClassifier, batch: Batch) -> None:
    """Deterministic, with gradients that are not zero: of the loss, for every image."""
    images, labels = batch
    assert torch.equal(defended(images), defended(images))
    step = exact(defended)(images, lambda logits: F.cross_entropy(logits, labels, reduction="none"))
    assert bool((step.gradient.flatten(1).norm(dim=1) > 0).all())


@pytest.mark.parametrize(
    ("norm", "labels", "says"),
    [("l1", [1, 2], "L∞ and L2 only, got L1 0.1"), ("linf", [1], "expected 2 labels"), ("linf", [1.0, 2.0], "integer")],
)
def test_robustbench_refuses(norm: Any, labels: list[Any], says: str, toy: nn.Module) -> None:
    from purify.interop.robustbench import benchmark

    with pytest.raises((ValueError, TypeError), match=says):
        benchmark(toy, ThreatModel(norm, 0.1), (torch.rand(2, 1, 8, 8), torch.tensor(labels)))


# ---- Hugging Face Hub


@pytest.fixture
def hub_purifier() -> Any:
    """A small purifier of unusual architecture."""
    pytest.importorskip("huggingface_hub")
    from purify.interop.hub import HubPurifier

    return HubPurifier(purify.DSAEConfig(units=8, width=4, depth=1, encoder="tied", code="top-k", density=0.2)).eval()


def test_hub_round_trip(purifier: purify.DenoisingSparseAutoencoder, batch: Batch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from purify.interop.hub import HubPurifier

    HubPurifier.of(purifier).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = HubPurifier.from_pretrained(tmp_path)
    assert isinstance(again, purify.DenoisingSparseAutoencoder)
    assert not again.training
    assert again.config == purifier.config
    assert isinstance(again.config, purify.DSAEConfig)
    assert torch.equal(again(batch[0]), purifier(batch[0]))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "HubPurifier.from_pretrained" in card


def test_hub_keeps_every_setting(hub_purifier: Any, tmp_path: Path) -> None:
    from purify.interop.hub import HubPurifier

    for number, one in enumerate((hub_purifier, HubPurifier())):
        one.save_pretrained(tmp_path / str(number))
        assert HubPurifier.from_pretrained(tmp_path / str(number)).config == one.config
    assert HubPurifier.of(hub_purifier.train()).training


def test_push_to_hub(hub_purifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded is what can be loaded; the Hub itself is a folder here."""
    import huggingface_hub.hub_mixin

    class Folder:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            return str(shutil.copytree(folder_path, tmp_path / repo_id))

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Folder)
    where = hub_purifier.push_to_hub("somebody/digits")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(type(hub_purifier).from_pretrained(where)(x), hub_purifier(x))


def test_hub_refuses(hub_purifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.hub_mixin
    from huggingface_hub.errors import EntryNotFoundError

    from purify.interop.hub import HubPurifier

    def refuses(says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            HubPurifier.from_pretrained(tmp_path)

    refuses("no config.json")
    hub_purifier.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"layers": 3}), encoding="utf-8")
    refuses("not a purifier's.*layers.*expected some of channels, units")
    config.write_text(json.dumps(settings | {"units": 16}), encoding="utf-8")
    refuses("damaged or not those of its config.json")
    config.write_text(json.dumps(settings), encoding="utf-8")
    weights.write_bytes(weights.read_bytes()[:100])
    refuses("damaged or not those of its config.json")
    weights.rename(tmp_path / "pytorch_model.bin")
    refuses("no model.safetensors; a pickle is never loaded")

    def download(filename: str, **_: Any) -> str:
        if filename == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        HubPurifier.from_pretrained("somebody/digits")


# ---- the page


PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
NEEDS = {
    "foolbox": "foolbox",
    "ART": "art",
    "torchattacks": "torchattacks",
    "RobustBench": "robustbench",
    "Hugging Face Hub": "huggingface_hub",
}


def code(text: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("section", [s for s in SECTIONS if "```python" in s], ids=lambda s: s.splitlines()[0])
def test_the_page_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example, after the page's first lines; what a comment calls a figure is what comes out."""
    need_library(NEEDS[section.splitlines()[0]])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code(FIRST), names)
    exec(code(section), names)
    claims = re.findall(r"^(.+?)  # → (.+)$", code(FIRST) + code(section), flags=re.MULTILINE)
    assert len(claims) >= 2
    for expression, value in claims:
        assert str(eval(expression, names)) == value, expression


def test_every_library_has_an_example() -> None:
    assert {s.splitlines()[0] for s in SECTIONS if "```python" in s} == set(NEEDS)
