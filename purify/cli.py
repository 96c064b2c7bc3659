"""The command line: ``purify tables``, ``train``, ``evaluate``, ``checkpoints``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import tyro

from purify.checkpoint import CheckpointError, list_checkpoints, load, load_classifier, read_card
from purify.data import ImageSet, Split, load_dataset
from purify.recipes import Recipe, find_recipe, list_recipes

__all__ = ["main"]

_HELP = """Adversarial purification with a denoising sparse autoencoder, and an honest evaluation of it.

commands:
  purify tables            the defence tables, for every data set at hand
  purify evaluate          one classifier and one purifier on one data set
  purify train RECIPE      train a classifier or a purifier
  purify checkpoints       what is shipped, with its figures

`purify COMMAND --help` shows every option with its default."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images come from."""

    data_root: Path | None = None
    """Folder with the data sets; default: $PURIFY_DATA, else a cache folder with download."""
    size: int | None = None
    """For imagefolder: side in pixels to which images are resized and centre-cropped."""
    class_list: Path | None = None
    """For imagefolder: text file with one class folder's name a line, in label order."""

    def load(self, name: str, split: Split) -> ImageSet:
        """One split of a data set, found as these options say."""
        return load_dataset(name, split, data_root=self.data_root, size=self.size, class_list=self.class_list)


@dataclass(frozen=True, kw_only=True)
class TablesCommand(DataOptions):
    """The defence tables: no defence, the DSAE, JPEG, median filter and PCA, under oblivious and adaptive attacks."""

    data: tuple[str, ...] = ()
    """Data sets; default: all that have shipped checkpoints (digits, mnist)."""
    out: Path = Path("runs/tables")
    """Folder for tables (Markdown, JSON, one CSV row an image) and figures."""
    images: int | None = None
    """How many test images; default: the table's own (all 450 digits, 500 of MNIST)."""
    steps: int | None = None
    """PGD steps; default: 40."""
    seed: int = 0
    """Of every random start."""
    check: bool = False
    """Exit with 1 if a figure leaves the interval of the committed reference table."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(DataOptions):
    """One classifier, bare or behind one purifier, on one data set."""

    data: str = "digits"
    """digits, mnist, fashion-mnist, cifar10 or imagefolder:PATH (a folder or a zip of one)."""
    classifier: str = "digits-shufflenet"
    """Name or path of a classifier's checkpoint."""
    purifier: str = "digits-dsae"
    """Name or path of a purifier's checkpoint, or jpeg, median, pca, none."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the perturbation."""
    eps: float = 0.15
    """Radius, in the units of images in [0, 1]: 0.0314 for 8/255."""
    images: int = 1000
    """The first so many of the test split."""
    steps: int = 40
    """PGD steps."""
    restarts: int = 1
    """Restarts of the adaptive PGD, along each gradient path."""
    seed: int = 0
    """Of every random start."""
    out: Path = Path("runs/evaluate")
    """Folder for the JSON file and the CSV (one row an image)."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """Of `purify train`, beside the recipe's own settings."""

    out: Path | None = None
    """Folder of the run; default: runs/train/RECIPE. A run found there goes on from its last finished epoch."""
    threads: int | None = None
    """Processor threads; default: torch's own choice."""
    quiet: bool = False
    """No progress bar."""


_Chosen = TypeVar("_Chosen", bound=Recipe)


@dataclass(frozen=True)
class _Training(Generic[_Chosen]):
    """Settings of one training."""

    recipe: _Chosen
    options: TrainOptions


def tables(command: TablesCommand) -> int:
    """Run ``purify tables``; 1 if ``--check`` found a difference."""
    from purify.classifier import wrap
    from purify.eval.figures import save_figures
    from purify.eval.reference import compare_with_reference, read_reference
    from purify.eval.tables import TABLES, defence_table

    unknown = [name for name in command.data if name not in TABLES]
    if unknown:
        raise ValueError(f"no table for {', '.join(unknown)}; known: {', '.join(TABLES)}; for others use `purify evaluate`")
    failed = False
    for name in command.data or TABLES:
        spec = TABLES[name]
        settings = replace(spec.settings, seed=command.seed, steps=command.steps or spec.settings.steps)
        spec = replace(spec, settings=settings, images=command.images or spec.images)
        table = defence_table(spec, data_root=command.data_root, quiet=command.quiet)
        print(f"\n{table.markdown()}\n")
        written = table.save(command.out)
        if table.reports:
            defended = wrap(load_classifier(spec.classifier), load(spec.purifiers[0]))
            written += save_figures(table, defended, command.out, name)
        print("wrote " + ", ".join(str(path) for path in written))
        if command.check and table.reports:
            reference = read_reference(name)
            found = ["no committed reference"] if reference is None else compare_with_reference(table.to_dict(), reference)
            print(f"check against the reference: {'; '.join(found) if found else 'every figure within its interval'}")
            failed |= bool(found)
    return int(failed)


