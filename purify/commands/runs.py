"""``purify runs``: runs that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

__all__ = ["RunsCommand", "runs"]


@dataclass(frozen=True)
class RunsCommand:
    """Runs that are there: list, show or export."""

    action: tyro.conf.Positional[Literal["list", "show", "export"]] = "list"
    """list: every store under the folder; show: one in words; export: its rows (image, attack, restart, draw)."""
    run: tyro.conf.Positional[Path] = Path("runs")
    """Folder to list, or store (*.sqlite)."""
    to: Literal["csv", "json", "parquet"] = "csv"
    """Format of an export; parquet needs pyarrow."""
    out: Path | None = None
    """File of an export; default: RUN.rows.FORMAT beside the store."""


def runs(command: RunsCommand) -> int:
    """Run ``purify runs``."""
    from purify.eval.runs import export_run, find_runs, show_run

    if command.action == "show":
        print(show_run(command.run))
    elif command.action == "export":
        out = command.out or command.run.with_suffix(f".rows.{command.to}")  # beside the report, which has .csv and .json
        if out.resolve() == command.run.resolve():
            raise ValueError(f"the export would overwrite the run {command.run}; give another --out")
        print(f"wrote {export_run(command.run, command.to, out)}")
    else:
        found = find_runs(command.run)
        print("\n".join(map(str, found)) if found else f"no runs under {command.run}")
    return 0
