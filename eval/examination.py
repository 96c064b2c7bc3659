"""A defence on the bench: a few images, and every attack that some check asked for, each run once."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify.attacks import APGD, Attack, GradientPath, ThreatModel, eot, exact, verdict
from purify.attacks.gradient import Model
from purify.attacks.precision import Precision

__all__ = ["Examination", "freeze", "in_float64", "is_held"]


@dataclass(kw_only=True)
class Examination:
    """What the checks need to know, and what they have measured so far.

    Shares are (n,), one an image: of the draws in which it is classified rightly; 0 or 1 for a deterministic model.
    """

    model: Model
    """The defence: images in [0, 1] to logits."""
    images: Tensor
    """(n, C, H, W)."""
    labels: Tensor
    """(n,)."""
    threat: ThreatModel
    paths: Mapping[str, GradientPath]
    """Gradient paths by name (``purify.attacks.every_path``)."""
    bare: Model | None = None
    """The classifier without the defence; None if there is none to tell apart."""
    draws: int = 1
    """Of a random defence: gradients are averaged over so many draws, and verdicts taken over as many."""
    steps: int = 50
    """Of APGD."""
    queries: int = 1000
    """Of Square."""
    random_draws: int = 10_000
    """Random points in the ball, for each of at most 8 images."""
    seed: int = 0
    bfloat16: bool = False
    """Gradient steps under autocast."""
    precision: Precision = "auto"
    """Of the attacks on the bare classifier."""
    batch_size: int | None = None
    """Images attacked at once; None: all of them."""
    progress: Callable[[str], None] | None = None
    """Told what is being measured."""
    _done: dict[str, Tensor] = field(default_factory=dict, repr=False)
    farthest: float = 0.0
    """Largest distance of an adversarial image so far, as a share of its eps."""

    def __post_init__(self) -> None:
        try:
            found = exact(self.model)(self.images[:2], lambda logits: logits.logsumexp(1))
            self.connected, self.has_gradient = True, bool(found.gradient.any())  # a quantiser has one that is zero
        except ValueError:
            self.connected = self.has_gradient = False

    @property
    def classes(self) -> int:
        """Of the model."""
        with torch.no_grad():
            return int(self.model(self.images[:1]).shape[1])

    def attack(self, eps: float | None = None, *, steps: int | None = None, restarts: int = 1) -> APGD:
        """The one that the checks compare with: APGD on cross-entropy."""
        threat = self.threat if eps is None else ThreatModel(self.threat.norm, eps)
        return APGD(threat, steps=steps or self.steps, restarts=restarts, early_stop=self.draws == 1)

    def clean(self) -> Tensor:
        """Shares on the untouched images."""
        return self._once("clean", lambda: self._shares(self.model, self.images, self.draws))

    def under(
        self,
        attack: Attack,
        path: str = "exact",
        *,
        bare: bool = False,
        draws: int | None = None,
        verdicts: int | None = None,
        again: int = 0,
        averaged: bool = False,
    ) -> Tensor:
        """Shares under an attack.

        Args:
            attack: on all images.
            path: a name of ``paths``, or ``exact``; a model that cuts its gradient off stands as it is along the exact one.
            bare: attack the classifier without the defence instead.
            draws: for the attacker's gradient; None: those of the examination.
            verdicts: draws over which the share is taken; None: those of the examination.
            again: another number gives another random start.
            averaged: of a random defence the attack sees the mean of the logits of all draws, not those of one.
        """
        average = self.draws if draws is None else draws
        scored = 1 if bare else self.draws if verdicts is None else verdicts
        key = f"{attack}|{path}|{bare}|{average}|{again}" + ("" if verdicts is None else f"|{verdicts}")
        key += "|averaged" if averaged else ""

        def measure() -> Tensor:
            model = self.bare if bare else self.model
            assert model is not None
            if path == "exact" and not bare and not self.has_gradient:
                return self.clean()
            gradient = self.paths[path] if path in self.paths and not bare else exact(model)
            generator = torch.Generator(device=self.images.device)
            generator.manual_seed(self.seed * 1_000_003 + zlib.crc32(key.encode()))
            found = []
            for rows in self.batches():
                result = attack(
                    _mean_of(model, average) if averaged and average > 1 else model,
                    self.images[rows],
                    self.labels[rows],
                    generator=generator,
                    gradient=gradient if average == 1 else eot(gradient, average),
                    precision="bfloat16" if self.bfloat16 and average == 1 else "float32",
                )
                self.farthest = max(self.farthest, float(result.distance.max()) / max(attack.threat.eps, 1e-12))
                found.append(result.adversarial)
            right = self._shares(model, torch.cat(found), scored)
            return torch.minimum(right, self.clean()) if not bare and self.draws == 1 else right

        return self._once(key, measure)

    def transferred(self, attack: Attack) -> Tensor:
        """Shares of the defence under images that were attacked on the bare classifier."""

        def measure() -> Tensor:
            assert self.bare is not None
            generator = torch.Generator(device=self.images.device).manual_seed(self.seed)
            found = [
                attack(self.bare, self.images[rows], self.labels[rows], generator=generator, precision=self.precision).adversarial
                for rows in self.batches()
            ]
            return self._shares(self.model, torch.cat(found), self.draws)

        return self._once(f"{attack}|transferred", measure)

    def worst(self, eps: float | None = None) -> Tensor:
        """Lowest share of each image over all gradient paths, by :meth:`attack` at ``eps``. Of a random defence those along the
        path that is lowest in the mean: the lowest of several noisy shares of an image would be too low."""
        shares = torch.stack([self.clean(), *(self.under(self.attack(eps), path) for path in self.paths)])
        return shares.amin(0) if self.draws == 1 else shares[int(shares.mean(1).argmin())]

    def strongest(self) -> str | None:
        """The path along which the iterative checks attack: that which leaves least. None if there is none."""
        paths = [path for path in self.paths if path != "exact" or self.has_gradient]
        return min(paths, key=lambda path: float(self.under(self.attack(), path).mean()), default=None)

    def batches(self) -> list[slice]:
        """Parts of the images that are attacked at once."""
        size = self.batch_size or len(self.images)
        return [slice(start, start + size) for start in range(0, len(self.images), size)]

    def _shares(self, model: Model, images: Tensor, draws: int) -> Tensor:
        """Of ``draws`` passes those in which each image is classified rightly, (n,)."""
        found = [verdict(model, images[rows], self.labels[rows], draws)[0].double().mean(0) for rows in self.batches()]
        return torch.cat(found)

    def _once(self, key: str, measure: Callable[[], Tensor]) -> Tensor:
        if key not in self._done:
            if self.progress is not None:
                self.progress(key.partition("|")[0])
            self._done[key] = measure()
        return self._done[key]


def _mean_of(model: Model, draws: int) -> Model:
    """The mean of its logits in so many passes."""
    return lambda images: torch.stack([model(images) for _ in range(draws)]).mean(0)


def freeze(model: Model, seed: int = 0) -> Model:
    """The model with the same randomness at every pass: the generators of torch, NumPy and ``random``, and those that its modules
    hold as attributes, begin anew. Randomness from elsewhere (:func:`is_held` tells) stays as it is.

    >>> noisy = lambda x: x.flatten(1) + torch.rand(len(x), 2)
    >>> x = torch.zeros(1, 1, 1, 2)
    >>> torch.equal(noisy(x), noisy(x)), torch.equal(freeze(noisy)(x), freeze(noisy)(x))
    (False, True)
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    held = [_hold(value, seed) for module in modules for value in vars(module).values()]
    sources = [*_global(seed), *(source for source in held if source is not None)]

    def frozen(images: Tensor) -> Tensor:
        states = [read() for read, _, _ in sources]
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            torch.manual_seed(seed)
            for _, _, begin in sources:
                begin()
            logits = model(images)
        for (_, write, _), state in zip(sources, states, strict=True):
            write(state)
        return logits

    return frozen


