"""``purify audit``: is this purifier a selective filter, and why should it be?"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from purify.checkpoint import Card, CheckpointError, list_checkpoints, load_any, read_card
from purify.commands.data_options import DataOptions
from purify.commands.weights_options import WeightsOptions
from purify.data import DATASETS

if TYPE_CHECKING:
    from torch import nn

    from purify.eval.spectrum import Audit

__all__ = ["AuditCommand", "audit"]


@dataclass(frozen=True, kw_only=True)
class AuditCommand(WeightsOptions, DataOptions):
    """The spectral audit of a purifier: gains, perturbations, margins by direction; or the theory behind it."""

    target: tyro.conf.Positional[str] = "digits-dsae"
    """Name or path of a purifier's checkpoint, or the store (*.sqlite) of a run, whose report the audit joins."""
    theory: bool = False
    """In place of an audit: PCA and the linear autoencoder, proximal operators, the L1 landscape, dense and sparse features."""
    data: str | None = None
    """Data set; default: the checkpoint's own. With --theory the pictures whose features are learnt (digits, mnist, …)."""
    classifier: str | None = None
    """Name or path of a checkpoint; with --weights the name of a torchvision classifier; default: the one that the purifier was
    trained with."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the attacks."""
    eps: float | None = None
    """Radius of the attacks; default: that of the data set's table in this norm, else, in L∞, 8/255."""
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
    data, classifier = _before_what(command, card)
    eps = _usual_eps(data, command.norm) if command.eps is None else command.eps
    found = _measure(command, command.target, data, classifier, command.norm, eps)
    again = f"purify audit {shlex.quote(command.target)} --data {shlex.quote(data)} --classifier {shlex.quote(classifier)}"
    again += f" --norm {command.norm} --eps {found.threat.eps!r} --images {found.n} --seed {command.seed}"
    chosen = {"natural": command.natural, "natural-data": command.natural_data, "against": list(command.against)}
    again += _options({name: value for name, value in chosen.items() if value} | command.weighing() | command.reading())
    folder = command.out / Path(command.target).stem
    written = found.save(folder)
    page = folder / "audit.html"
    page.write_text(
        render_exhibits(f"Spectral audit of {found.name}, {found.threat}", found.words(), found.exhibits, again), encoding="utf-8"
    )
    print("\n".join(found.words()))
    print(f"wrote {', '.join(map(str, [page, *written]))}")
    return 0


def _options(values: Mapping[str, Any]) -> str:
    """As on the command line, a blank before each."""
    words = ((name, value if isinstance(value, list) else [value]) for name, value in values.items())
    return "".join(f" --{name} {shlex.join(map(str, value))}" for name, value in words)


def _before_what(command: AuditCommand, card: Card) -> tuple[str, str]:
    """Data set and classifier: those that were given, else those of the card.

    Raises:
        ValueError: the card names what cannot be found here; ``purify.fit`` knows no names.
    """
    trained_with = card.recipe.get("classifier") or next(iter(card.recipe.get("classifiers", ())), "")
    data, classifier = command.data or card.dataset, command.classifier or trained_with
    lacking = {}
    if not (command.classifier or command.weights or classifier in list_checkpoints() or Path(classifier).is_file()):
        lacking["--classifier"] = f"a classifier that is not known here ({classifier!r})" if classifier else "no classifier"
    if not (command.data or data in DATASETS or data.startswith("imagefolder:")):
        lacking["--data"] = f"data that are not known here ({data!r})" if data else "no data"
    if lacking:
        raise ValueError(f"the card of {command.target} names {' and '.join(lacking.values())}: give {' and '.join(lacking)}")
    return data, classifier


