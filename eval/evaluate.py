"""Evaluate one defence: clean, oblivious, adaptive and worst-case accuracy, margins, smallest norms, and checks of itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify.attacks import GradientPath, Suite, ThreatModel, check_deterministic, every_path, exact, make_suite
from purify.attacks.gradient import Model
from purify.attacks.memory import batch_size_from_memory
from purify.attacks.precision import Precision, steps_in_bfloat16
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.classifier import PurifiedClassifier
from purify.cost import count_macs, count_parameters, milliseconds_per_image
from purify.data import ImageSource
from purify.eval.curves import accuracy_against_eps
from purify.eval.examination import Examination
from purify.eval.gallery import gallery
from purify.eval.judge import Judge
from purify.eval.progress import Progress
from purify.eval.report import Report
from purify.eval.sanity import CHECKS, run_check
from purify.eval.shared import SharedAttacks
from purify.eval.source import TensorImages
from purify.eval.stages import taken_apart
from purify.eval.store import RunStore, StoreError
from purify.fingerprint import fingerprint_images, fingerprint_model
from purify.versions import library_versions

__all__ = ["EVALUATION", "Settings", "evaluate", "gradient_paths"]

EVALUATION = 2
"""Changes when a figure or a check is measured otherwise than before; a run goes on, and a table's row is taken for current, only
under the same number. 2: smallest norms over all paths, S1 and S4 along the strongest one, S5 with averaging, S13 by S6."""
_AT_MOST = 128  # images in a batch: what a killed run loses
_AT_LEAST, _PIXELS = 64, 2**24
"""Images, and values in them, from which the code's sparsity is measured: a thousand small ones, or some hundred photographs."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How hard the attacker tries, and what is measured beside."""

    suite: str = "adaptive"
    """Of attacks: fast, standard, random or adaptive (``purify.attacks.make_suite``)."""
    draws: int = 1
    """Of a random defence, for gradients and verdicts; 20 is usual. Deterministic ones have 1."""
    oblivious_steps: int = 40
    """Of the PGD that is made on the bare classifier; its step is 2.5 · eps / steps."""
    norm_images: int = 100
    """The first so many are attacked for their smallest adversarial norm, by FMN."""
    check_images: int = 64
    """The first so many serve the checks S1 to S13 and the curve of accuracy against eps; 0: neither."""
    check_steps: int = 50
    """Of APGD, in the checks and the curve."""
    random_draws: int = 10_000
    """Random points in the ball, for each of eight images, in check S7."""
    pictures: int = 48
    """The first so many are shown in the report."""
    batch_size: int | None = None
    """Images attacked at once; None: from memory, 128 at most. It is settled when a run begins."""
    precision: Precision = "auto"
    """Of gradient steps; verdicts are float32's."""
    seed: int = 0
    """Of every random start: the same seed, batch size, machine and library versions give the same table."""

    def __post_init__(self) -> None:
        for field, least in (("draws", 1), ("oblivious_steps", 1), ("norm_images", 0), ("check_images", 0), ("check_steps", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")


def gradient_paths(defended: nn.Module, probe: Tensor) -> dict[str, GradientPath]:
    """The gradient paths that an adaptive attacker has against this defence, by name; ``defended`` is :func:`taken_apart` first.

    Of a bare classifier the exact gradient. Of a wrapped one also through the purifier without its final clip
    (``purifier.relaxed``), and through each of its differentiable stand-ins (``purifier.surrogates``, by name), where it offers
    them; straight through, as if the purifier were the identity; and the gradients of the bare classifier.

    Args:
        defended: a wrapped classifier, or a bare one.
        probe: a batch (n, C, H, W) on which it is tried whether a gradient arrives.
    """
    defended = taken_apart(defended)
    if not isinstance(defended, PurifiedClassifier):
        return {"exact": exact(defended)}
    stage = defended.purifier
    relaxed = getattr(stage, "relaxed", None)
    surrogates = {"without the clip": relaxed} if relaxed is not None else {}
    surrogates |= getattr(stage, "surrogates", {})
    return every_path(defended, stage=stage, rest=defended.undefended, probe=probe, surrogates=surrogates)


def evaluate(
    defended: nn.Module,
    images: Tensor | ImageSource,
    labels: Tensor | None,
    threat: ThreatModel,
    *,
    settings: Settings | None = None,
    suite: Suite | None = None,
    name: str = "defence",
    about: Mapping[str, Any] | None = None,
    store: str | Path = ":memory:",
    shared: SharedAttacks | None = None,
    wait: float = 0.0,
    tensorboard: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Measure a defence under one threat model. Given a file as ``store``, nothing is lost: killed at any moment and started
    again, it goes on where it was and ends with the same table.

    Args:
        defended: a classifier wrapped by ``purify.wrap``, or a bare one (then nothing is recovered). In eval mode. It is
            evaluated uncompiled (:func:`purify.eval.stages.taken_apart`).
        images: (N, C, H, W) in [0, 1]; or an ``ImageSource``, such as a data set, which gives them batch by batch.
        labels: (N,); None with an ``ImageSource``.
        threat: norm and eps.
        settings: of the attacks; None: the defaults.
        suite: attacks of your own, in the place of ``settings.suite``.
        name: of the row.
        about: plain values that say what was evaluated (data set, checkpoints); part of the run's configuration.
        store: SQLite file; the default is kept nowhere.
        shared: keeps oblivious attacks, where several defences of one classifier are evaluated on the same images; None: nothing
            is kept.
        wait: seconds to wait for another run that holds the store.
        tensorboard: folder for robust accuracy so far, as a scalar.
        quiet: no progress bars.

    Raises:
        TypeError, ValueError: images or labels are not what they should be; no images; a random model with one draw; L1; a
            wrapped classifier inside another module.
        StoreError: see :class:`purify.eval.store.RunStore`; or the model answers otherwise than when the store was begun.

    >>> from purify import load_classifier, load_dataset, wrap
    >>> defended = wrap(load_classifier("digits-shufflenet"), "digits-dsae")
    >>> digits = load_dataset("digits", "test").first(20)
    >>> few = Settings(suite="fast", norm_images=0, check_images=0)
    >>> report = evaluate(defended, digits, None, ThreatModel("linf", 0.15), settings=few, quiet=True)
    >>> report.adaptive.claim, report.adaptive.n
    ('adaptive', 20)
    """
    settings = settings or Settings()
    if threat.norm == "l1":
        raise ValueError(
            "an evaluation is in L∞ or L2 (FGSM, PGD and FMN, which it needs, have no L1 form here); for L1 use "
            "run_suite(make_suite('standard', threat), defended, images, labels) of purify.attacks"
        )
    defended = taken_apart(defended)
    source = _source(images, labels)
    chosen = suite or make_suite(settings.suite, threat, draws=settings.draws if settings.draws > 1 else None)
    device = next((parameter.device for parameter in defended.parameters()), torch.device("cpu"))
    probe = source.batch(torch.arange(min(2, len(source))))[0].to(device)
    configuration = {
        "name": name,
        "about": dict(about or {}),
        "images": {"n": len(source), "digest": fingerprint_images(source)},
        "model": fingerprint_model(defended),
        "threat": dataclasses.asdict(threat),
        "settings": dataclasses.asdict(settings),
        "suite": str(chosen),
        "draws": chosen.draws,
        "versions": library_versions(),
        "evaluation": EVALUATION,
    }
    progress = Progress(name, quiet=quiet, tensorboard=tensorboard)
    with RunStore(store, configuration, wait=wait) as opened:
        judge = _judge(
            defended, source, threat, opened, settings, chosen.draws, probe, progress, shared or SharedAttacks(limit=0)
        )
        paths = gradient_paths(defended, judge.load(torch.arange(min(8, judge.batch_size, len(source))))[0])
        judge.clean()
        judge.oblivious(settings.oblivious_steps)
        judge.adaptive(chosen, paths)
        judge.verdict()
        judge.smallest_norms(paths, settings.norm_images)
        _examine(judge, defended, paths, settings)
        _costs(judge, defended, settings)
        progress.close()
        return Report.of(opened)


def _source(images: Tensor | ImageSource, labels: Tensor | None) -> ImageSource:
    if isinstance(images, Tensor):
        if labels is None:
            raise ValueError("images without labels: give labels (N,), or a data set in the place of the images")
        source: ImageSource = TensorImages(images, labels)
    elif labels is not None:
        raise ValueError("a data set has labels of its own: give labels beside a tensor of images only")
    elif not hasattr(images, "batch"):
        raise TypeError(f"expected images as a tensor (N, C, H, W), or a data set, got {type(images).__name__}")
    else:
        source = images
    if len(source) == 0:
        raise ValueError("there are no images to evaluate")
    return source


def _judge(
    defended: nn.Module,
    source: ImageSource,
    threat: ThreatModel,
    store: RunStore,
    settings: Settings,
    draws: int,
    probe: Tensor,
    progress: Progress,
    shared: SharedAttacks,
) -> Judge:
    if draws == 1:
        check_deterministic(defended, probe)
    with torch.no_grad():
        answers = defended(probe)
    if draws == 1:
        _check_same_model(store, answers)
    bare = defended.undefended if isinstance(defended, PurifiedClassifier) else defended
    batch_size, bare_batch_size = _batch_sizes(store, settings.batch_size, defended, bare, probe, shared)
    return Judge(
        model=defended,
        bare=bare,
        source=source,
        threat=threat,
        store=store,
        draws=draws,
        batch_size=batch_size,
        bare_batch_size=bare_batch_size,
        bfloat16=store.settled("bfloat16", draws == 1 and steps_in_bfloat16(settings.precision, defended, probe)),
        precision=_settled_precision(store, settings.precision, bare, probe),
        seed=settings.seed,
        pictures=settings.pictures,
        progress=progress,
        classes=int(answers.shape[1]),
        device=probe.device,
        shared=shared,
    )


def _batch_sizes(
    store: RunStore, asked: int | None, defended: Model, bare: Model, probe: Tensor, shared: SharedAttacks
) -> tuple[int, int]:
    """Of the attacks on the defence, and of those on the bare classifier, which are the same whatever stands before it."""

    def fitting(model: Model) -> int:
        return asked or min(_AT_MOST, batch_size_from_memory(model, probe))

    own = int(store.settled("batch size", fitting(defended)))
    begun = len(store.labels()) > 0  # without the second size: by a version that had one for both
    of_bare = own if begun else shared.batch_size or fitting(bare)
    shared.batch_size = int(store.settled("batch size on the bare classifier", of_bare))
    return own, shared.batch_size


def _settled_precision(store: RunStore, asked: Precision, bare: Model, probe: Tensor) -> Precision:
    """Of the attacks on the bare classifier: what the machine that began the run chose."""
    chosen = store.settled("bfloat16 on the bare classifier", steps_in_bfloat16(asked, bare, probe))
    return "bfloat16" if chosen else "float32"


def _check_same_model(store: RunStore, answers: Tensor) -> None:
    """The digest of a model holds its layers and weights, not the settings that its ``forward`` may read elsewhere: a run goes on
    only if the model still says what it said of the first images, up to another processor's rounding."""
    before = torch.tensor(store.settled("answers", answers.double().cpu().tolist()), dtype=torch.float64)
    now = answers.double().cpu()
    if before.shape != now.shape or bool((before - now).abs().max() > 1e-2 * before.abs().max().clamp_min(1e-6)):
        raise StoreError(
            f"the model answers otherwise than when {store.path} was begun, though its layers and weights are the same: one of "
            "its settings is another. Set it back, or give another store (--store FILE, or --out FOLDER)"
        )


def _examine(judge: Judge, defended: nn.Module, paths: Mapping[str, GradientPath], settings: Settings) -> None:
    """The checks and the curve, on the first images; each is written as soon as it is known."""
    if settings.check_images == 0:
        return
    images, labels = judge.load(torch.arange(min(settings.check_images, len(judge.source))))
    sound = [i for i in range(len(labels)) if i not in judge.store.errors()]
    if not sound:
        return
    examination = Examination(
        model=defended,
        images=images[sound],
        labels=labels[sound],
        threat=judge.threat,
        paths=paths,
        bare=judge.bare if isinstance(defended, PurifiedClassifier) else None,
        draws=judge.draws,
        steps=settings.check_steps,
        random_draws=settings.random_draws,
        seed=settings.seed,
        bfloat16=judge.bfloat16,
        precision=judge.precision,
        batch_size=judge.batch_size,
    )
    with judge.progress.tasks([*CHECKS, "curve"], "checks") as tasks:
        for task in tasks:
            key = task if task == "curve" else f"check {task}"
            if judge.store.finding(key) is not None:
                continue
            started = time.perf_counter()
            found = accuracy_against_eps(examination) if task == "curve" else run_check(task, examination)
            judge.store.add_finding(key, dataclasses.asdict(found), time.perf_counter() - started)


def _costs(judge: Judge, defended: nn.Module, settings: Settings) -> None:
    """What the defence costs, how sparse its code is, and the pictures of the report."""
    pixels = judge.load(torch.arange(1))[0].numel()
    images, labels = judge.load(torch.arange(min(1000, max(_AT_LEAST, _PIXELS // pixels), len(judge.source))))
    if judge.store.finding("costs") is None:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        bare = defended.classifier if isinstance(defended, PurifiedClassifier) else defended
        purifier = defended.purifier if isinstance(defended, PurifiedClassifier) else None
        code = None
        if isinstance(purifier, DenoisingSparseAutoencoder):
            code = dataclasses.asdict(purifier.statistics(images))
        together, alone = milliseconds_per_image([defended, bare], images[:32])
        judge.store.add_finding(
            "costs",
            {
                "wrapped": purifier is not None,
                "classifier_macs": count_macs(bare, shape),
                "purifier_macs": count_macs(purifier, shape) if purifier is not None else 0,
                "purifier_parameters": count_parameters(purifier) if purifier is not None else 0,
                "milliseconds": together,
                "undefended_milliseconds": alone,
                "code": code,
            },
        )
    if settings.pictures and judge.store.finding("gallery") is None:
        few = slice(0, settings.pictures)
        judge.store.add_finding("gallery", gallery(judge, defended, images[few], labels[few]))
