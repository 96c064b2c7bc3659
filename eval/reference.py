"""The committed reference tables, and whether a recomputed table agrees with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["REFERENCE_FOLDER", "compare_with_reference", "different_settings", "read_reference"]

REFERENCE_FOLDER = Path(__file__).resolve().parent / "reference"

_MUST_MATCH = ("data", "classifier", "threat", "images", "settings")


def read_reference(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """A table as plain values, the committed one unless a folder is given; None where there is none."""
    path = (folder or REFERENCE_FOLDER) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def compare_with_reference(table: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """What a recomputed table has that lies outside the reference's 95 % intervals; empty where all agrees.

    Compared are clean, oblivious, adaptive, worst-case and recovered accuracy of every row, and whether a check fails that did
    not. Costs are not: they depend on the machine.

    Args:
        table: ``DefenceTable.to_dict()``.
        reference: the same, of the committed run.

    Returns:
        One line a difference: in the settings, a missing row, a figure outside its interval, or a check that fails.
    """
    plain = json.loads(json.dumps(table))
    differences = different_settings(plain["spec"], reference["spec"])
    if differences:
        return differences
    rows = {row["name"]: row for row in plain["rows"]}
    for wanted in reference["rows"]:
        name = wanted["name"]
        if name not in rows:
            differences.append(f"{name}: this row is missing")
            continue
        if fails := _failing(rows[name]) - _failing(wanted):
            differences.append(f"{name}: {', '.join(sorted(fails))} did not fail in the reference")
        now = _shares(rows[name])
        for figure, (_, low, high) in _shares(wanted).items():
            share = now.get(figure, (None,))[0]
            if share is None or not low - 1e-9 <= share <= high + 1e-9:
                came = "missing" if share is None else f"{100 * share:.1f} %"
                differences.append(f"{name}, {figure}: {came}, outside the reference's [{100 * low:.1f}, {100 * high:.1f}]")
    return differences


def different_settings(spec: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """What keeps two tables, of which these are the specifications as plain values, from being compared; one line each."""
    return [
        f"{key}: the reference was made with {reference[key]}, this table with {spec[key]}"
        for key in _MUST_MATCH
        if spec[key] != reference[key]
    ]


def _failing(row: dict[str, Any]) -> set[str]:
    return {check["id"] for check in row["checks"] if check["verdict"] == "fail"}


def _shares(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """For each accuracy its value and interval."""
    found = {"clean": row["clean"], "adaptive": row["adaptive"], "worst case": row["worst_case"]}
    found |= {f"{attack}, oblivious": value for attack, value in row["oblivious"].items()}
    shares = {name: (a["right"] / a["n"], a["low"], a["high"]) for name, a in found.items()}
    for attack, value in row["recovered"].items():
        if None not in (value["share"], value["low"], value["high"]):  # an attack that took next to nothing leaves no interval
            shares[f"recovered from {attack}"] = (value["share"], value["low"], value["high"])
    return shares
