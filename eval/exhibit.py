"""An exhibit: one figure, the numbers that it shows, and words that say how to read it."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from purify.figure_text import read_literally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "Exhibit", "inline_svg"]

INK = "#010203"  # replaced by the page's own text colour, so that figures follow light and dark
COLOURS = ("#6b7280", "#0d9488", "#d97706", "#8b5cf6", "#db2777", "#2563eb")
_STYLE = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "purify",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure with its numbers."""

    id: str
    """Short, for file names and links."""
    title: str
    reading: str
    """What the axes are, what the claim predicts."""
    found: str
    """What was found, in a sentence; the figure's text alternative."""
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    svg: str = ""
    """The figure; empty for a table alone."""

    def csv(self) -> str:
        """All numbers; what is not known is left empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([self.columns, *([_written(cell, "") for cell in row] for row in self.rows)])
        return buffer.getvalue()

    def csv_link(self) -> str:
        """The same as a link that a page can carry in itself."""
        return "data:text/csv;base64," + base64.b64encode(self.csv().encode()).decode()

    def standalone_svg(self) -> str:
        """The figure as a file of its own, dark on white; empty where there is none."""
        style = f'role="img" aria-label="{html.escape(self.title)}" style="color:#1f2937;background:#fff"'
        return self.svg.replace('aria-hidden="true"', style, 1)

    def shown_rows(self, most: int = 40) -> list[list[str]]:
        """Rows as words; of long tables evenly spaced ones, for a page (the CSV has all)."""
        step = max(1, -(-len(self.rows) // most))
        return [[_written(cell) for cell in row] for row in self.rows[::step]]

    def markdown(self) -> str:
        """Title, reading, what was found, and the table (of a long one evenly spaced rows)."""
        lines = ["| " + " | ".join(row) + " |" for row in [list(self.columns), *self.shown_rows(24)]]
        lines.insert(1, "|" + "---|" * len(self.columns))
        return "\n".join([f"## {self.title}", "", self.reading, "", f"**Found:** {self.found}", "", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the figure left out."""
        rows = [[None if isinstance(c, float) and c != c else c for c in row] for row in self.rows]
        return {"id": self.id, "title": self.title, "found": self.found, "columns": list(self.columns), "rows": rows}


def inline_svg(paint: Callable[[Figure], None], size: Sequence[float] = (7.2, 3.4)) -> str:
    """A figure as SVG inside a page: it takes the page's text colour, and is hidden from screen readers, for which the words and
    the table are."""
    with plt.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = plt.figure(figsize=(size[0], size[1]))
        paint(figure)
        read_literally(figure)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ([^>]*?)height="[^"]*" width="[^"]*"', r"<svg \1\2", svg)
    return svg[svg.index("<svg") :].replace(INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" ', 1)


def _written(cell: Cell, missing: str = "–") -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return missing
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
