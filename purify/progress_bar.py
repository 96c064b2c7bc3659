"""Progress bars: live on a terminal; in a log file a line a minute, and none for what takes less than a minute."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(*, total: int, label: str, unit: str, initial: int = 0, quiet: bool = False) -> tqdm[Any]:
    """A bar on standard error, to be updated and closed; it is cleared when it is closed.

    Args:
        total: how many units there are.
        label: what is going on.
        unit: what is counted.
        initial: how many were done before.
        quiet: no bar.

    >>> with progress_bar(total=2, label="reading", unit="image") as bar:
    ...     _ = bar.update(2)
    """
    pause, delay = (0.1, 0.0) if sys.stderr.isatty() else (60.0, 60.0)
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        disable=quiet,
        leave=False,
        mininterval=pause,
        maxinterval=max(pause, 10.0),
        delay=delay,
    )
