"""``purify tables``: the defence tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from purify.commands.data_options import DataOptions

__all__ = ["TablesCommand", "tables"]


@dataclass(frozen=True, kw_only=True)
class TablesCommand(DataOptions):
    """The defence tables: no defence, the DSAE, JPEG, median filter and PCA, under oblivious and adaptive attacks."""

    data: tuple[str, ...] = ()
    """Tables by name; default: all of them (digits, mnist)."""
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
    variants: bool = False
    """In place of the tables: the DSAE with other codes, encoders and unrolled steps, trained at first use, into the cache."""
    epochs: int | None = None
    """Of the variants' training; default: as many as the DSAE's own recipe has."""
    check: bool = False
    """Exit with 1 if a figure leaves the interval of the committed reference table."""
    quiet: bool = False
    """No progress bars."""


def tables(command: TablesCommand) -> int:
    """Run ``purify tables``; 1 if ``--check`` found a difference."""
    from purify.eval.baselines import BASELINES, IN_EVERY_TABLE
    from purify.eval.figures import save_figures
    from purify.eval.reference import compare_with_reference, read_reference
    from purify.eval.tables import TABLES, defence_table
    from purify.eval.trained import TRAINED

    unknown = [name for name in command.data if name not in TABLES]
    if unknown:
        raise ValueError(f"no table for {', '.join(unknown)}; known: {', '.join(TABLES)}; for others use `purify evaluate`")
    if command.variants:
        return _variants(command)
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
            written += save_figures(table, command.out, spec.stem)
        print("wrote " + ", ".join(str(path) for path in written))
        if command.check and table.reports:
            reference = read_reference(name)
            found = ["no committed reference"] if reference is None else compare_with_reference(table.to_dict(), reference)
            print(f"check against the reference: {'; '.join(found) if found else 'every figure within its interval'}")
            failed |= bool(found)
    return int(failed)


def _variants(command: TablesCommand) -> int:
    """The table of code variants of one data set's DSAE."""
    from purify.eval.tables import TABLES
    from purify.eval.variants import compare_variants, variants_markdown

    for name in command.data or ("digits",):
        spec = TABLES[name]
        found = compare_variants(
            spec.purifiers[0],
            command.load(name, "train"),
            command.load(name, "val"),
            command.load(name, "test").first(command.images or spec.images),
            settings=replace(spec.settings, seed=command.seed, suite=command.suite or spec.settings.suite),
            eps=spec.threat.eps,
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
