"""``purify audit``: is this purifier a selective filter, and why should it be?"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from purify.checkpoint import CheckpointError, list_checkpoints, load_any, load_classifier, read_card
from purify.commands.data_options import DataOptions

if TYPE_CHECKING:
    from torch import nn

    from purify.eval.spectrum import Audit

__all__ = ["AuditCommand", "audit"]


@dataclass(frozen=True, kw_only=True)
class AuditCommand(DataOptions):
    """The spectral audit of a purifier: gains, perturbations, margins by direction; or the theory behind it."""

    target: tyro.conf.Positional[str] = "digits-dsae"
    """Name or path of a purifier's checkpoint, or the store (*.sqlite) of a run, whose report the audit joins."""
    theory: bool = False
    """In place of an audit: PCA and the linear autoencoder, proximal operators, the L1 landscape, dense and sparse features."""
    data: str | None = None
    """Data set; default: the checkpoint's own. With --theory the pictures whose features are learnt (digits, mnist, …)."""
    classifier: str | None = None
    """Name or path; default: the one that the purifier was trained with."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the attacks."""
    eps: float | None = None
    """Radius of the attacks; default: that of the data set's table, else 8/255."""
    images: int | None = None
    """The first so many test images are attacked; default: 48, of large ones (above 4,096 values) 16."""
    natural: int | None = None
    """So many training images say what is natural; default: 5000, of large ones 400."""
    natural_data: str | None = None
    """Data set of those training images; default: the one whose test images are attacked."""
    against: tuple[str, ...] = ()
    """Other purifiers beside it: checkpoints; default: the dense autoencoder, the DSAE and the robust one of the same data,
    where shipped."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("runs/audit")
    """Folder for the page, Markdown, JSON and one CSV a figure."""
    quiet: bool = False
    """No progress bar."""


def audit(command: AuditCommand) -> int:
    """Run ``purify audit``."""
    from purify.eval.html import render_exhibits

    if command.theory:
        return _audit_theory(command)
    if command.target.endswith(".sqlite"):
        return _audit_run(command)
    card = read_card(command.target)
    if card.kind == "classifier":
        raise CheckpointError(f"{command.target} is a classifier; an audit is about a purifier in front of one")
    trained_with = card.recipe.get("classifier") or next(iter(card.recipe.get("classifiers", ())), None)
    data, classifier = command.data or card.dataset, command.classifier or trained_with
    if not classifier:
        raise ValueError(f"the card of {command.target} names no classifier; give --classifier")
    found = _measure(
        command, command.target, data, classifier, command.norm, _usual_eps(data) if command.eps is None else command.eps
    )
    again = f"purify audit {shlex.quote(command.target)} --data {shlex.quote(data)} --classifier {shlex.quote(classifier)}"
    again += f" --norm {command.norm} --eps {found.threat.eps!r} --images {found.n} --seed {command.seed}"
    again += f" --natural-data {shlex.quote(command.natural_data)}" if command.natural_data else ""
    folder = command.out / Path(command.target).stem
    written = found.save(folder)
    page = folder / "audit.html"
    page.write_text(
        render_exhibits(f"Spectral audit of {found.name}, {found.threat}", found.words(), found.exhibits, again), encoding="utf-8"
    )
    print("\n".join(found.words()))
    print(f"wrote {', '.join(map(str, [page, *written]))}")
    return 0


def _audit_theory(command: AuditCommand) -> int:
    """The four experiments, and a page of them."""
    from purify.eval.html import render_exhibits
    from purify.eval.theory.experiments import TheorySettings, run_theory

    names = (command.data,) if command.data else ("digits",)
    pictures = {name: command.load(name, "train") for name in names}
    exhibits, words = run_theory(pictures, TheorySettings(seed=command.seed), quiet=command.quiet)
    again = f"purify audit --theory{f' --data {shlex.quote(command.data)}' if command.data else ''} --seed {command.seed}"
    folder = command.out / "theory"
    folder.mkdir(parents=True, exist_ok=True)
    written = {"theory.html": render_exhibits("Theory, executed", words, exhibits, again)}
    for exhibit in exhibits:
        written |= {f"{exhibit.id}.csv": exhibit.csv(), f"{exhibit.id}.svg": exhibit.standalone_svg()}
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    print("\n".join(words))
    print(f"wrote {', '.join(str(folder / name) for name in written)}")
    return 0


def _audit_run(command: AuditCommand) -> int:
    """Audit what a run evaluated, and put it into the run's own report."""
    import dataclasses

    from purify.eval import Report
    from purify.eval.html import save_report
    from purify.eval.store import RunStore

    usual = {field.name: field.default for field in dataclasses.fields(command)}
    given = [f"--{name}" for name in ("data", "classifier", "norm", "eps", "out") if getattr(command, name) != usual[name]]
    if given:
        raise ValueError(f"{' and '.join(given)}: the audit of a run is of what that run says, and lies beside its report")
    path = Path(command.target)
    with RunStore(path, None) as store:
        about, threat = store.configuration["about"], store.configuration["threat"]
    if not {"data", "classifier", "purifier"} <= about.keys() or about["purifier"] == "none":
        raise ValueError(
            f"{path} does not say which purifier and data it is about; audit the checkpoint: purify audit CHECKPOINT"
        )
    found = _measure(command, about["purifier"], about["data"], about["classifier"], threat["norm"], threat["eps"])
    with RunStore(path, None) as store:
        exhibits = [dataclasses.asdict(exhibit) for exhibit in found.exhibits]
        store.add_finding("audit", {"words": found.words(), "exhibits": exhibits}, replace=True)
        report = Report.of(store)
    written = [*save_report(report, path.with_suffix(".html")), *found.save(path.with_suffix(".audit"))]
    print("\n".join(found.words()))
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _measure(command: AuditCommand, purifier: str, data: str, classifier: str, norm: Any, eps: float) -> Audit:
    from purify.attacks import ThreatModel
    from purify.eval.baselines import BASELINES, make_baseline
    from purify.eval.spectrum import AuditSettings, spectral_audit
    from purify.eval.spectrum.subjects import matched_blur

    source = command.natural_data or data
    model, training = load_classifier(classifier), command.load(source, "train")
    values = math.prod(training.image_shape)
    settings = AuditSettings.suited(values, images=command.images, natural=command.natural, seed=command.seed)
    test, validation = command.load(data, "test").first(settings.images), command.load(source, "val").first(500)
    about = make_baseline(purifier, training).eval() if purifier in BASELINES else load_any(purifier)
    purifiers: dict[str, nn.Module] = {Path(purifier).stem: about}
    blur = matched_blur(model, about, *validation.batch(slice(None)))
    purifiers[f"blur {blur.sigma}"] = blur
    family = Path(purifier).stem.partition("-")[0]
    shipped = [name for name in (f"{family}-dense", f"{family}-dsae", f"{family}-dsae-robust") if name in list_checkpoints()]
    for name in command.against or shipped:
        if name != purifier:
            stem = Path(name).stem
            purifiers[stem if stem not in purifiers else f"{stem} ({'shipped' if name == stem else name})"] = load_any(name)
    natural, _ = training.first(settings.natural).batch(slice(None))
    return spectral_audit(
        model, purifiers, natural, *test.batch(slice(None)), ThreatModel(norm, eps), settings=settings, quiet=command.quiet
    )


def _usual_eps(data: str) -> float:
    from purify.eval.tables import TABLES

    return TABLES[data].threat.eps if data in TABLES else 8 / 255
