"""Evaluate one defence: clean, oblivious and adaptive accuracy, what was recovered, how the margins moved, what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from purify.attacks import FGSM, PGD, Attack, GradientPath, ThreatModel, bpda, exact
from purify.attacks.gradient import Model
from purify.attacks.objective import LossName
from purify.attacks.result import margin
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.classifier import PurifiedClassifier
from purify.cost import count_macs, count_parameters, milliseconds_per_image
from purify.eval.margin import MarginSummary
from purify.eval.recovery import Accuracy, Recovery
from purify.eval.report import Report
from purify.images import check_images, check_labels

__all__ = ["ObliviousExamples", "Settings", "adaptive_attack", "craft_oblivious", "evaluate", "gradient_paths", "margins_of"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How hard the attacker tries, and with which seed."""

    steps: int = 40
    """Of PGD; its step is 2.5 · eps / steps."""
    restarts: int = 1
    """Of the adaptive PGD, along each gradient path."""
    batch_size: int = 250
    seed: int = 0
    """Of every random start: the same seed, batch size and library versions give the same table."""


@dataclass(frozen=True)
class ObliviousExamples:
    """Images attacked on the bare classifier, by an attacker who does not know the purifier. A table shares them."""

    images: dict[str, Tensor]
    """For each attack (``FGSM``, ``PGD``) the attacked images (N, C, H, W)."""
    description: dict[str, str]
    """For each attack its settings in words."""
    clean_margin: Tensor
    """(N,), of the bare classifier on the clean images."""
    margin: dict[str, Tensor] = field(default_factory=dict)
    """For each attack (N,), of the bare classifier on the attacked images."""


