"""Dataclasses as plain values, for JSON files, and back."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and words; numbers to six decimals, NaN as None.

    >>> from purify.attacks import ThreatModel
    >>> to_plain({"threat": ThreatModel("linf", 1 / 3), "margins": (1, float("nan"))})
    {'threat': {'norm': 'linf', 'eps': 0.333333}, 'margins': [1, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, float):
        return None if value != value else round(value, 6)
    return value


def from_plain(kind: type[T], plain: Any) -> T:
    """The dataclass again. Fields that are missing have their defaults, others are passed over.

    >>> from purify.attacks import ThreatModel
    >>> from_plain(ThreatModel, {"norm": "l2", "eps": 0.5, "colour": "none"})
    ThreatModel(norm='l2', eps=0.5)
    """
    made: T = _from_plain(kind, plain)
    return made


def _from_plain(kind: Any, plain: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(plain, dict):
        kinds = get_type_hints(kind)
        given = {f.name: _from_plain(kinds[f.name], plain[f.name]) for f in dataclasses.fields(kind) if f.name in plain}
        return kind(**given)  # type: ignore[operator]
    inside = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):  # T | None
        return None if plain is None else _from_plain(inside[0], plain)
    if get_origin(kind) is dict:
        key = int if inside[0] is int else str  # JSON has no other keys than words
        return {key(k): _from_plain(inside[1], v) for k, v in plain.items()}
    if get_origin(kind) is list:
        return [_from_plain(inside[0], v) for v in plain]
    return float("nan") if kind is float and plain is None else plain
