"""The committed reference tables, and whether a recomputed table agrees with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["REFERENCE_FOLDER", "compare_with_reference", "read_reference"]

REFERENCE_FOLDER = Path(__file__).resolve().parent / "reference"

_MUST_MATCH = ("data", "classifier", "threat", "images", "settings")


def read_reference(data: str) -> dict[str, Any] | None:
    """The committed table of a data set as plain values, or None where there is none."""
    path = REFERENCE_FOLDER / f"{data}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def compare_with_reference(table: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """What a recomputed table has that lies outside the reference's 95 % intervals; empty where all agrees.

    Compared are clean, oblivious, adaptive, worst-case and recovered accuracy of every row. Costs are not: they
    depend on the machine.

    Args:
        table: ``DefenceTable.to_dict()``.
        reference: the same, of the committed run.

    Returns:
        One line a difference: in the settings, a missing row, or a figure outside its interval.
    """
    plain = json.loads(json.dumps(table))
    differences = [
        f"{key}: the reference was made with {reference['spec'][key]}, this table with {plain['spec'][key]}"
        for key in _MUST_MATCH
        if plain["spec"][key] != reference["spec"][key]
    ]
    if differences:
        return differences
    rows = {row["name"]: row for row in plain["rows"]}
    for wanted in reference["rows"]:
        name = wanted["name"]
        if name not in rows:
            differences.append(f"{name}: this row is missing")
            continue
        now = _shares(rows[name])
        for figure, (_, low, high) in _shares(wanted).items():
            share = now.get(figure, (None,))[0]
            if share is None or not low - 1e-9 <= share <= high + 1e-9:
                came = "missing" if share is None else f"{100 * share:.1f} %"
                differences.append(f"{name}, {figure}: {came}, outside the reference's [{100 * low:.1f}, {100 * high:.1f}]")
    return differences


def _shares(row: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """For each accuracy its value and interval."""
    found = {"clean": row["clean"], "adaptive": row["adaptive"], "worst case": row["worst_case"]}
    found |= {f"{attack}, oblivious": value for attack, value in row["oblivious"].items()}
    shares = {name: (a["right"] / a["n"], a["low"], a["high"]) for name, a in found.items()}
    for attack, value in row["recovered"].items():
        if value["share"] is not None:
            shares[f"recovered from {attack}"] = (value["share"], value["low"], value["high"])
    return shares