def margins_of(model: Model, images: Tensor, labels: Tensor, batch_size: int = 250) -> Tensor:
    """Logit margin (N,) of ``model`` for images (N, C, H, W); negative where it is wrong."""
    with torch.no_grad():
        parts = [
            margin(model(images[start : start + batch_size]), labels[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts)


def craft_oblivious(
    classifier: Model, images: Tensor, labels: Tensor, threat: ThreatModel, settings: Settings, *, quiet: bool = False
) -> ObliviousExamples:
    """FGSM and PGD on the bare classifier, at full strength: each goes on to its highest loss instead of stopping at the first
    break, since an example that only just crosses the boundary is easily brought back."""
    attacks: dict[str, Attack] = {
        "FGSM": FGSM(threat, early_stop=False),
        "PGD": PGD(threat, steps=settings.steps, early_stop=False),
    }
    description = {"FGSM": f"FGSM, {threat}", "PGD": f"PGD {settings.steps} steps, {threat}"}
    made = {
        name: _attack_in_batches(attack, classifier, images, labels, None, settings, f"oblivious {name}", quiet)[0]
        for name, attack in attacks.items()
    }
    bare = {name: margins_of(classifier, attacked, labels, settings.batch_size) for name, attacked in made.items()}
    return ObliviousExamples(made, description, margins_of(classifier, images, labels, settings.batch_size), bare)


def gradient_paths(defended: nn.Module, probe: Tensor) -> list[tuple[str, GradientPath, LossName]]:
    """The gradient paths that an adaptive attacker has against this defence, with the loss used along each.

    The exact gradient with two losses where there is one; through the purifier without its final clip (``purifier.relaxed``)
    where it offers that; and straight through, as if the purifier were the identity.

    Args:
        defended: a wrapped classifier, or a bare one.
        probe: a batch (n, C, H, W) on which it is tried whether a gradient arrives.
    """
    paths: list[tuple[str, GradientPath, LossName]] = []
    try:
        arrives = bool(exact(defended)(probe, lambda logits: logits.logsumexp(1)).gradient.any())
    except ValueError:
        arrives = False
    if arrives:
        paths += [("exact, cross-entropy", exact(defended), "ce"), ("exact, margin", exact(defended), "margin")]
    if isinstance(defended, PurifiedClassifier):
        stage, rest = defended.purifier, defended.undefended
        if isinstance(stage, DenoisingSparseAutoencoder):
            paths.append(("without the clip, cross-entropy", bpda(stage, rest, stage.relaxed), "ce"))
        paths.append(("straight through, cross-entropy", bpda(stage, rest), "ce"))
    return paths


def adaptive_attack(
    defended: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    settings: Settings,
    start: Tensor,
    *,
    quiet: bool = False,
    label: str = "",
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """PGD end to end along every gradient path, each on what the ones before left standing.

    Args:
        defended: images in [0, 1] to logits.
        images: (N, C, H, W).
        labels: (N,).
        threat: the ball.
        settings: steps, restarts, seed.
        start: (N,), the lowest margin found so far for each image (clean, or under transferred examples).
        quiet: no progress bar.
        label: shown beside the progress bar.

    Returns:
        For each image the lowest margin found (N,), the image that gave it (N, C, H, W; the clean one where ``start`` stands),
        and how many images each path broke first.
    """
    lowest, worst = start.clone(), images.clone()
    broken_by: dict[str, int] = {}
    for name, path, loss in gradient_paths(defended, images[:2]):
        standing = (lowest > 0).nonzero().flatten()
        broken_by[name] = 0
        if len(standing) == 0:
            continue
        attack = PGD(threat, steps=settings.steps, restarts=settings.restarts, loss=loss)
        found, margins = _attack_in_batches(
            attack, defended, images[standing], labels[standing], path, settings, f"{label} {name}", quiet
        )
        better = margins < lowest[standing]
        lowest[standing[better]] = margins[better]
        worst[standing[better]] = found[better]
        broken_by[name] = int((margins <= 0).sum())
    return lowest, worst, broken_by


def evaluate(
    defended: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    settings: Settings | None = None,
    oblivious: ObliviousExamples | None = None,
    name: str = "defence",
    quiet: bool = False,
) -> Report:
    """Measure a defence under one threat model.

    Args:
        defended: a classifier wrapped by ``purify.wrap``, or a bare one (then nothing is recovered). In eval mode.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        threat: norm and eps.
        settings: of the attacks; None: the defaults.
        oblivious: examples made on the bare classifier already (``craft_oblivious``), to be shared by several defences.
        name: of the row.
        quiet: no progress bars.

    Raises:
        TypeError, ValueError: images or labels are not what they should be.

    >>> from purify import load_classifier, load_dataset, wrap
    >>> x, y = load_dataset("digits", "test").first(20).batch(slice(None))
    >>> defended = wrap(load_classifier("digits-shufflenet"), "digits-dsae")
    >>> report = evaluate(defended, x, y, ThreatModel("linf", 0.15), settings=Settings(steps=5), quiet=True)
    >>> report.adaptive.claim, report.adaptive.n
    ('adaptive', 20)
    """
    check_images(images)
    check_labels(labels, images)
    settings = settings or Settings()
    wrapped = isinstance(defended, PurifiedClassifier)
    bare: nn.Module = defended.classifier if isinstance(defended, PurifiedClassifier) else defended
    if oblivious is None:
        oblivious = craft_oblivious(bare, images, labels, threat, settings, quiet=quiet)

    clean = margins_of(defended, images, labels, settings.batch_size) if wrapped else oblivious.clean_margin
    under = {
        attack: margins_of(defended, attacked, labels, settings.batch_size) if wrapped else oblivious.margin[attack]
        for attack, attacked in oblivious.images.items()
    }
    start = torch.stack([clean, *under.values()]).amin(0)  # transferred examples count: the attacker may submit them too
    lowest, worst, broken_by = adaptive_attack(defended, images, labels, threat, settings, start, quiet=quiet, label=name)
    broken_by = {"clean": int((clean <= 0).sum()), "transfer": int(((clean > 0) & (start <= 0)).sum()), **broken_by}

    paths = [path for path in broken_by if path not in ("clean", "transfer")]
    how = f"PGD {settings.steps} steps × {settings.restarts}, {threat}; worst case over transfer and: {'; '.join(paths)}"
    shape = (images.shape[1], images.shape[2], images.shape[3])
    classifier_macs = count_macs(bare, shape)
    statistics = None
    if isinstance(defended, PurifiedClassifier) and isinstance(defended.purifier, DenoisingSparseAutoencoder):
        statistics = defended.purifier.statistics(images[:1000])
    return Report(
        name=name,
        threat=threat,
        seed=settings.seed,
        clean=Accuracy.of(clean > 0, "clean"),
        undefended_clean=Accuracy.of(oblivious.clean_margin > 0, "clean"),
        undefended={
            attack: Accuracy.of(margins > 0, "oblivious", oblivious.description[attack], settings.seed)
            for attack, margins in oblivious.margin.items()
        },
        oblivious={
            attack: Accuracy.of(margins > 0, "oblivious", oblivious.description[attack], settings.seed)
            for attack, margins in under.items()
        },
        recovered={
            attack: Recovery.of(oblivious.clean_margin > 0, oblivious.margin[attack] > 0, margins > 0)
            for attack, margins in under.items()
        }
        if wrapped
        else {},
        adaptive=Accuracy.of(lowest > 0, "adaptive", how, settings.seed),
        broken_by=broken_by,
        margins={
            "clean": MarginSummary.of(clean),
            "attacked": MarginSummary.of(oblivious.margin["PGD"]),
            "purified": MarginSummary.of(under["PGD"]),
            "adaptive": MarginSummary.of(lowest),
        },
        code=statistics,
        classifier_macs=classifier_macs,
        purifier_macs=count_macs(defended.purifier, shape) if isinstance(defended, PurifiedClassifier) else 0,
        purifier_parameters=count_parameters(defended.purifier) if isinstance(defended, PurifiedClassifier) else 0,
        milliseconds=milliseconds_per_image(defended, images[:32]),
        per_image={
            "label": labels,
            "undefended_clean_margin": oblivious.clean_margin,
            "clean_margin": clean,
            **{f"undefended_{attack}_margin": margins for attack, margins in oblivious.margin.items()},
            **{f"oblivious_{attack}_margin": margins for attack, margins in under.items()},
            "adaptive_margin": lowest,
        },
        adaptive_images=worst,
    )


def _attack_in_batches(
    attack: Attack,
    model: Model,
    images: Tensor,
    labels: Tensor,
    path: GradientPath | None,
    settings: Settings,
    label: str,
    quiet: bool,
) -> tuple[Tensor, Tensor]:
    """Adversarial images (N, C, H, W) and the real model's margins on them (N,)."""
    found, margins = [], []
    with tqdm(total=len(images), desc=label, unit="image", disable=quiet or None, leave=False) as bar:
        for start in range(0, len(images), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            generator = torch.Generator(device=images.device).manual_seed(settings.seed * 1_000_003 + start)
            result = attack(model, images[rows], labels[rows], generator=generator, gradient=path)
            found.append(result.adversarial)
            margins.append(result.margin)
            bar.update(len(labels[rows]))
    return torch.cat(found), torch.cat(margins)