_Source = tuple[Callable[[], Any], Callable[[Any], object], Callable[[], object]]
"""How to read the state of a generator, to write it, and to begin anew."""


def _global(seed: int) -> list[_Source]:
    """Those of ``random`` and NumPy."""
    numpy = np.random  # its old interface is what a defence may use
    return [
        (random.getstate, random.setstate, partial(random.seed, seed)),
        (numpy.get_state, numpy.set_state, partial(numpy.seed, seed)),
    ]


def _hold(value: object, seed: int) -> _Source | None:
    """Of an attribute that is a generator."""
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state, partial(value.manual_seed, seed)
    if isinstance(value, random.Random):
        return value.getstate, value.setstate, partial(value.seed, seed)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return (
            partial(getattr, bits, "state"),
            partial(setattr, bits, "state"),
            partial(setattr, bits, "state", type(bits)(seed).state),
        )
    return None


@torch.no_grad()
def is_held(frozen: Model, images: Tensor) -> bool:
    """Whether a model that :func:`freeze` has frozen does say the same of the same images (n, C, H, W) each time."""
    first = frozen(images)
    return all(torch.equal(frozen(images), first) for _ in range(3))


def in_float64(model: Model, images: Tensor) -> Model | None:
    """A copy that computes in float64, tried on ``images`` (n, C, H, W); None for functions, whose weights cannot be reached, and
    for modules that cannot be copied or hold values in float32 that are no part of their state."""
    if not isinstance(model, nn.Module):
        return None
    try:
        precise = copy.deepcopy(model).double()
        with torch.no_grad():
            precise(images.double())
    except (RuntimeError, TypeError):
        return None
    return precise
