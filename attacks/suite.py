"""Suites: named lists of attacks, run one after the other on what the ones before left standing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.apgd import APGD, TargetedAPGD
from purify.attacks.attack import Attack
from purify.attacks.fmn import FMN
from purify.attacks.gradient import GradientPath, Model, eot, exact
from purify.attacks.pgd import PGD
from purify.attacks.result import margin
from purify.attacks.square import Square
from purify.attacks.threat import ThreatModel

__all__ = ["SUITES", "Entry", "SuiteResult", "make_suite", "run_suite"]


@dataclass(frozen=True)
class Entry:
    """One attack of a suite."""

    name: str
    attack: Attack
    draws: int = 1
    """Draws of a random defence over which gradients are averaged (EOT)."""
    every_path: bool = True
    """Run along every gradient path that is given, not along the first alone. False for attacks that use no gradient."""


def _fast(threat: ThreatModel) -> list[Entry]:
    return [Entry("PGD-20", PGD(threat, steps=20))]


def _standard(threat: ThreatModel) -> list[Entry]:
    return [
        Entry("APGD-CE", APGD(threat, steps=100)),
        Entry("APGD-T", TargetedAPGD(threat, steps=100)),
        Entry("FMN", FMN(threat, steps=100, stop_inside=True)),
        Entry("Square", Square(threat, queries=5000), every_path=False),
    ]


def _random(threat: ThreatModel) -> list[Entry]:
    return [
        Entry("APGD-CE, EOT 20", APGD(threat, steps=100, early_stop=False), draws=20),
        Entry("APGD-DLR, EOT 20", APGD(threat, steps=100, loss="dlr", early_stop=False), draws=20),
    ]


SUITES: dict[str, tuple[str, Callable[[ThreatModel], list[Entry]]]] = {
    "fast": ("PGD with 20 steps: a first look, not an evaluation", _fast),
    "standard": ("APGD-CE, targeted APGD-DLR (9 classes), FMN, Square: the exact gradient only", _standard),
    "random": ("for random defences: APGD on CE and DLR, gradients over 20 draws, verdict over 20 fresh ones", _random),
    "adaptive": ("standard, along every gradient path that the defence leaves open", _standard),
}
"""Description and entries of each suite."""


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found; one row an image."""

    robust: Tensor
    """(N,), share of draws in which the image is classified rightly after all attacks: 0 or 1 for a deterministic model."""
    broken_by: list[str]
    """For each image ``clean``, the attack and path that broke it first, or an empty string."""
    adversarial: Tensor
    """(N, C, H, W): the image with the lowest margin found."""
    margin: Tensor
    """(N,): the lowest margin found."""
    queries: Tensor
    """int64 (N,)."""


def make_suite(name: str, threat: ThreatModel) -> list[Entry]:
    """The attacks of a suite, for printing, changing and running.

    Raises:
        ValueError: unknown name.

    >>> [entry.name for entry in make_suite("standard", ThreatModel("linf", 8 / 255))]
    ['APGD-CE', 'APGD-T', 'FMN', 'Square']
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name][1](threat)


def run_suite(
    entries: Sequence[Entry],
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    paths: Mapping[str, GradientPath] | None = None,
    batch_size: int = 256,
    verdict_draws: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> SuiteResult:
    """Run every attack on the images that are still standing; the worst counts for each image.

    Args:
        entries: from :func:`make_suite`, or a list of one's own.
        model: the defence, by which everything is scored.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        paths: gradient paths by name; None: the exact gradient.
        batch_size: images attacked at once.
        verdict_draws: for a random defence, the number of fresh draws over which each image's verdict is averaged; then no image
            leaves early, since one unlucky draw is not a break.
        seed: of all randomness of the attacks.
        progress: called with the attack's name, the images done and those still standing.

    Raises:
        TypeError, ValueError: see :class:`Attack`.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(_run_batch(entries, model, images[rows], labels[rows], paths, verdict_draws, seed + start, progress))
    return SuiteResult(
        robust=torch.cat([part.robust for part in parts]),
        broken_by=[name for part in parts for name in part.broken_by],
        adversarial=torch.cat([part.adversarial for part in parts]),
        margin=torch.cat([part.margin for part in parts]),
        queries=torch.cat([part.queries for part in parts]),
    )


def _run_batch(
    entries: Sequence[Entry],
    model: Model,
    images: Tensor,
    labels: Tensor,
    paths: Mapping[str, GradientPath] | None,
    draws: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> SuiteResult:
    right, lowest = _verdict(model, images, labels, draws)
    worst = images.clone()
    queries = torch.full_like(labels, draws)
    broken_by = ["" if share > 0 else "clean" for share in right.tolist()]
    for entry in entries:
        chosen = list((paths or {"exact": exact(model)}).items())
        for path_name, path in chosen if entry.every_path else chosen[:1]:
            rows = (right > 0).nonzero().flatten()
            if len(rows) == 0:
                break
            name = f"{entry.name}, {path_name}" if entry.every_path and len(chosen) > 1 else entry.name
            generator = torch.Generator(device=images.device).manual_seed(seed)
            gradient = path if entry.draws == 1 else eot(path, entry.draws)
            result = entry.attack(model, images[rows], labels[rows], generator=generator, gradient=gradient)
            share, margins = _verdict(model, result.adversarial, labels[rows], draws)
            queries[rows] += result.queries + draws
            better = (share < right[rows]) | ((share == right[rows]) & (margins < lowest[rows]))
            changed = rows[better]
            right[changed], lowest[changed], worst[changed] = share[better], margins[better], result.adversarial[better]
            for row in rows[share <= 0].tolist():
                broken_by[row] = name
            if progress is not None:
                progress(name, len(images), int((right > 0).sum()))
    return SuiteResult(right, broken_by, worst, lowest, queries)


@torch.no_grad()
def _verdict(model: Model, images: Tensor, labels: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Share of draws in which each image is classified rightly, and its mean margin: (N,) and (N,)."""
    right, margins = images.new_zeros(len(images)), images.new_zeros(len(images))
    for _ in range(draws):
        logits = model(images).to(images.dtype)
        right += logits.argmax(1) == labels
        margins += margin(logits, labels)
    return right / draws, margins / draws