def _audit_theory(command: AuditCommand) -> int:
    """The four experiments, and a page of them."""
    from purify.eval.html import render_exhibits
    from purify.eval.theory.experiments import TheorySettings, run_theory

    why = "--theory is about no purifier, and takes only --seed, --out, --quiet and what says where the pictures are"
    _refuse(command, why, "target", "classifier", "norm", "eps", "images", "natural", "natural_data", "against")
    _refuse(command, why, "weights", "mean", "std")
    names = (command.data,) if command.data else ("digits",)
    pictures = {name: command.load(name, "train") for name in names}
    exhibits, words = run_theory(pictures, TheorySettings(seed=command.seed), quiet=command.quiet)
    again = "purify audit --theory" + _options({"data": names[0], "seed": command.seed} | command.reading())
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
    from purify.eval import Report
    from purify.eval.html import save_report
    from purify.eval.store import RunStore
    from purify.eval.trained import TRAINED

    why = "the audit of a run is of what that run says, and lies beside its report"
    _refuse(command, why, "data", "classifier", "norm", "eps", "out")
    path = Path(command.target)
    with RunStore(path, None) as store:
        Report.of(store)  # a run that is not finished has none for the audit to join: said before anything is measured
        about, threat = store.configuration["about"], store.configuration["threat"]
    if "weights" in about:
        _refuse(command, why, "weights", "mean", "std")
        command = command.weighed_as(about)
    if "options" in about:
        _refuse(command, why, "size", "resize", "class_list")
        command = command.read_as(about["options"])
    purifier = about.get("purifier", "none").removesuffix(f", {Path(about.get('classifier', '')).stem}")
    if not {"data", "classifier"} <= about.keys() or purifier == "none":
        raise ValueError(
            f"{path} does not say which purifier and data it is about; audit the checkpoint: purify audit CHECKPOINT"
        )
    if purifier in TRAINED:
        raise ValueError(f"{path} cannot be audited: it is about {purifier}, of which the run keeps no checkpoint")
    found = _measure(command, purifier, about["data"], about["classifier"], threat["norm"], threat["eps"])
    with RunStore(path, None) as store:
        exhibits = [dataclasses.asdict(exhibit) for exhibit in found.exhibits]
        store.add_finding("audit", {"words": found.words(), "exhibits": exhibits}, replace=True)
        report = Report.of(store)
    written = [*save_report(report, path.with_suffix(".html")), *found.save(path.with_suffix(".audit"))]
    print("\n".join(found.words()))
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _refuse(command: AuditCommand, why: str, *names: str) -> None:
    """Raise a ValueError that says why, where one of these options was given."""
    usual = {field.name: field.default for field in dataclasses.fields(command)}
    given = [name for name in names if getattr(command, name) != usual[name]]
    if said := [command.target if name == "target" else f"--{name.replace('_', '-')}" for name in given]:
        raise ValueError(f"{' and '.join(said)}: {why}")


def _measure(command: AuditCommand, purifier: str, data: str, classifier: str, norm: Any, eps: float) -> Audit:
    from purify.attacks import ThreatModel
    from purify.eval.baselines import BASELINES, make_baseline
    from purify.eval.spectrum import AuditSettings, spectral_audit
    from purify.eval.spectrum.subjects import matched_blur

    source = command.natural_data or data
    named = command.named(classifier)
    model, training = named.module, named.load(command, source, "train")
    values = math.prod(training.image_shape)
    settings = AuditSettings.suited(values, images=command.images, natural=command.natural, seed=command.seed)
    test = named.load(command, data, "test").first(settings.images)
    validation = named.load(command, source, "val").first(500)
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


def _usual_eps(data: str, norm: str) -> float:
    """The radius of the first table of these data in this norm.

    Raises:
        ValueError: there is none, and the norm is not L∞, where 8/255 is usual.
    """
    from purify.eval.tables import TABLES

    radii = [spec.threat.eps for spec in TABLES.values() if spec.data == data and spec.threat.norm == norm]
    if not radii and norm != "linf":
        raise ValueError(f"no table of {data} says which radius is usual in {norm}: give --eps")
    return radii[0] if radii else 8 / 255
