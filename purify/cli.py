"""The command line: ``purify tables``, ``evaluate``, ``report``, ``runs``, ``train``, ``checkpoints``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import tyro

from purify.checkpoint import CheckpointError, list_checkpoints, load_classifier, read_card
from purify.data import ImageSet, Split, load_dataset
from purify.recipes import Recipe, find_recipe, list_recipes

__all__ = ["main"]

_HELP = """Adversarial purification with a denoising sparse autoencoder, and an honest evaluation of it.

commands:
  purify tables            the defence tables, for every data set at hand
  purify evaluate          one classifier and one purifier on one data set
  purify report RUN        a finished run as one HTML file
  purify runs              runs that are there: list, show, export
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
    """Folder for tables (Markdown, JSON, one CSV row an image), figures, and one store a row: a stopped table goes on."""
    images: int | None = None
    """How many test images; default: the table's own (all 450 digits, 500 of MNIST)."""
    suite: Literal["fast", "standard", "adaptive"] | None = None
    """Of adaptive attacks; default: adaptive."""
    seed: int = 0
    """Of every random start."""
    full: bool = False
    """All baselines, not only JPEG, median filter and PCA; some are trained at their first use, into the cache."""
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
    """Name or path of a purifier's checkpoint, or none, or a baseline: jpeg, median, gaussian, bit-depth,
    total-variation, wavelet, noise (with --draws 20), pca."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the perturbation."""
    eps: float = 0.15
    """Radius, in the units of images in [0, 1]: 0.0314 for 8/255."""
    images: int = 1000
    """The first so many of the test split."""
    suite: Literal["fast", "standard", "random", "adaptive"] = "adaptive"
    """Of attacks: fast for a first look; random for random defences."""
    draws: int = 1
    """Of a random defence, for gradients and verdicts: 20."""
    checks: int = 64
    """The first so many images serve the checks S1 to S13 and the curve; 0: neither."""
    norms: int = 100
    """The first so many images are attacked for their smallest adversarial norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of gradient steps; verdicts are float32's."""
    batch_size: int | None = None
    """Images attacked at once; default: from memory."""
    seed: int = 0
    """Of every random start."""
    out: Path = Path("runs/evaluate")
    """Folder for the report (HTML, Markdown, JSON), the CSV (one row an image) and the store."""
    store: Path | None = None
    """SQLite file of the run; default: in the folder. The same command again goes on where it was."""
    wait: float = 0.0
    """Seconds to wait for another run that holds the store."""
    tensorboard: Path | None = None
    """Folder for the robust accuracy so far, for TensorBoard."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class ReportCommand:
    """A finished run as one self-contained HTML file, with Markdown and JSON of the same figures beside it."""

    run: tyro.conf.Positional[Path]
    """Store of the run (*.sqlite)."""
    out: Path | None = None
    """HTML file; default: beside the store."""


@dataclass(frozen=True)
class RunsCommand:
    """Runs that are there: list, show or export."""

    action: tyro.conf.Positional[Literal["list", "show", "export"]] = "list"
    """list: every store under the folder; show: one in words; export: its rows (image, attack, restart, draw)."""
    run: tyro.conf.Positional[Path] = Path("runs")
    """Folder to list, or store (*.sqlite)."""
    to: Literal["csv", "json", "parquet"] = "csv"
    """Format of an export; parquet needs pyarrow."""
    out: Path | None = None
    """File of an export; default: beside the store."""


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
    from purify.eval.baselines import BASELINES, IN_EVERY_TABLE
    from purify.eval.figures import save_figures
    from purify.eval.reference import compare_with_reference, read_reference
    from purify.eval.tables import TABLES, defence_table, file_stem
    from purify.eval.trained import TRAINED

    unknown = [name for name in command.data if name not in TABLES]
    if unknown:
        raise ValueError(f"no table for {', '.join(unknown)}; known: {', '.join(TABLES)}; for others use `purify evaluate`")
    failed = False
    for name in command.data or TABLES:
        spec = TABLES[name]
        settings = replace(spec.settings, seed=command.seed, suite=command.suite or spec.settings.suite)
        spec = replace(spec, settings=settings, images=command.images or spec.images)
        rows = (*BASELINES, *TRAINED) if command.full else IN_EVERY_TABLE
        stores = command.out / "stores"
        table = defence_table(spec, data_root=command.data_root, baselines=rows, stores=stores, quiet=command.quiet)
        print(f"\n{table.markdown()}\n")
        written = table.save(command.out)
        if table.reports:
            written += save_figures(table, command.out, file_stem(name))
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
    from purify.eval.html import save_report
    from purify.eval.tables import file_stem

    classifier = load_classifier(command.classifier)
    defended = None
    if command.purifier in BASELINES:
        training = command.load(command.data, "train") if command.purifier == "pca" else None
        defended = wrap(classifier, make_baseline(command.purifier, training).eval())
    elif command.purifier != "none":
        defended = wrap(classifier, command.purifier)
    test = command.load(command.data, "test").first(command.images)
    name = Path(command.purifier).stem
    stem = f"{file_stem(command.data)}.{name}"
    report = run(
        defended or classifier,
        test,
        None,
        ThreatModel(command.norm, command.eps),
        settings=Settings(
            suite=command.suite,
            draws=command.draws,
            check_images=command.checks,
            norm_images=command.norms,
            batch_size=command.batch_size,
            precision=command.precision,
            seed=command.seed,
        ),
        name=name,
        about={"data": command.data, "split": test.split, "classifier": command.classifier, "purifier": command.purifier},
        store=command.store or command.out / f"{stem}.sqlite",
        wait=command.wait,
        tensorboard=command.tensorboard,
        quiet=command.quiet,
    )
    skipped = f" ({len(test.skipped)} unreadable images skipped)" if test.skipped else ""
    print(f"\n{command.data}{skipped}, classifier {command.classifier}, {report.table()}\n")
    written = [*save_report(report, command.out / f"{stem}.html"), report.to_csv(command.out / f"{stem}.csv")]
    print(f"wrote {', '.join(str(path) for path in [command.store or command.out / f'{stem}.sqlite', *written])}")
    return 0


def report(command: ReportCommand) -> int:
    """Run ``purify report``."""
    from purify.eval import Report
    from purify.eval.html import save_report
    from purify.eval.store import RunStore

    with RunStore(command.run, None) as store:
        found = Report.of(store)
    written = save_report(found, command.out or command.run.with_suffix(".html"))
    print(f"wrote {', '.join(str(path) for path in written)}")
    return 0


def runs(command: RunsCommand) -> int:
    """Run ``purify runs``."""
    from purify.eval.runs import export_run, find_runs, show_run

    if command.action == "show":
        print(show_run(command.run))
    elif command.action == "export":
        print(f"wrote {export_run(command.run, command.to, command.out or command.run.with_suffix(f'.{command.to}'))}")
    else:
        found = find_runs(command.run)
        print("\n".join(map(str, found)) if found else f"no runs under {command.run}")
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
        "report": lambda rest: report(tyro.cli(ReportCommand, args=rest, prog="purify report")),
        "runs": lambda rest: runs(tyro.cli(RunsCommand, args=rest, prog="purify runs")),
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
    except (
        ValueError,
        CheckpointError,
        FileNotFoundError,
        FloatingPointError,
        ModuleNotFoundError,
    ) as error:  # meant for people: no traceback
        print(f"purify {words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\npurify {words[0]}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
