"""One SQLite file a run: a row for each image, attack, restart and draw, written as it happens and still there after a crash."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

__all__ = ["FORMAT", "RunStore", "StageClaim", "StageRecord", "StoreError", "Trial"]

FORMAT = 1
"""Of the file (``PRAGMA user_version``)."""

StageClaim = Literal["undefended", "clean", "oblivious", "adaptive", "verdict", "norm"]
"""``undefended``: the bare classifier; ``clean``, ``oblivious``, ``adaptive``: the defence; ``verdict``: a random defence once
more, by fresh draws, on the worst images found; ``norm``: the smallest perturbation that breaks it."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stage (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, claim TEXT NOT NULL, attack TEXT NOT NULL, path TEXT NOT NULL);
CREATE TABLE image (image INTEGER PRIMARY KEY, label INTEGER NOT NULL, error TEXT);
CREATE TABLE trial (
    stage INTEGER NOT NULL REFERENCES stage, image INTEGER NOT NULL, restart INTEGER NOT NULL, draw INTEGER NOT NULL,
    correct INTEGER NOT NULL, margin REAL, distance REAL, queries INTEGER NOT NULL,
    PRIMARY KEY (stage, image, restart, draw)) WITHOUT ROWID;
CREATE TABLE batch (
    stage INTEGER NOT NULL, restart INTEGER NOT NULL, first INTEGER NOT NULL, images INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (stage, restart, first)) WITHOUT ROWID;
