"""Suites: named lists of attacks, run one after the other on what the ones before left standing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purify.attacks.apgd import APGD, TargetedAPGD
from purify.attacks.attack import Attack, check_logits
from purify.attacks.fmn import FMN
from purify.attacks.gradient import GradientPath, Model, eot, exact
from purify.attacks.memory import batch_size_from_memory
from purify.attacks.pgd import PGD
from purify.attacks.precision import Precision, steps_in_bfloat16
from purify.attacks.result import margin
from purify.attacks.square import Square
from purify.attacks.threat import ThreatModel
from purify.images import check_images, check_labels

__all__ = [
    "SUITES",
    "Along",
    "Entry",
    "Stage",
    "Suite",
    "SuiteResult",
    "check_deterministic",
    "make_suite",
    "run_suite",
    "suited",
    "verdict",
]


Along = Literal["every path", "fruitful paths", "once"]
_ALONG: dict[Along, str] = {"every path": "", "fruitful paths": " (along fruitful paths)", "once": ""}
_FRUITFUL = 0.01
"""Share of the images. A path that broke fewer after the one before it is not worth an attack of nine times the cost."""


@dataclass(frozen=True)
class Entry:
    """One attack of a suite."""

    name: str
    attack: Attack
    along: Along = "every path"
    """Which of the gradient paths that are given. ``fruitful paths``: the first, and those along which the attacks before broke
    at least one image in a hundred; all, if none did. ``once``: for attacks that use no gradient."""

    def choose_paths(self, names: Sequence[str], broken: Mapping[str, int], images: int) -> list[str]:
        """Names of the paths to be run, given how many of the ``images`` fell so far along each.

        >>> costly = Entry("APGD-T", TargetedAPGD(ThreatModel("linf", 0.1)), along="fruitful paths")
        >>> costly.choose_paths(["exact", "clip", "transfer"], {"exact": 90, "clip": 1, "transfer": 5}, 500)
        ['exact', 'transfer']
        """
        if self.along == "once":
            return list(names[:1])
        fruitful = [name for name in names if broken.get(name, 0) >= max(1, _FRUITFUL * images)]
        if self.along == "every path" or not fruitful:
            return list(names)
        return [name for name in names if name == names[0] or name in fruitful]


@dataclass(frozen=True)
class Suite:
    """A named list of attacks. ``print(suite)`` shows them with their settings; ``suite.with_entries(Entry(…))`` has more."""

    name: str
    description: str
    entries: tuple[Entry, ...]
    draws: int = 1
    """Of a random defence: gradients are averaged over so many draws (EOT), and verdicts are taken over as many fresh ones."""

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two entries of the suite are called {' and '.join(sorted(twice))}: give each a name of its own")

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.description}"]
        if self.draws > 1:
            lines.append(f"  gradients over {self.draws} draws, verdicts over {self.draws} fresh ones")
        return "\n".join(lines + [f"  {entry.name}{_ALONG[entry.along]}: {entry.attack}" for entry in self.entries])

    def with_entries(self, *entries: Entry) -> Suite:
        """The same with more attacks at the end."""
        return dataclasses.replace(self, entries=self.entries + entries)


def _fast(threat: ThreatModel, draws: int) -> tuple[Entry, ...]:
    return (Entry("PGD-20", PGD(threat, steps=20, early_stop=draws == 1)),)


def _standard(threat: ThreatModel, draws: int) -> tuple[Entry, ...]:
    if threat.norm == "l1":
        return (Entry("APGD-CE", APGD(threat, restarts=5)), Entry("APGD-T", TargetedAPGD(threat, classes=5)))
    return (
        Entry("APGD-CE", APGD(threat)),
        Entry("APGD-T", TargetedAPGD(threat)),
        Entry("FMN", FMN(threat, stop_inside=True)),
        Entry("Square", Square(threat), along="once"),
    )


def _random(threat: ThreatModel, draws: int) -> tuple[Entry, ...]:
    return (
        Entry("APGD-CE", APGD(threat, early_stop=False)),
        Entry("APGD-DLR", APGD(threat, loss="dlr", early_stop=False)),
    )


def _adaptive(threat: ThreatModel, draws: int) -> tuple[Entry, ...]:
    if draws > 1:
        return _random(threat, draws)
    first, *costly = _standard(threat, draws)
    fruitful = [dataclasses.replace(e, along="fruitful paths") for e in costly if e.along == "every path"]
    return (first, *fruitful, *(Entry("Square", Square(threat, queries=1000), along="once") for e in costly if e.along == "once"))


SUITES: dict[str, tuple[str, Callable[[ThreatModel, int], tuple[Entry, ...]]]] = {
    "fast": ("a first look, not an evaluation", _fast),
    "standard": ("for deterministic models: APGD-CE, targeted APGD-DLR, FMN, Square; L1: the first two", _standard),
    "random": ("for random defences: APGD on CE and DLR", _random),
    "adaptive": (
        "standard (random, if there are several draws) along the gradient paths, with a shorter Square; per-image worst case",
        _adaptive,
    ),
}
"""Description and entries of each suite."""


def make_suite(name: str, threat: ThreatModel, *, draws: int | None = None) -> Suite:
    """The attacks of a suite, for printing, changing and running.

    Args:
        name: one of ``SUITES``.
        threat: the ball.
        draws: of a random defence; None: 20 for ``random``, else 1.

    Raises:
        ValueError: unknown name, fewer draws than one, or more than one draw with ``standard``.

    >>> print(make_suite("fast", ThreatModel("linf", 8 / 255)))
    fast: a first look, not an evaluation
      PGD-20: PGD(threat=ThreatModel(norm='linf', eps=0.03137...), steps=20, ...)
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    draws = (20 if name == "random" else 1) if draws is None else draws
    if draws < 1:
        raise ValueError(f"expected at least one draw, got {draws}")
    if name == "standard" and draws > 1:
        raise ValueError(
            "the suite 'standard' is for deterministic models; for random ones use 'random', or 'adaptive' with draws"
        )
    description, build = SUITES[name]
    return Suite(name, description, build(threat, draws), draws)


