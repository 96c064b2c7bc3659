"""How far a run is: images left, robust so far with its interval, time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from purify.eval.intervals import wilson_interval
from purify.progress_bar import progress_bar

__all__ = ["Progress"]


class Progress:
    """A bar a stage unless ``quiet``, and scalars for TensorBoard if a folder is given.

    Raises:
        ModuleNotFoundError: a folder for TensorBoard, but no TensorBoard.
    """

    def __init__(self, title: str = "", *, quiet: bool = False, tensorboard: Path | None = None) -> None:
        self.title = title
        self.quiet = quiet
        self._robust = ""
        self._writer: Any = None
        self._steps = 0
        if tensorboard is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ModuleNotFoundError("scalars for TensorBoard need it: pip install 'purify-defense[tensorboard]'") from error
            self._writer = SummaryWriter(str(tensorboard))

    def batches(self, pieces: Sequence[tuple[int, Tensor]], images: int, name: str) -> Iterator[tuple[int, Tensor]]:
        """The batches of one stage, with a bar that counts their images."""
        label = f"{self.title}: {name}" if self.title else name
        with progress_bar(total=images, label=label, unit="image", quiet=self.quiet) as bar:
            for first, rows in pieces:
                yield first, rows
                if self._robust:
                    bar.set_postfix_str(self._robust, refresh=False)
                bar.update(len(rows))

    @contextmanager
    def tasks(self, names: Sequence[str], name: str) -> Iterator[Iterator[str]]:
        """Named tasks one after the other, with a bar that counts them."""
        label = f"{self.title}: {name}" if self.title else name
        with progress_bar(total=len(names), label=label, unit="task", quiet=self.quiet) as bar:

            def counted() -> Iterator[str]:
                for task in names:
                    yield task
                    bar.update()

            yield counted()

    def robust(self, standing: int, n: int) -> None:
        """So many of all images stand."""
        low, high = wilson_interval(standing, n)
        self._robust = f"robust so far {100 * standing / n:.1f} [{100 * low:.1f}, {100 * high:.1f}] %"
        if self._writer is not None:
            self._steps += 1
            self._writer.add_scalar("robust accuracy, %", 100 * standing / n, self._steps)

    def close(self) -> None:
        """Write out what TensorBoard has."""
        if self._writer is not None:
            self._writer.close()
