"""pyautoattack behind the call of this package: AutoAttack as others run it, an opinion from outside."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.gradient import Model
from purify.attacks.input_gradient import input_gradient_only
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["AutoAttack", "AutoAttackVersion"]

AutoAttackVersion = Literal["standard", "plus", "rand"]


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020) by the package ``pyautoattack``, unchanged: L∞, L2 and L1, untargeted.

    It knows the model alone: ``gradient`` and ``precision`` do not change what it does. ``result.adversarial`` is the image
    itself where it failed. Needs ``pip install 'purify-defense[autoattack]'``.
    """

    norms = ("linf", "l2", "l1")

    version: AutoAttackVersion = "standard"
    attacks: tuple[str, ...] = ()
    """Some of its attacks by their names there (``apgd-ce``, ``apgd-t``, ``fab-t``, ``square``) in place of a version's, with its
    settings for that case (such as five restarts of ``apgd-ce``)."""
    batch_size: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in get_args(AutoAttackVersion):
            raise ValueError(f"unknown version {self.version!r}; known: {', '.join(get_args(AutoAttackVersion))}")

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        try:
            from pyautoattack import AutoAttack as Theirs
        except ImportError as missing:
            raise ImportError("AutoAttack needs pyautoattack: pip install 'purify-defense[autoattack]'") from missing
        if problem.targets is not None:
            raise ValueError("AutoAttack is offered untargeted only")
        seed = int(torch.randint(0, 2**31 - 1, (), generator=generator, device=generator.device))
        counter = _Counter(oracle.model)
        quiet = logging.getLogger("auto-attack")
        level = quiet.level
        with torch.random.fork_rng():  # it seeds torch's global stream
            quiet.setLevel(logging.ERROR)
            try:
                runner = Theirs(
                    counter,
                    norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[self.threat.norm],
                    eps=self.threat.eps,
                    seed=seed,
                    device=problem.images.device,
                    version="custom" if self.attacks else self.version,
                    attacks=list(self.attacks) or None,
                )
                found, _ = runner.run_standard_evaluation(problem.images, problem.labels, batch_size=self.batch_size)
            finally:
                quiet.setLevel(level)
        oracle.queries += counter.images // max(len(problem.labels), 1)
        return self.threat.project(found, problem.images)  # its L2 and L1 projections are off by some float32 rounding


class _Counter:
    """Counts the images that pass through the model."""

    def __init__(self, model: Model) -> None:
        self.model, self.images = model, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return input_gradient_only(self.model, images)
