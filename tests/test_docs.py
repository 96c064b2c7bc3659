"""What the documents say is what the commands print."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, evaluate
from PIL import Image

from purify.checkpoint import list_checkpoints, read_card
from purify.eval import Settings
from purify.eval.reference import read_reference
from purify.eval.tables import TABLES

PAGES = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def reference_rows(name: str) -> list[list[str]]:
    """The committed table, cell by cell; the first row is its head."""
    reference = (ROOT / "eval" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in reference.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def as_markdown(rows: list[list[str]]) -> str:
    """The table again."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


@pytest.mark.parametrize("name", TABLES)
def test_the_documents_show_the_reference_tables(name: str) -> None:
    """Their tables are the committed reference, line by line; `purify tables --check` holds that against a new run."""
    rows, figures = reference_rows(name), read_reference(name)
    assert figures is not None
    assert [row[0] for row in rows[1:]] == [row["name"] for row in figures["rows"]]
    assert as_markdown(rows) in (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mnist-0.3", "cifar10"])
def test_the_readme_shows_some_columns_and_every_row(name: str) -> None:
    rows = reference_rows(name)
    chosen = ["defence", "clean", "PGD, oblivious", "adaptive", "worst case", "smallest norm", "MACs", "checks"]
    excerpt = [[row[rows[0].index(column)] for column in chosen] for row in rows]
    assert as_markdown(excerpt) in (ROOT / "README.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page: lower case, letters, digits and hyphens, a hyphen for each space."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


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


@pytest.mark.usefixtures("short_attacks")
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python from top to bottom, on fewer images, with short attacks and a ResNet-50 of random weights. Training is left to
    its own tests."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200), "orange").save("photo.jpg")
    quick = {"check_images": 3, "check_steps": 2, "random_draws": 5, "norm_images": 3, "oblivious_steps": 2, "pictures": 1}
    monkeypatch.setattr(evaluate, "Settings", functools.partial(Settings, **quick))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [code for code in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "my-weights" not in code]
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for code in blocks:
        exec(code.replace("first(40)", "first(5)").replace("resnet50(weights=weights)", "resnet50()"), names)
    assert names["code"].shape[0] == len(names["result"].success) == names["report"].clean.n == 5
    assert {path.name for path in tmp_path.iterdir()} >= {"run.sqlite", "report.json", "rows.csv"}
