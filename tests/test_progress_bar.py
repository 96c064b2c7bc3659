"""Bars are for terminals; a log file gets a line a minute."""

from __future__ import annotations

import io
import re

import pytest
from tqdm import tqdm

from purify.eval.progress import Progress
from purify.progress_bar import progress_bar


class _Stream(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def _shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, seconds: float, quiet: bool = False) -> list[int]:
    """The states that a bar of ten units writes, of which each takes ``seconds``."""
    now, stream = [1000.0], _Stream(terminal=terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])  # by which a bar that starts tells the time, and goes on to
    with progress_bar(total=10, label="attacking", unit="image", quiet=quiet) as bar:
        bar._time = lambda: now[0]
        for _ in range(10):
            now[0] += seconds
            bar.update()
    return [int(done) for done in re.findall(r"(\d+)/10", stream.getvalue())]


def test_on_a_terminal_each_unit_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shown(monkeypatch, terminal=True, seconds=1.0) == list(range(11))
    assert _shown(monkeypatch, terminal=True, seconds=1.0, quiet=True) == []


def test_a_log_file_gets_a_line_a_minute_of_what_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shown(monkeypatch, terminal=False, seconds=1.0) == []
    assert _shown(monkeypatch, terminal=False, seconds=30.0) == [2, 4, 6, 8, 10]


def test_a_bar_counts_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []
    monkeypatch.setattr(tqdm, "update", lambda self, n=1: counted.append(n))
    progress = Progress("digits")
    with progress.tasks(["S1", "S2"], "checks") as names:
        assert list(names) == ["S1", "S2"]
    assert counted == [1, 1]
