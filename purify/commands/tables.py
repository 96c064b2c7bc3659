"""``purify tables``: the defence tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from purify.commands.data_options import DataOptions
from purify.commands.weights_options import WeightsOptions

if TYPE_CHECKING:
    from purify.eval.tables import DefenceTable, TableSpec

__all__ = ["TablesCommand", "tables"]


@dataclass(frozen=True, kw_only=True)
class TablesCommand(WeightsOptions, DataOptions):
    """The defence tables: no defence, the DSAE, JPEG, median filter and PCA, under oblivious and adaptive attacks; with --model
    those of a classifier and pictures of your own."""

    data: tuple[str, ...] = ()
    """Tables by name; default: all of them (digits, mnist, mnist-0.3, cifar10, cifar10-lossless, cifar10-l2). With --model one
    data set, such as imagefolder:PATH."""
    model: str = ""
    """A classifier of your own: name of a torchvision one, or name or path of a checkpoint."""
    purifiers: tuple[str, ...] = ()
    """With --model: names or paths of purifiers' checkpoints to measure beside JPEG and the median filter."""
    eps: tuple[float, ...] = ()
    """With --model: L∞ radii, one table each; default: 1/255, 2/255 and 4/255."""
    out: Path = Path("runs/tables")
    """Folder for tables (Markdown, JSON, one CSV row an image), figures, and one store a row: a stopped table goes on."""
    images: int | None = None
    """How many test images; default: the table's own (all 450 digits, 250 of cifar10-lossless, 500 of the others; 100 with
    --model)."""
    suite: Literal["fast", "standard", "adaptive"] | None = None
    """Of adaptive attacks; default: adaptive."""
    checks: int | None = None
    """The first so many images serve the checks S1 to S13 and the curve; default: 64; 0: neither."""
    seed: int = 0
    """Of every random start."""
    rows: tuple[str, ...] = ()
    """Measure only these rows (none, jpeg, cifar10-dsae-robust …) of one table; the others are taken from the table in --out, or
    else from the committed reference."""
    full: bool = False
    """All baselines, not only those of the table; some are trained at their first use, into the cache (not with --model:
    those that learn need a recipe)."""
    variants: bool = False
    """In place of the tables: the DSAE with other codes, encoders and unrolled steps, trained at first use, into the cache."""
    epochs: int | None = None
    """Of the variants' training; default: as many as the DSAE's own recipe has."""
    check: bool = False
    """Exit with 1 if a figure leaves the interval of the committed reference table."""
    quiet: bool = False
    """No progress bars."""


def tables(command: TablesCommand) -> int:
    """Run ``purify tables``; 1 if ``--check`` found a difference, or the data of a table that was asked for are missing."""
    from purify.eval.baselines import BASELINES
    from purify.eval.tables import TABLES, defence_table
    from purify.eval.trained import TRAINED

    if command.epochs is not None and not command.variants:
        raise ValueError("--epochs are those of the --variants")
    if command.model:
        return _own(command)
    if given := [f"--{name}" for name in ("weights", "mean", "std", "purifiers", "eps") if getattr(command, name)]:
        raise ValueError(f"{' and '.join(given)} are for a classifier of your own: name it with --model")
    unknown = [name for name in command.data if name not in TABLES]
    if unknown:
        raise ValueError(
            f"no table for {', '.join(unknown)}; known: {', '.join(TABLES)}; for others give --model, or use `purify evaluate`"
        )
    if command.rows and len(command.data) != 1:
        raise ValueError("--rows are those of one table: give one name with --data")
    if command.variants and (given := [f"--{name}" for name in ("check", "full", "rows", "checks") if getattr(command, name)]):
        raise ValueError(f"{' and '.join(given)} are not for the --variants")
    if command.variants:
        return _variants(command)
    failed = False
    for name in command.data or TABLES:
        spec = _adjusted(TABLES[name], command)
        table = defence_table(
            replace(spec, baselines=(*BASELINES, *TRAINED)) if command.full else spec,
            load_split=command.load,
            rows=command.rows,
            earlier=_earlier(name, spec, command.out),
            stores=command.out / "stores",
            quiet=command.quiet,
        )
        _write(table, command.out)
        failed |= bool(table.not_run and command.data)
        if command.check and table.reports:
            failed |= not _as_the_reference(name, table, command.rows)
    return int(failed)


