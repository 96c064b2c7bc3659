"""The committed reference tables, and what the shipped purifiers promise."""

from __future__ import annotations

import copy

import pytest
from torch import nn

import purify
from purify.attacks import Suite, ThreatModel
from purify.eval import Report, Settings, evaluate
from purify.eval.reference import REFERENCE_FOLDER, compare_with_reference, read_reference
from purify.eval.tables import TABLES, DefenceTable
from purify.fingerprint import fingerprint_model

THREAT = ThreatModel("linf", 0.15)
OBLIVIOUS = Suite("none", "no adaptive attack", ())
FEW = Settings(suite="fast", oblivious_steps=15, norm_images=20, check_images=0, pictures=0)


# ---- the shipped defence, on the embedded digits and on MNIST


def test_digits_keep_their_promise(victim: nn.Module) -> None:
    """What the README says of the digits, within the noise of a subset."""
    digits = purify.load_dataset("digits", "test")
    found = evaluate(purify.wrap(victim, "digits-dsae"), digits, None, THREAT, settings=FEW, suite=OBLIVIOUS, quiet=True)
    assert found.undefended_clean.share >= 0.96
    assert found.undefended["PGD"].share < 0.10
    assert found.recovered["PGD"].share >= 0.88
    assert found.undefended_clean.share - found.clean.share <= 0.012
    assert found.margins["attacked"].median < 0 < found.margins["purified"].median


def test_mnist_keeps_its_promise(mnist_test: purify.data.ImageSet) -> None:
    defended = purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")
    few = Settings(suite="fast", oblivious_steps=10, norm_images=0, check_images=0, pictures=0)
    found = evaluate(defended, mnist_test.first(50), None, ThreatModel("linf", 0.2), settings=few, suite=OBLIVIOUS, quiet=True)
    assert found.undefended_clean.share >= 0.98
    assert found.undefended["PGD"].share < 0.10
    assert found.recovered["PGD"].share >= 0.88
    assert found.undefended_clean.share - found.clean.share <= 0.015
    assert found.margins["attacked"].median < 0 < found.margins["purified"].median
    assert found.purifier_macs <= 0.5 * found.classifier_macs


# ---- reference tables


@pytest.mark.parametrize("name", TABLES)
def test_reference_is_committed_and_agrees_with_itself(name: str) -> None:
    reference = read_reference(name)
    assert reference is not None
    assert compare_with_reference(reference, reference) == []
    spec = TABLES[name]
    assert reference["spec"]["classifier"] == spec.classifier
    rows = [Report.from_dict(row) for row in reference["rows"]]
    assert [row.name for row in rows] == [name for name in spec.row_names if name in {row.name for row in rows}]
    committed = (REFERENCE_FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert committed.strip() == DefenceTable(spec, rows).markdown().strip()


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-l2"])
def test_reference_is_of_what_ships(name: str) -> None:
    """A table of weights that are no longer these would mislead. (MNIST's are older than some words of a DSAE's description, of
    which the fingerprint is made as well.)"""
    reference = read_reference(name)
    assert reference is not None
    spec = TABLES[name]
    for row in reference["rows"]:
        if row["name"] in spec.purifiers:
            defended = purify.wrap(purify.load_classifier(spec.classifier), row["name"])
            assert row["configuration"]["model"] == fingerprint_model(defended)


def test_differences_from_the_reference_are_named() -> None:
    reference = read_reference("digits")
    assert reference is not None
    other = copy.deepcopy(reference)
    other["rows"][1]["adaptive"]["right"] = other["rows"][1]["adaptive"]["n"]
    assert [d.split(":")[0] for d in compare_with_reference(other, reference)] == ["digits-dsae, adaptive"]
    other = copy.deepcopy(reference)
    other["rows"].pop()
    assert compare_with_reference(other, reference) == ["dense: this row is missing"]
    other = copy.deepcopy(reference)
    other["spec"]["images"] = 7
    assert "made with" in compare_with_reference(other, reference)[0]
    assert read_reference("nothing") is None
    other = copy.deepcopy(reference)
    other["rows"][0]["checks"][4]["verdict"] = "fail"
    assert compare_with_reference(other, reference) == ["none: S5 did not fail in the reference"]
    assert compare_with_reference(reference, other) == []
    other = copy.deepcopy(reference)
    for bound in ("low", "high"):
        other["rows"][1]["recovered"]["PGD"][bound] = None  # where the attack took next to nothing
    assert compare_with_reference(reference, other) == []