@dataclass(frozen=True)
class Stage:
    """What one attack did along one path."""

    name: str
    attacked: int
    """Images still standing before."""
    broken: int
    """Of these, fallen: misclassified in every draw."""
    seconds: float


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found; one row an image. ``print(result)`` shows the stages."""

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
    stages: list[Stage]
    batch_size: int
    """Images attacked at once."""
    bfloat16: bool
    """Whether gradient steps were taken under autocast."""

    def __str__(self) -> str:
        standing = len(self.robust) - self.broken_by.count("clean")
        lines = [f"{'clean':40} {standing:6} of {len(self.robust)} stand"]
        for stage in self.stages:
            standing = stage.attacked - stage.broken
            lines.append(f"{stage.name:40} {standing:6} of {stage.attacked} stand {stage.seconds:8.1f} s")
        return "\n".join([*lines, f"robust accuracy {100 * float(self.robust.mean()):.1f} %"])


def run_suite(
    suite: Suite,
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    paths: Mapping[str, GradientPath] | None = None,
    batch_size: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> SuiteResult:
    """Run every attack on the images that are still standing; the worst counts for each image.

    Args:
        suite: from :func:`make_suite`.
        model: the defence, by which everything is scored. ``torch.compile(model, dynamic=True)`` is one, too.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        paths: gradient paths by name (``purify.attacks.every_path``); None: the exact gradient alone.
        batch_size: images attacked at once; None: from memory (:mod:`purify.attacks.memory`), 256 at most. Random starts depend
            on it: it is part of the result.
        precision: see :class:`Attack`; with more than one draw always float32.
        seed: of all randomness of the attacks.
        progress: called with the stage's name, the images it has done, and how many it has in all.

    Raises:
        TypeError, ValueError: see :class:`Attack`; or the model is random and the suite is for deterministic ones.
    """
    check_images(images)
    check_labels(labels, images)
    run = _Run(suite, model, images, labels.long(), batch_size or batch_size_from_memory(model, images), precision)
    chosen = dict(paths or {"exact": exact(model)})
    broken = dict.fromkeys(chosen, 0)
    for entry in suite.entries:
        for path in entry.choose_paths(list(chosen), broken, len(images)):
            name = f"{entry.name}, {path}" if entry.along != "once" and len(chosen) > 1 else entry.name
            run.stage(name, entry.attack, chosen[path], seed * 1_000_003 + len(run.stages) * 1009, progress)
            broken[path] += run.stages[-1].broken if entry.along != "once" else 0
    return run.result()


class _Run:
    """The state of one run: for each image the share of draws in which it stands, the lowest margin, and where that was found."""

    def __init__(self, suite: Suite, model: Model, images: Tensor, labels: Tensor, batch_size: int, precision: Precision) -> None:
        self.model, self.images, self.labels, self.draws, self.batch_size = model, images, labels, suite.draws, batch_size
        self.bfloat16 = suite.draws == 1 and steps_in_bfloat16(precision, model, images)
        if suite.draws == 1 and len(images):
            check_deterministic(model, images[: min(batch_size, 8)])
        with torch.no_grad():
            self.classes = model(images[:1]).shape[1] if len(images) else 0
        self.right, self.lowest = self._verdict(images, labels)
        self.worst = images.clone()
        self.queries = torch.full_like(labels, self.draws)
        self.broken_by = ["" if share > 0 else "clean" for share in self.right.tolist()]
        self.stages: list[Stage] = []

    def stage(
        self, name: str, attack: Attack, path: GradientPath, seed: int, progress: Callable[[str, int, int], None] | None
    ) -> None:
        """One attack along one path, on all that stand."""
        attack = suited(attack, self.classes, self.batch_size)
        standing, started, broken = (self.right > 0).nonzero().flatten(), time.perf_counter(), 0
        for done, rows in _batches(standing, self.batch_size):
            if progress is not None:
                progress(name, done, len(standing))
            broken += self._attack(name, attack, path, rows, seed + done)
        if progress is not None and len(standing):
            progress(name, len(standing), len(standing))
        self.stages.append(Stage(name, len(standing), broken, time.perf_counter() - started))

    def _attack(self, name: str, attack: Attack, path: GradientPath, rows: Tensor, seed: int) -> int:
        generator = torch.Generator(device=self.images.device).manual_seed(seed)
        labels = self.labels[rows]
        result = attack(
            self.model,
            self.images[rows],
            labels,
            generator=generator,
            gradient=path if self.draws == 1 else eot(path, self.draws),
            precision="bfloat16" if self.bfloat16 else "float32",
        )
        share, margins = self._verdict(result.adversarial, labels)
        self.queries[rows] += result.queries + self.draws
        better = (share < self.right[rows]) | ((share == self.right[rows]) & (margins < self.lowest[rows]))
        changed = rows[better]
        self.right[changed], self.lowest[changed] = share[better], margins[better]
        self.worst[changed] = result.adversarial[better]
        for row in rows[share <= 0].tolist():
            self.broken_by[row] = name
        return int((share <= 0).sum())

    def result(self) -> SuiteResult:
        """With several draws the shares are taken anew: the lowest of several noisy shares would be too low."""
        right, lowest = self._verdict(self.worst, self.labels) if self.draws > 1 else (self.right, self.lowest)
        return SuiteResult(right, self.broken_by, self.worst, lowest, self.queries, self.stages, self.batch_size, self.bfloat16)

    @torch.no_grad()
    def _verdict(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Share of draws in which each image is classified rightly, and its mean margin: (n,) and (n,)."""
        share, lowest = images.new_zeros(len(images)), images.new_zeros(len(images))
        for _, rows in _batches(torch.arange(len(images), device=images.device), self.batch_size):
            right, margins = verdict(self.model, images[rows], labels[rows], self.draws)
            share[rows], lowest[rows] = right.to(images.dtype).mean(0), margins.mean(0)
        return share, lowest


