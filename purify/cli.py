"""The command line: ``purify COMMAND``; each command has its file in ``purify.commands``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from purify.checkpoint import CheckpointError
from purify.commands.audit import AuditCommand, audit
from purify.commands.checkpoints import checkpoints
from purify.commands.clean import CleanCommand, clean
from purify.commands.evaluate import EvaluateCommand, evaluate
from purify.commands.export import ExportCommand, export
from purify.commands.report import ReportCommand, report
from purify.commands.runs import RunsCommand, runs
from purify.commands.tables import TablesCommand, tables
from purify.commands.train import train

__all__ = ["main"]

_HELP = """Adversarial purification with a denoising sparse autoencoder, and an honest evaluation of it.

commands:
  purify tables            the defence tables, for every data set at hand
  purify evaluate          one classifier and one purifier on one data set
  purify audit             does it filter? gains, bands, margins by direction; --theory
  purify report RUN        a finished run as one HTML file
  purify clean PICTURE     one picture, purified; --report shows what was removed
  purify export CHECKPOINT a purifier, alone or before a classifier, as ONNX or a torch.export program
  purify runs              runs that are there: list, show, export
  purify train RECIPE      train a classifier or a purifier
  purify checkpoints       what is shipped, with its figures

`purify COMMAND --help` shows every option with its default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed or differs from the reference, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "tables": lambda rest: tables(tyro.cli(TablesCommand, args=rest, prog="purify tables")),
        "evaluate": lambda rest: evaluate(tyro.cli(EvaluateCommand, args=rest, prog="purify evaluate")),
        "audit": lambda rest: audit(tyro.cli(AuditCommand, args=rest, prog="purify audit")),
        "clean": lambda rest: clean(tyro.cli(CleanCommand, args=rest, prog="purify clean")),
        "export": lambda rest: export(tyro.cli(ExportCommand, args=rest, prog="purify export")),
        "report": lambda rest: report(tyro.cli(ReportCommand, args=rest, prog="purify report")),
        "runs": lambda rest: runs(tyro.cli(RunsCommand, args=rest, prog="purify runs")),
        "train": train,
        "checkpoints": _checkpoints,
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
        OSError,  # no such file, no right to write there, a full disk
        FloatingPointError,
        ModuleNotFoundError,
    ) as error:  # meant for people: no traceback
        print(f"purify {words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\npurify {words[0]}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130


def _checkpoints(rest: list[str]) -> int:
    if not rest:
        return checkpoints()
    asked = rest[0] in ("-h", "--help")
    print(
        "usage: purify checkpoints\n\nLists what is shipped, with its figures. It has no options.",
        file=None if asked else sys.stderr,
    )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
