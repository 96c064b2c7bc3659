"""``purify train``: train what a recipe describes, or a purifier for pictures of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import tyro

from purify.commands.data_options import DataOptions
from purify.commands.fit import FitCommand, fit
from purify.commands.weights_options import WeightsOptions
from purify.data import Split
from purify.training.catalogue import find_recipe, list_recipes
from purify.training.recipes import ClassifierRecipe, DenoisingRecipe, Recipe, RobustRecipe

__all__ = ["TrainOptions", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """Of `purify train`, beside the recipe's own settings."""

    out: Path | None = None
    """Folder of the run; default: runs/train/RECIPE. A run found there goes on from its last finished epoch."""
    threads: int | None = None
    """Processor threads; default: torch's own choice."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class PurifierTrainOptions(WeightsOptions, TrainOptions):
    """Of `purify train`, where a purifier or denoiser is trained in front of a classifier."""

    model: str = ""
    """A classifier in the place of the recipe's: name of a torchvision one, or name or path of a checkpoint."""


_SPLITS: tuple[Split, Split] = ("train", "val")
_Chosen = TypeVar("_Chosen", bound=Recipe)
_Options = TypeVar("_Options", bound=TrainOptions)


@dataclass(frozen=True)
class _Training(Generic[_Chosen, _Options]):
    """Settings of one training."""

    recipe: _Chosen
    options: _Options


def train(arguments: Sequence[str]) -> int:
    """Run ``purify train RECIPE [options]`` (the options are the fields of the recipe), or ``purify train --data …``."""
    if arguments[:1] and arguments[0].startswith("-") and any(a.startswith(("--data", "--model")) for a in arguments):
        words = ["--help"] if {"-h", "--help"} & set(arguments) else list(arguments)  # «--data --help» lacks no value
        return fit(tyro.cli(FitCommand, args=words, prog="purify train"))
    if not arguments or arguments[0].startswith("-"):
        print("usage: purify train RECIPE [options]\n       purify train --data DATA --model MODEL [--weights FILE] [options]\n")
        print(f"recipes: {', '.join(list_recipes())}")
        print("`purify train RECIPE --help` and `purify train --data --help` show the settings.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    default = find_recipe(arguments[0])
    defaults = PurifierTrainOptions() if isinstance(default, (DenoisingRecipe, RobustRecipe)) else TrainOptions()
    chosen = tyro.cli(
        tyro.conf.OmitArgPrefixes[_Training[type(default), type(defaults)]],  # type: ignore[misc]
        default=_Training(default, defaults),
        args=list(arguments[1:]),
        prog=f"purify train {default.name}",
    )
    recipe, options = chosen.recipe, chosen.options

    import torch

    from purify.compatibility import check_classifier_fits
    from purify.training import distributed
    from purify.training.loop import train as run
    from purify.training.tasks import make_task

    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"expected at least one thread, got --threads {options.threads}")
        torch.set_num_threads(options.threads)
    if isinstance(options, PurifierTrainOptions):
        options.check_model(options.model)
    if isinstance(options, PurifierTrainOptions) and options.model:
        named = options.named(options.model)
        if isinstance(recipe, RobustRecipe):
            recipe = replace(recipe, classifiers=(options.model,))
        else:
            recipe = replace(recipe, classifier=options.model)
        training, validation = (named.load(options, recipe.dataset, split) for split in _SPLITS)
        check_classifier_fits(named.module, training, options.model)
        task = make_task(recipe, training, validation, named.module)
    else:
        training, validation = (options.load(recipe.dataset, split) for split in _SPLITS)
        task = make_task(recipe, training, validation)
        if isinstance(recipe, ClassifierRecipe) and not recipe.held_out:
            training = training.joined(validation)
    path = run(task, recipe, training, options.out or Path("runs/train") / recipe.name, quiet=options.quiet)
    if distributed.is_first():
        print(f"wrote {path} and its card {path.with_suffix('.json')}")
    return 0
