"""Checkpoints: a whole one loads exactly, a damaged one says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import accuracy, need
from torch import Tensor, nn

import purify
from purify.checkpoint import FOLDER, Card, CheckpointError, load_any, read_card, save

LIMIT = 25 * 2**20


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(units=8, width=4, depth=1))
    path = tmp_path / "mine.safetensors"
    save(purifier, Card(name="mine", kind="purifier", architecture=vars(purifier.config), image_shape=(1, 8, 8)), path)
    return path


def test_round_trip(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(units=8, width=4, depth=1))
    loaded = purify.load(saved)
    assert not loaded.training
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(loaded(x), original(x), atol=1e-2)  # stored as float16
    exact = save(original, read_card(saved), tmp_path / "exact.safetensors", dtype=torch.float32)
    assert torch.equal(purify.load(tmp_path / "exact.safetensors")(x), original(x))
    assert exact.sha256 == read_card(tmp_path / "exact.safetensors").sha256


def test_layout_of_the_weights_shows_nowhere(saved: Path, tmp_path: Path) -> None:
    """Convolutions come channels-last, for speed: neither the file nor the purified images know."""
    loaded = purify.load(saved)
    convolutions = [module for module in loaded.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
    assert convolutions
    assert not any(module.weight.is_contiguous() for module in convolutions if module.in_channels > 1)
    x = torch.rand(2, 1, 8, 8)
    purified = loaded(x)
    assert purified.is_contiguous()
    assert torch.allclose(purified, loaded.to(memory_format=torch.contiguous_format)(x), atol=1e-6)
    assert save(purify.load(saved), read_card(saved), tmp_path / "again.safetensors").sha256 == read_card(saved).sha256


def test_what_float16_does_not_hold_is_stored_as_it_is(saved: Path, tmp_path: Path) -> None:
    """Above 65,504 it would come back as infinity."""
    purifier = purify.load(saved)
    with torch.no_grad():
        purifier.atoms[0] *= 1e6 / purifier.atoms[0].abs().max()
    save(purifier, read_card(saved), tmp_path / "large.safetensors")
    loaded = purify.load(tmp_path / "large.safetensors")
    assert torch.equal(loaded.atoms, purifier.atoms)
    assert torch.equal(loaded.raw_threshold, purifier.raw_threshold.half().float())
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(loaded(x), purifier(x), atol=1e-2)


@pytest.mark.parametrize("name", purify.list_checkpoints())
def test_shipped(name: str) -> None:
    card = read_card(name)
    module = load_any(name)
    assert not module.training
    with torch.no_grad():
        assert torch.isfinite(module(torch.rand(2, *card.image_shape))).all()
    assert (FOLDER / f"{name}.safetensors").stat().st_size <= LIMIT
    assert card.name == name
    for field in ("recipe", "dataset", "versions", "wall_seconds", "figures"):
        assert getattr(card, field), f"the card of {name} lacks {field}"


def test_shipped_in_all() -> None:
    assert {"digits-dsae", "digits-shufflenet", "mnist-dsae", "mnist-resnet18"} <= set(purify.list_checkpoints())
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 60 * 2**20


def test_golden_logits(victim: nn.Module, purifier: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """The shipped files still compute what they did when they were committed."""
    x, _ = digits
    golden = json.loads((Path(__file__).parent / "golden" / "digits.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        assert torch.allclose(victim(x[:2]), torch.tensor(golden["logits"]), atol=1e-3)
        assert torch.allclose(purifier(x[:1])[0, 0, 4], torch.tensor(golden["purified_row"]), atol=1e-3)


def answer_to_a_pattern(name: str) -> list[float]:
    """The first eight numbers that a shipped network makes of a fixed pattern of at most 32 × 32 pixels."""
    channels, height, width = (min(side, 32) for side in read_card(name).image_shape)
    places = torch.arange(channels * height * width, dtype=torch.float64).view(1, channels, height, width)
    pattern = (0.5 + 0.5 * (0.37 * places).sin()).float()
    with torch.no_grad():
        answer: Tensor = load_any(name)(pattern)
    return answer.flatten()[:8].tolist()


@pytest.mark.parametrize("name", purify.list_checkpoints())
def test_golden_answers(name: str) -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "checkpoints.json").read_text(encoding="utf-8"))
    assert answer_to_a_pattern(name) == pytest.approx(golden[name], abs=2e-3)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(purify.CheckpointError, match="unknown checkpoint 'nonesuch'; known: .*digits-dsae"):
        purify.load("nonesuch")


def test_wrong_kind() -> None:
    with pytest.raises(purify.CheckpointError, match=r"is a classifier, not a purifier.*load_classifier"):
        purify.load("digits-shufflenet")
    with pytest.raises(purify.CheckpointError, match=r"is a purifier, not a classifier; load it with purify\.load"):
        purify.load_classifier("digits-dsae")


def test_wrong_sha256(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(purify.CheckpointError, match="does not match its card"):
        purify.load(saved)


def test_cut_short(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(purify.CheckpointError, match="cut short"):
        purify.load(saved)


def test_cut_short_with_a_matching_card(saved: Path) -> None:
    """Even a card that was made for the damaged file does not let it through."""
    import hashlib

    raw = saved.read_bytes()[:-100]
    saved.write_bytes(raw)
    rewrite(saved, sha256=hashlib.sha256(raw).hexdigest())
    with pytest.raises(purify.CheckpointError, match="not a whole safetensors file"):
        purify.load(saved)


def test_other_architecture(saved: Path) -> None:
    rewrite(saved, architecture={**read_card(saved).architecture, "units": 16})
    with pytest.raises(purify.CheckpointError, match="another architecture"):
        purify.load(saved)


def test_pickles_are_never_loaded(saved: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, saved)
    with pytest.raises(purify.CheckpointError, match="is a pickle"):
        purify.load(saved)


def test_card_missing_or_broken(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved, tmp_path / "alone.safetensors")
    with pytest.raises(purify.CheckpointError, match="has no card"):
        purify.load(tmp_path / "alone.safetensors")
    saved.with_suffix(".json").write_text("{", encoding="utf-8")
    with pytest.raises(purify.CheckpointError, match="cannot be read"):
        purify.load(saved)
    with pytest.raises(purify.CheckpointError, match="no checkpoint file"):
        purify.load(tmp_path / "gone.safetensors")


def rewrite(path: Path, **changes: object) -> None:
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_cifar10_classifier_on_pictures_that_no_jpeg_touched() -> None:
    archive = need("cifar10-lossless.zip", "a zip of test/<class>/<n>.png, 1,000 original test images of CIFAR-10")
    pictures = purify.load_dataset(f"imagefolder:{archive}", "test")
    every_second = pictures.batch(slice(0, None, 2))  # 90.8 % of all of them
    assert accuracy(purify.load_classifier("cifar10-resnet18"), *every_second) == pytest.approx(0.910, abs=0.004)


def test_a_folder_of_its_name_does_not_hide_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits-dsae").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_card("digits-dsae").name == "digits-dsae"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "banana"}, "is of no kind that is known here: purifier, classifier, denoiser"),
        ({"architecture": {"unit": 3}}, "describes no architecture that this version knows .*unit"),
        (None, "is of no kind that is known here"),
    ],
)
def test_a_card_of_something_else(tmp_path: Path, change: dict[str, Any] | None, words: str) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(FOLDER / f"digits-dsae{suffix}", tmp_path / f"mine{suffix}")
    card = tmp_path / "mine.json"
    card.write_text(json.dumps([] if change is None else {**json.loads(card.read_text()), **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        purify.load(tmp_path / "mine.safetensors")
