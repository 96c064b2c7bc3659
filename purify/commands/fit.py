"""``purify train --data … --model …``: a purifier for one's own classifier and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from purify.commands.data_options import DataOptions
from purify.commands.weights_options import WeightsOptions

__all__ = ["FitCommand", "fit"]


@dataclass(frozen=True, kw_only=True)
class FitCommand(WeightsOptions, DataOptions):
    """A purifier for a classifier and pictures of your own; `purify train RECIPE` makes the shipped ones."""

    data: str
    """imagefolder:PATH (a folder or a zip of one), or any other data set."""
    model: str
    """Name of a torchvision classifier, or name or path of a classifier's checkpoint."""
    eps: float | None = None
    """L∞ radius of the attacks to learn from and to be measured by; default: 0.2 for grey images, 8/255 for coloured ones."""
    epochs: int | None = None
    """Passes through the images; default: so many that the optimiser takes 1,500 steps, 3,000 above 64 pixels."""
    images: int = 100
    """The first so many test images make the table at the end."""
    out: Path | None = None
    """Folder of the run and the checkpoint; default: runs/train/DATA. A run found there goes on."""
    seed: int = 0
    """Of all randomness."""
    quiet: bool = False
    """No progress bars, no table."""


def fit(command: FitCommand) -> int:
    """Run ``purify train --data … --model …``."""
    from purify.compatibility import check_classifier_fits
    from purify.data import Split, file_stem
    from purify.fitting import fit_to

    named = command.named(command.model)
    splits: tuple[Split, ...] = ("train", "val", "test")
    training, validation, test = (named.load(command, command.data, split) for split in splits)
    check_classifier_fits(named.module, training, command.model)
    out = command.out or Path("runs/train") / file_stem(command.data)
    fit_to(
        named.module,
        training,
        validation,
        test,
        eps=command.eps,
        epochs=command.epochs,
        folder=out,
        seed=command.seed,
        tested=command.images,
        quiet=command.quiet,
    )
    if command.quiet:
        print(f"wrote {out}")
    return 0