def _own(command: TablesCommand) -> int:
    """The tables of a classifier that the command names, one for each eps."""
    from purify.attacks import ThreatModel
    from purify.data import file_stem
    from purify.eval.baselines import BASELINES
    from purify.eval.tables import TableSpec, defence_table

    if len(command.data) != 1 or command.variants or command.check or command.rows:
        raise ValueError(
            "with --model give one --data, such as imagefolder:PATH, and neither --variants, --rows nor --check: they are for "
            "the shipped tables"
        )
    data, named = command.data[0], command.named(command.model)
    about = {"classifier": command.model} | command.weighing() | ({"options": command.reading()} if command.reading() else {})
    for eps in command.eps or (1 / 255, 2 / 255, 4 / 255):
        spec = TableSpec(
            data=data,
            classifier=Path(command.model).stem,
            purifiers=command.purifiers,
            baselines=tuple(name for name in BASELINES if name != "pca") if command.full else ("jpeg", "median"),
            threat=ThreatModel("linf", eps),
            images=100,
            name=f"{file_stem(data)}, {Path(command.model).stem}, eps {eps:.4g}",
        )
        table = defence_table(
            _adjusted(spec, command),
            load_split=lambda name, split: named.load(command, name, split),
            classifier=named.module,
            about=about,
            stores=command.out / "stores",
            quiet=command.quiet,
        )
        _write(table, command.out)
        if table.not_run:
            return 1
    return 0


def _earlier(name: str, spec: TableSpec, out: Path) -> dict[str, Any] | None:
    """The table in ``out`` that has rows, or else the committed one, as plain values."""
    from purify.eval.reference import read_reference

    written = read_reference(spec.stem, out)
    return written if written is not None and written["rows"] else read_reference(name)


def _adjusted(spec: TableSpec, command: TablesCommand) -> TableSpec:
    """The table with the command's seed, suite, and numbers of images."""
    own = spec.settings
    checks = own.check_images if command.checks is None else command.checks
    settings = replace(own, seed=command.seed, suite=command.suite or own.suite, check_images=checks)
    return replace(spec, settings=settings, images=spec.images if command.images is None else command.images)


def _write(table: DefenceTable, out: Path) -> None:
    """Print the table, write it and its figures, and say where."""
    from purify.eval.figures import save_figures

    print(f"\n{table.markdown()}\n")
    written = table.save(out)
    if table.reports:
        written += save_figures(table, out, table.spec.stem)
    print("wrote " + (", ".join(str(path) for path in written) or "nothing"))


def _as_the_reference(name: str, table: DefenceTable, rows: tuple[str, ...]) -> bool:
    """Whether every figure of the rows that were measured (none named: all) is within its interval of the committed table."""
    from purify.eval.reference import compare_with_reference, read_reference

    reference = read_reference(name)
    if reference is None:
        found = ["no committed reference"]
    else:
        wanted = [row for row in reference["rows"] if not rows or row["name"] in rows]
        found = compare_with_reference(table.to_dict(), {**reference, "rows": wanted})
        found += [f"{row}: not in the reference" for row in rows if row not in {other["name"] for other in wanted}]
    which = f"rows {', '.join(rows)}" if rows else "all rows"
    print(f"check against the reference, {which}: {'; '.join(found) if found else 'every figure within its interval'}")
    return not found


def _variants(command: TablesCommand) -> int:
    """The table of code variants of one data set's DSAE."""
    from purify.eval.tables import TABLES
    from purify.eval.variants import compare_variants, variants_markdown

    for name in command.data or ("digits",):
        spec = TABLES[name]
        found = compare_variants(
            spec.purifiers[0],
            command.load(spec.data, "train"),
            command.load(spec.data, "val"),
            command.load(spec.data, "test").first(command.images or spec.images),
            settings=replace(spec.settings, seed=command.seed, suite=command.suite or spec.settings.suite),
            threat=spec.threat,
            epochs=command.epochs,
            stores=command.out / "stores",
            quiet=command.quiet,
        )
        text = f"### {name}: codes of the DSAE, {spec.threat}, n = {found[0][1].clean.n}\n\n{variants_markdown(found)}\n"
        path = command.out / f"{name}.variants.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"\n{text}\nwrote {path}")
    return 0
