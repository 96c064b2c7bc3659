"""The folder of a training, for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from purify.training import distributed

__all__ = ["held"]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make ``folder``, keep every other run out of it, and remove what a killed one left half written (``*.partial``).

    Of several processes the first one does, which alone writes. The lock goes with its process, however that ends.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, held(Path(folder)), held(Path(folder)):
    ...     pass
    Traceback (most recent call last):
    ValueError: another training is writing to ...: wait for it and give the same command again, or give another folder (--out)

    Raises:
        ValueError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_first():
        yield
        return
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another training is writing to {folder}: wait for it and give the same command again, or give another folder "
            "(--out)"
        ) from None
    try:
        for left in (*folder.glob("state.*.partial"), *folder.glob("log.*.partial")):
            left.unlink()
        yield
    finally:
        lock.release()