@torch.no_grad()
def verdict(model: Model, images: Tensor, labels: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
    """What ``model`` says of images (n, C, H, W) in each of ``draws`` passes: bool (draws, n), right; (draws, n), margins.

    >>> verdict(lambda x: x.flatten(1), torch.tensor([[[[0.9, 0.4]]]]), torch.tensor([0]))
    (tensor([[True]]), tensor([[0.5000]]))
    """
    right, margins = [], []
    for _ in range(draws):
        logits = model(images).to(images.dtype)
        right.append((logits.argmax(1) == labels) & torch.isfinite(logits).all(1))
        margins.append(margin(logits, labels))
    return torch.stack(right), torch.stack(margins)


@torch.no_grad()
def check_deterministic(model: Model, images: Tensor, passes: int = 8) -> None:
    """Does an image have one answer, whenever it is asked for and whatever stands beside it?

    Raises:
        ValueError: one of several passes of the same images (N, C, H, W) gives other logits than the first; or an image gets
            others by itself or at another place in the batch.
    """
    first = model(images)
    check_logits(first, images)
    size = (first.amax(1) - first.amin(1)).max().clamp_min(1e-6 * first.abs().max())  # a shift of all logits decides nothing
    generator = torch.Generator(device=images.device).manual_seed(0)
    # and close to the images, where attacks go: a defence may be random only of what looks attacked
    near = (images + 0.1 * (torch.rand(images.shape, generator=generator, device=images.device) - 0.5).to(images)).clamp(0, 1)
    again = [(model(images), first) for _ in range(passes - 1)]
    beside = [model(near) for _ in range(passes)]
    again += [(other, beside[0]) for other in beside[1:]]
    if any(bool((other - one).abs().max() > 1e-3 * size) for other, one in again):
        raise ValueError(
            "the model gives other logits for the same images at each pass: one draw's verdict means nothing. Use the suite "
            "'random', or make_suite('adaptive', threat, draws=20)"
        )
    turned, alone = model(images.flip(0)).flip(0), torch.cat([model(image) for image in torch.split(images, 1)])
    if any(bool((other - first).abs().max() > 0.02 * size) for other in (turned, alone)):
        raise ValueError(
            "what the model says of an image depends on the others in its batch, or on its place there; batches shrink as images "
            "fall, so no verdict would be that of the model that you run: attack a form of it that takes each image by itself"
        )


def suited(attack: Attack, classes: int, batch_size: int) -> Attack:
    """The attack as it suits the model: with as many passes at once as fit, and the margin in the place of a DLR loss, which so
    few classes do not have."""
    if isinstance(attack, TargetedAPGD) and attack.at_once is None:
        attack = dataclasses.replace(attack, at_once=batch_size)
    if isinstance(attack, Square) and attack.at_once is None:
        attack = dataclasses.replace(attack, at_once=batch_size)
    if isinstance(attack, APGD) and attack.loss == "dlr" and classes < (4 if isinstance(attack, TargetedAPGD) else 3):
        return dataclasses.replace(attack, loss="margin")
    return attack


def _batches(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces of ``rows``, each with the number of rows before it."""
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
