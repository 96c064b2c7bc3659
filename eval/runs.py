"""Runs that are there: list them, show one, hand its rows to other tools."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from purify.attacks import ThreatModel
from purify.eval.report import Report
from purify.eval.store import RunStore, StoreError

__all__ = ["ExportFormat", "RunSummary", "export_run", "find_runs", "show_run"]

ExportFormat = Literal["csv", "json", "parquet"]


@dataclass(frozen=True)
class RunSummary:
    """One line of ``purify runs``."""

    path: Path
    name: str
    """Of the defence; empty where the store cannot be read."""
    words: str
    """Threat model, images and result; or what is wrong with the store."""

    def __str__(self) -> str:
        return f"{self.path}  {self.name}  {self.words}"


def find_runs(folder: Path) -> list[RunSummary]:
    """Every store under ``folder``, by path; of a store that store alone. What cannot be read is listed with the reason."""
    return [_summary(path) for path in ([folder] if folder.is_file() else sorted(folder.rglob("*.sqlite")))]


def _summary(path: Path) -> RunSummary:
    try:
        with RunStore(path, None) as store:
            configuration = store.configuration
            words = f"{ThreatModel(**configuration['threat'])}, n = {configuration['images']['n']}"
            if store.finding("costs") is None:
                stages = store.stages()
                at = "the checks" if store.finding("check S1") is not None else stages[-1].name if stages else "the start"
                return RunSummary(path, configuration["name"], f"{words}: not finished, at {at}")
            report = Report.of(store)
            checks = (
                f"checks FAILED: {', '.join(report.failed)}"
                if report.failed
                else "checks passed"
                if report.checks
                else "no checks"
            )
            return RunSummary(path, report.name, f"{words}: clean {report.clean}, worst case {report.worst_case}, {checks}")
    except StoreError as error:
        return RunSummary(path, "", str(error))


def show_run(path: Path) -> str:
    """A finished run in words: table, stages, checks.

    Raises:
        StoreError: the store cannot be read.
        ValueError: the run is not finished.
    """
    with RunStore(path, None) as store:
        report = Report.of(store)
        stages = store.stages()
    lines = [report.table(), "", report.suite, "", "stage (claim): first to break, seconds"]
    lines += [
        f"  {stage.name} ({stage.claim}): {report.broken_by.get(stage.name, 0)}, {report.seconds[stage.name]:.1f}"
        for stage in stages
    ]
    lines += ["", "checks"] + [f"  {check.id} {check.verdict}: {check.words}" for check in report.checks]
    lines += [f"  image {image}: {error}" for image, error in report.errors.items()]
    return "\n".join(lines)


_COLUMNS = ("stage", "claim", "attack", "path", "image", "label", "restart", "draw", "correct", "margin", "distance", "queries")


def export_run(path: Path, to: ExportFormat, out: Path) -> Path:
    """Write one row for each image, attack, restart and draw.

    Args:
        path: of the store.
        to: ``csv``; ``json``, one object a line; ``parquet``, which needs pyarrow.
        out: file to be written.

    Raises:
        StoreError: the store cannot be read.
        ValueError: unknown format.
        ModuleNotFoundError: parquet without pyarrow.
    """
    if to not in get_args(ExportFormat):
        raise ValueError(f"unknown format {to!r}; known: {', '.join(get_args(ExportFormat))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with RunStore(path, None) as store:
        if to == "parquet":
            _write_parquet(list(_rows(store)), out)
            return out
        with out.open("w", newline="", encoding="utf-8") as file:
            if to == "csv":
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                writer.writerows(["" if value is None else value for value in row.values()] for row in _rows(store))
            else:
                file.writelines(json.dumps(row) + "\n" for row in _rows(store))
    return out


def _rows(store: RunStore) -> Iterator[dict[str, Any]]:
    labels = store.labels().tolist()
    for stage in store.stages():
        for trial in store.trials(stage):
            values = trial._asdict()
            margin = None if values["margin"] != values["margin"] else values["margin"]
            head = {"stage": stage.name, "claim": stage.claim, "attack": stage.attack, "path": stage.path}
            yield {**{c: {**head, **values, "label": labels[trial.image]}[c] for c in _COLUMNS}, "margin": margin}


def _write_parquet(rows: list[dict[str, Any]], out: Path) -> None:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ModuleNotFoundError("parquet needs pyarrow: pip install 'purify-defense[parquet]'") from error
    parquet.write_table(arrow.Table.from_pylist(rows), out)