def evaluate(command: EvaluateCommand) -> int:
    """Run ``purify evaluate``."""
    from purify.attacks import ThreatModel
    from purify.classifier import wrap
    from purify.eval import Settings
    from purify.eval import evaluate as run
    from purify.eval.baselines import BASELINES, make_baseline

    threat = ThreatModel(command.norm, command.eps)
    classifier = load_classifier(command.classifier)
    defended = None
    if command.purifier in BASELINES:
        training = command.load(command.data, "train") if command.purifier == "pca" else None
        defended = wrap(classifier, make_baseline(command.purifier, training).eval())
    elif command.purifier != "none":
        defended = wrap(classifier, command.purifier)
    test = command.load(command.data, "test").first(command.images)
    images, labels = test.batch(slice(None))
    settings = Settings(steps=command.steps, restarts=command.restarts, seed=command.seed)
    name = Path(command.purifier).stem
    report = run(defended or classifier, images, labels, threat, settings=settings, name=name, quiet=command.quiet)
    skipped = f", {len(test.skipped)} unreadable images skipped" if test.skipped else ""
    print(f"\n{command.data}, {threat}, classifier {command.classifier}, n = {len(test)}{skipped}\n\n{report.table()}\n")
    print(f"wrote {report.to_json(command.out / f'{name}.json')}, {report.to_csv(command.out / f'{name}.csv')}")
    return 0


def train(arguments: Sequence[str]) -> int:
    """Run ``purify train RECIPE [options]``: the options are the fields of the recipe."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: purify train RECIPE [options]\n\nrecipes: {', '.join(list_recipes())}")
        print("`purify train RECIPE --help` shows the settings of that recipe.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    default = find_recipe(arguments[0])

    chosen = tyro.cli(
        tyro.conf.OmitArgPrefixes[_Training[type(default)]],  # type: ignore[misc]
        default=_Training(default, TrainOptions()),
        args=list(arguments[1:]),
        prog=f"purify train {default.name}",
    )
    recipe, options = chosen.recipe, chosen.options

    import torch

    from purify.tasks import make_task
    from purify.training import train as fit

    if options.threads:
        torch.set_num_threads(options.threads)
    training = options.load(recipe.dataset, "train")
    task = make_task(recipe, training, options.load(recipe.dataset, "val"))
    path = fit(task, recipe, training, options.out or Path("runs/train") / recipe.name, quiet=options.quiet)
    print(f"wrote {path} and its card {path.with_suffix('.json')}")
    return 0


def checkpoints() -> int:
    """Run ``purify checkpoints``."""
    for name in list_checkpoints():
        card = read_card(name)
        figures = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in card.figures.items())
        print(f"{name}: {card.kind} for {card.dataset} {card.image_shape}, sha256 {card.sha256[:12]}…\n    {figures}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed or differs from the reference, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "tables": lambda rest: tables(tyro.cli(TablesCommand, args=rest, prog="purify tables")),
        "evaluate": lambda rest: evaluate(tyro.cli(EvaluateCommand, args=rest, prog="purify evaluate")),
        "train": train,
        "checkpoints": lambda rest: checkpoints(),
    }
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0 if words else 2
    if words[0] == "--version":
        from purify import __version__

        print(__version__)
        return 0
    if words[0] not in commands:
        print(f"unknown command {words[0]!r}\n\n{_HELP}", file=sys.stderr)
        return 2
    try:
        return commands[words[0]](words[1:])
    except (ValueError, CheckpointError, FileNotFoundError, FloatingPointError) as error:  # meant for people: no traceback
        print(f"purify {words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\npurify {words[0]}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
