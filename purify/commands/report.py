"""``purify report``: a finished run as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

__all__ = ["ReportCommand", "report"]


@dataclass(frozen=True)
class ReportCommand:
    """A finished run as one self-contained HTML file, with Markdown and JSON of the same figures beside it."""

    run: tyro.conf.Positional[Path]
    """Store of the run (*.sqlite)."""
    out: Path | None = None
    """HTML file; default: beside the store."""


def report(command: ReportCommand) -> int:
    """Run ``purify report``."""
    from purify.eval import Report
    from purify.eval.html import save_report
    from purify.eval.store import RunStore

    if command.out is not None and command.out.suffix.lower() not in (".html", ".htm"):  # Markdown and JSON lie beside it
        raise ValueError(f"expected an HTML file (*.html) for --out, got {command.out}")
    with RunStore(command.run, None) as store:
        found = Report.of(store)
    written = save_report(found, command.out or command.run.with_suffix(".html"))
    print(f"wrote {', '.join(str(path) for path in written)}")
    return 0