CREATE TABLE picture (image INTEGER PRIMARY KEY, margin REAL, share REAL NOT NULL, pixels BLOB NOT NULL);
CREATE TABLE finding (key TEXT PRIMARY KEY, value TEXT NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
"""


class StoreError(ValueError):
    """A store that cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class StageRecord:
    """One attack along one gradient path, as the store knows it."""

    id: int
    name: str
    claim: StageClaim
    attack: str
    """With its settings, in words."""
    path: str


class Trial(NamedTuple):
    """What one draw of the model said of one image after one restart of one attack."""

    image: int
    restart: int
    draw: int
    correct: bool
    margin: float
    """NaN where the model gave something that is no number."""
    distance: float
    queries: int


class RunStore:
    """Opened with the configuration of a run: made anew, or gone on with if the file holds the same configuration.

    A batch is one transaction: a killed process loses at most the batch that it was at. While a store is open, its lock file
    keeps every other run out.

    >>> with RunStore(":memory:", {"data": "digits"}) as store:
    ...     stage = store.stage("clean", "clean")
    ...     store.add_batch(stage, 0, 0, [Trial(0, 0, 0, True, 3.5, 0.0, 1)], seconds=0.1)
    ...     store.has_batch(stage, 0, 0), [trial.margin for trial in store.trials(stage)]
    (True, [3.5])

    Args:
        path: of the file, or ``":memory:"`` for a run that is not kept.
        configuration: all that decides the figures, as plain values; None: open what is there, whatever it is.
        wait: seconds to wait for another run to let go of the store.

    Raises:
        StoreError: in use by another run; of another configuration (the difference is shown); written by a newer version;
            damaged or cut short; not there (without a configuration).
    """

    def __init__(self, path: str | Path, configuration: Mapping[str, Any] | None, *, wait: float = 0.0) -> None:
        self.path = Path(path)
        self._lock = None
        in_memory = str(path) == ":memory:"
        if not in_memory:
            if configuration is None and not self.path.is_file():
                raise StoreError(f"no run at {self.path}; `purify runs` lists those that are there")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if configuration is not None:
                self._lock = self._take_lock(wait)
        try:
            with self._told_by_name():
                self._connection = sqlite3.connect(":memory:" if in_memory else self.path, isolation_level=None)
                self._prepare(configuration)
        except BaseException:
            self.close()
            raise

    def _take_lock(self, wait: float) -> FileLock:
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise StoreError(
                f"another run is writing to {self.path}; wait for it (--wait SECONDS), or give this one another store "
                "(--store FILE, or --out FOLDER)"
            ) from None
        return lock

    def _prepare(self, configuration: Mapping[str, Any] | None) -> None:
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version > FORMAT:
            raise StoreError(
                f"{self.path} was written by a newer version of purify (format {version}; this one reads up to {FORMAT}): "
                "upgrade, or give another store (--store FILE, or --out FOLDER)"
            )
        if version == 0:
            if configuration is None:
                raise StoreError(f"{self.path} is not a run of purify")
            self._connection.execute("PRAGMA journal_mode = WAL")
            # all at once: a file without its configuration could not be gone on with
            value = json.dumps(configuration).replace("'", "''")
            begin = f"INSERT INTO meta VALUES ('configuration', '{value}');"
            self._connection.executescript(f"BEGIN; {_SCHEMA} {begin} PRAGMA user_version = {FORMAT}; COMMIT;")
            return
        damage = self._connection.execute("PRAGMA quick_check").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        if configuration is None:
            return
        differences = _differences(self.configuration, json.loads(json.dumps(configuration)))
        if differences:
            raise StoreError(
                f"{self.path} holds a run with another configuration; give another store (--store FILE, or --out FOLDER), "
                "or set back:\n  " + "\n  ".join(differences)
            )

    @contextmanager
    def _told_by_name(self) -> Iterator[None]:
        """SQLite's errors as ones for people."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise StoreError(
                    f"could not write to {self.path} ({error}): what was written before is kept; make room and run the same "
                    "command again"
                ) from error
            raise StoreError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} is damaged, cut short, or not a run of purify ({error}): move it away and run the command again"
            ) from error

    # ---- what the run is

    @property
    def configuration(self) -> dict[str, Any]:
        """As it was given when the store was made."""
        found: dict[str, Any] = self._get("configuration")
        return found

    def settled(self, key: str, choice: Any) -> Any:
        """``choice`` at the first call; at every later one, also after a crash, what was chosen then."""
        if self._get(key) is None:
            self._set(key, choice)
        return self._get(key)

    def _get(self, key: str) -> Any:
        with self._told_by_name():
            found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def _set(self, key: str, value: Any) -> None:
        with self._told_by_name():
            self._connection.execute("INSERT INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    # ---- stages and images

    def stage(self, name: str, claim: StageClaim, attack: str = "", path: str = "") -> StageRecord:
        """The stage of that name, which joins the others at its first mention."""
        with self._told_by_name():
            self._connection.execute(
                "INSERT OR IGNORE INTO stage (name, claim, attack, path) VALUES (?, ?, ?, ?)", (name, claim, attack, path)
            )
        return next(stage for stage in self.stages() if stage.name == name)

    def stages(self) -> list[StageRecord]:
        """In the order in which they were run."""
        with self._told_by_name():
            return [StageRecord(*row) for row in self._connection.execute("SELECT * FROM stage ORDER BY id")]

    def add_images(self, labels: Mapping[int, int]) -> None:
        """Note the labels of images, by number."""
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO image VALUES (?, ?, NULL)", list(labels.items()))

    def labels(self) -> Tensor:
        """int64 (N,)."""
        with self._told_by_name():
            rows = self._connection.execute("SELECT label FROM image ORDER BY image").fetchall()
        return torch.tensor([row[0] for row in rows], dtype=torch.int64)

    def errors(self) -> dict[int, str]:
        """Images of which the model said something that is no number."""
        with self._told_by_name():
            return dict(
                self._connection.execute("SELECT image, error FROM image WHERE error IS NOT NULL ORDER BY image").fetchall()
            )

    # ---- trials

    def has_batch(self, stage: StageRecord, restart: int, first: int) -> bool:
        """Whether the batch that begins with the ``first``-th of the stage's images is done."""
        with self._told_by_name():
            row = self._connection.execute(
                "SELECT 1 FROM batch WHERE stage = ? AND restart = ? AND first = ?", (stage.id, restart, first)
            ).fetchone()
        return row is not None

    def add_batch(
        self,
        stage: StageRecord,
        restart: int,
        first: int,
        trials: Sequence[Trial],
        *,
        seconds: float,
        pictures: Mapping[int, tuple[float, float, Tensor]] | None = None,
        errors: Mapping[int, str] | None = None,
    ) -> None:
        """Write a finished batch: all of it or nothing.

        Args:
            stage: which attack.
            restart: of the attack.
            first: place of the batch among the stage's images.
            trials: its rows.
            seconds: that it took.
            pictures: by number of the image: share of draws that stand, margin, and attacked image (C, H, W); kept if it is
                worse than the one there.
            errors: by number of the image.
        """
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (stage.id, t.image, t.restart, t.draw, int(t.correct), _number(t.margin), _number(t.distance), t.queries)
                    for t in trials
                ],
            )
            for image, (share, margin, pixels) in (pictures or {}).items():
                self._connection.execute(
                    "INSERT INTO picture VALUES (?, ?, ?, ?) ON CONFLICT (image) DO UPDATE SET margin = excluded.margin, "
                    "share = excluded.share, pixels = excluded.pixels "
                    "WHERE (excluded.share, excluded.margin) < (picture.share, picture.margin)",
                    (image, _number(margin), share, pixels.detach().float().cpu().contiguous().numpy().tobytes()),
                )
            for image, error in (errors or {}).items():
                self._connection.execute("UPDATE image SET error = coalesce(error, ?) WHERE image = ?", (error, image))
            count = len({trial.image for trial in trials})
            self._connection.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", (stage.id, restart, first, count, seconds))

    def trials(self, stage: StageRecord) -> list[Trial]:
        """All rows of a stage, by image, restart and draw."""
        with self._told_by_name():
            rows = self._connection.execute(
                "SELECT image, restart, draw, correct, margin, distance, queries FROM trial WHERE stage = ? "
                "ORDER BY image, restart, draw",
                (stage.id,),
            )
            return [Trial(i, r, d, bool(c), _float(m), _float(dist), q) for i, r, d, c, m, dist, q in rows]

    def outcome(self, stage: StageRecord) -> tuple[Tensor, Tensor, Tensor]:
        """For each image that the stage attacked: its number (n,), the lowest share over restarts of draws in which it stands
        (n,), and the lowest mean margin over draws (n,)."""
        query = (
            "SELECT image, min(share), min(margin) FROM (SELECT image, avg(correct) AS share, avg(margin) AS margin FROM trial "
            "WHERE stage = ? GROUP BY image, restart) GROUP BY image ORDER BY image"
        )
        with self._told_by_name():
            rows = self._connection.execute(query, (stage.id,)).fetchall()
        numbers = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        shares = torch.tensor([row[1] for row in rows], dtype=torch.float64)
        return numbers, shares, torch.tensor([_float(row[2]) for row in rows], dtype=torch.float64)

    def fallen(self, stage: StageRecord, *, before: int | None = None) -> set[int]:
        """Numbers of the images that some restart of a stage broke in every draw; only restarts ``before`` that one."""
        query = "SELECT image FROM trial WHERE stage = ? AND restart < ? GROUP BY image, restart HAVING max(correct) = 0"
        with self._told_by_name():
            return {row[0] for row in self._connection.execute(query, (stage.id, 1 << 62 if before is None else before))}

    def silent(self, stage: StageRecord) -> set[int]:
        """Numbers of the images to which the model's answer was no number."""
        with self._told_by_name():
            rows = self._connection.execute("SELECT DISTINCT image FROM trial WHERE stage = ? AND margin IS NULL", (stage.id,))
            return {row[0] for row in rows}

    def seconds(self, stage: StageRecord) -> float:
        """Wall time of a stage."""
        with self._told_by_name():
            row = self._connection.execute("SELECT coalesce(sum(seconds), 0) FROM batch WHERE stage = ?", (stage.id,)).fetchone()
        return float(row[0])

    def pictures(self, shape: tuple[int, int, int], images: Sequence[int] | None = None) -> dict[int, Tensor]:
        """The worst attacked image (C, H, W) that was kept for each image; of all, or of some."""
        chosen = "" if images is None else f" WHERE image IN ({','.join(str(int(i)) for i in images)})"
        with self._told_by_name():
            rows = self._connection.execute(f"SELECT image, pixels FROM picture{chosen} ORDER BY image").fetchall()
        return {image: torch.from_numpy(np.frombuffer(pixels, dtype=np.float32).reshape(shape).copy()) for image, pixels in rows}

    # ---- findings: what is no trial (checks, curves, costs)

    def finding(self, key: str) -> Any:
        """What was written under ``key``, or None."""
        with self._told_by_name():
            row = self._connection.execute("SELECT value FROM finding WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def add_finding(self, key: str, value: Any, seconds: float = 0.0, *, replace: bool = False) -> None:
        """Write plain values under ``key``: for good, or in the place of what is there."""
        with self._told_by_name():
            verb = "INSERT OR REPLACE" if replace else "INSERT"
            self._connection.execute(f"{verb} INTO finding VALUES (?, ?, ?)", (key, json.dumps(value), seconds))

    # ---- opening and closing

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told_by_name():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Let go of file and lock."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """One line for each value that differs between two trees of plain values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in _differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if before == now else [f"{where}: the store has {before!r}, this run {now!r}"]
