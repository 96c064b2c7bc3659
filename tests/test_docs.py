"""What the documents say is what the commands print."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from purify.checkpoint import list_checkpoints, read_card
from purify.eval.reference import read_reference
from purify.eval.tables import TABLES

PAGES = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", TABLES)
def test_the_documents_show_the_reference_tables(name: str) -> None:
    """Their tables are the committed reference, line by line; `purify tables --check` holds that against a new run."""
    reference = (ROOT / "eval" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    lines = [line for line in reference.splitlines() if line.startswith("|")]
    figures = read_reference(name)
    assert figures is not None
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {row['name']}" for row in figures["rows"]]
    assert any("\n".join(lines) in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:  # type: ignore[no-untyped-def]
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_checkpoint_is_shown() -> None:
    text = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    for name in list_checkpoints():
        card = read_card(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert card.sha256[:12] in row
        assert f"{card.figures['parameters']:,}" in row


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)
