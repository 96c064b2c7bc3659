"""The report of ``purify clean``: what was removed from one picture, and what a classifier says before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

matplotlib.use("Agg")  # files only: works without a screen
import matplotlib.pyplot as plt

from purify.figure_text import read_literally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from purify.commands.clean import Verdict

__all__ = ["save_clean_report"]

_SHOWN = 640
"""Pixels of the longer side up to which a picture is shown whole."""
_DETAIL = 128
"""Side of the detail of larger ones, shown pixel by pixel: reduced, they would not show what is removed."""
_TITLES = (
    ("picture", "purified", "removed ×10 (grey: nothing)"),
    ("where most was removed, pixel by pixel", "purified", "removed ×10"),
)


def save_clean_report(
    path: Path, title: str, before: Tensor, after: Tensor, verdicts: tuple[Verdict, Verdict] | None = None
) -> Path:
    """Draw the picture, the purified one and their difference ×10; of large ones also the detail where most was removed.

    Args:
        path: of the PNG.
        title: its first line.
        before: uint8 (C, H, W).
        after: the same, purified.
        verdicts: of a classifier, before and after.

    Returns:
        The path.
    """
    rows = [(before, after)]
    if max(before.shape[1:]) > _SHOWN:
        rows = [(_reduced(before), _reduced(after)), _detail(before, after)]
    height, width = before.shape[1:]
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(10.5, 1.2 + len(rows) * min(6.0, max(1.6, 3.4 * height / width))), squeeze=False
    )
    for line, (one, other), titles in zip(axes, rows, _TITLES, strict=False):
        removed = (0.5 + 5 * (one.float() - other.float()) / 255).clamp(0, 1)
        for axis, name, image in zip(line, titles, (one.float() / 255, other.float() / 255, removed), strict=True):
            _show(axis, image)
            axis.set_title(name, fontsize=10)
    if verdicts is not None:
        said = "\n".join(f"{when}: {verdict}" for when, verdict in zip(("before", "after"), verdicts, strict=True))
        figure.text(0.01, 0.0, said, fontsize=8, va="top", wrap=True)
    figure.suptitle(title, fontsize=11)
    read_literally(figure)
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def _detail(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The square in which the most was removed, of both."""
    removed = torch.maximum(before, after) - torch.minimum(before, after)
    changed = removed.sum(0, keepdim=True, dtype=torch.float32)  # (1, H, W)
    side = [min(_DETAIL, size) for size in changed.shape[1:]]
    step = [max(1, size // 2) for size in side]
    sums = F.avg_pool2d(changed, side, stride=step)[0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    where = (..., slice(row * step[0], row * step[0] + side[0]), slice(column * step[1], column * step[1] + side[1]))
    return before[where], after[where]


def _reduced(pixels: Tensor) -> Tensor:
    """Every so many pixels one: small enough to be drawn, and what was removed is not averaged away."""
    step = -(-max(pixels.shape[1:]) // _SHOWN)
    return pixels[:, ::step, ::step]


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
