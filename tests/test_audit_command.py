"""``purify audit``: pages, tables and numbers, and an audit that joins a run's report."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import purify
from purify.attacks import ThreatModel
from purify.checkpoint import read_card, save
from purify.cli import main
from purify.commands import audit
from purify.commands.audit import _usual_eps
from purify.eval.spectrum import Audit, AuditSettings
from purify.eval.spectrum.claim import Verdict
from purify.eval.store import RunStore

VERDICT = Verdict(name="a", oblivious="partly", adaptive="partly", sentences=[])

FEW = AuditSettings(images=4, jacobians=1, attack_steps=2, norm_steps=3, band_images=2, band_steps=1, frequencies=3, natural=200)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands measure little: what they write is looked at, not the figures."""
    monkeypatch.setattr(AuditSettings, "suited", lambda _, **changes: dataclasses.replace(FEW, **changes))


@pytest.mark.usefixtures("quick_commands")
def test_command_writes_page_tables_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", "digits-dsae", "--images", "6", "--natural", "100", "--out", str(tmp_path), "--quiet"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "selective filter" in said
    folder = tmp_path / "digits-dsae"
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert "purify audit digits-dsae" in page
    assert page.count("<svg") == 8
    figures = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    gain = next(e for e in figures["exhibits"] if e["id"] == "gain")
    assert gain["columns"][:5] == ["purifier", "basis", "direction", "variance", "gain"]
    assert len((folder / "gain.csv").read_text().splitlines()) == len(gain["rows"]) + 1
    figure = ElementTree.fromstring((folder / "gain.svg").read_text(encoding="utf-8"))
    assert figure.get("aria-label") == "Gain against natural variance"
    assert "## Margin spectrum" in (folder / "audit.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick_commands")
def test_a_checkpoint_of_ones_own_stays_itself_beside_a_shipped_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = purify.load("digits-dsae")
    with torch.no_grad():
        own.atoms.mul_(-1)
    path = tmp_path / "digits-dsae.safetensors"
    save(own, read_card("digits-dsae"), path)
    seen: dict[str, nn.Module] = {}

    def audited(model: nn.Module, purifiers: dict[str, nn.Module], *_: object, **__: object) -> None:
        seen.update(purifiers)
        raise InterruptedError

    monkeypatch.setattr("purify.eval.spectrum.spectral_audit", audited)
    with contextlib.suppress(InterruptedError):
        main(["audit", str(path), "--images", "6", "--natural", "100", "--out", str(tmp_path), "--quiet"])
    assert torch.equal(seen["digits-dsae"].atoms, own.atoms)
    assert torch.equal(seen["digits-dsae (shipped)"].atoms, purify.load("digits-dsae").atoms)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits-dsae", "--norm", "l2"], "no table of digits says which radius is usual in l2: give --eps"),
        (["--theory", "--eps", "0.1", "--natural-data", "mnist"], "--eps and --natural-data: --theory is about no purifier"),
        (["mnist-dsae", "--theory"], "mnist-dsae: --theory is about no purifier"),
    ],
)
def test_no_radius_is_guessed_and_no_option_ignored(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, what in (("purify.commands.audit", "_measure"), ("purify.eval.theory.experiments", "run_theory")):
        monkeypatch.setattr(f"{module}.{what}", lambda *_, **__: pytest.fail("measured before it was refused"))
    assert main(["audit", *arguments, "--out", str(tmp_path)]) == 1
    assert says in capsys.readouterr().err


def test_the_usual_radius_is_that_of_a_table_in_the_same_norm() -> None:
    assert _usual_eps("mnist", "linf") == 0.2
    assert _usual_eps("imagefolder:cifar10-jpeg.zip", "l2") == 0.5
    assert _usual_eps("imagefolder:pictures", "linf") == 8 / 255


def test_the_page_says_how_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Audit(name="a", threat=ThreatModel("linf", 0.1), n=6, verdicts=[VERDICT], notes=[], exhibits=[], configuration={})
    monkeypatch.setattr("purify.commands.audit._measure", lambda *_, **__: found)
    options = ["--natural", "100", "--natural-data", "digits", "--against", "digits-dsae", "my own.safetensors"]
    assert main(["audit", "digits-dsae", *options, "--out", str(tmp_path)]) == 0
    page = html.unescape((tmp_path / "digits-dsae" / "audit.html").read_text(encoding="utf-8"))
    assert "--natural 100 --natural-data digits --against digits-dsae 'my own.safetensors'" in page


def test_a_run_that_is_not_finished_is_not_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = {
        "name": "digits-dsae",
        "about": {"data": "digits", "classifier": "digits-shufflenet", "purifier": "digits-dsae"},
        "threat": {"norm": "linf", "eps": 0.15},
        "images": {"n": 6},
        "draws": 1,
        "settings": {"seed": 0},
    }
    with RunStore(tmp_path / "run.sqlite", configuration):
        pass
    monkeypatch.setattr("purify.commands.audit._measure", lambda *_, **__: pytest.fail("measured before it was refused"))
    assert main(["audit", str(tmp_path / "run.sqlite")]) == 1
    assert "is not finished (0 of 6 images begun)" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_commands", "unsaved_figures")
def test_command_joins_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["--images", "6", "--suite", "fast", "--checks", "0", "--norms", "0", "--quiet", "--out", str(tmp_path)]
    assert main(["evaluate", *few]) == 0
    store = tmp_path / "digits.digits-dsae.sqlite"
    assert "Spectral audit" not in store.with_suffix(".html").read_text(encoding="utf-8")
    measured = []

    def measure_once(*given: Any) -> Audit:
        if not measured:
            measured.append(measure(*given))
        return measured[0]

    measure = audit._measure
    monkeypatch.setattr(audit, "_measure", measure_once)
    for _ in range(2):  # a second audit takes the place of the first
        assert main(["audit", str(store), "--images", "6", "--natural", "100", "--quiet"]) == 0
    assert store.with_suffix(".html").read_text(encoding="utf-8").count('id="margin-spectrum"') == 1
    assert main(["report", str(store)]) == 0
    assert "Spectral audit" in store.with_suffix(".html").read_text(encoding="utf-8")
    assert main(["audit", "digits-shufflenet"]) == 1
    assert "is a classifier" in capsys.readouterr().err
