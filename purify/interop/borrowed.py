"""What the attacks of other libraries share when they stand behind the call of ``purify.attacks``."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from purify.attacks.attack import Attack
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem, hits
from purify.interop.victim import Victim

__all__ = ["BorrowedAttack"]


@dataclass(frozen=True)
class BorrowedAttack(Attack):
    """An attack class of another library, with its settings; the threat model gives it its norm and eps.

    It attacks the images that are right from the start. What it finds is projected onto the ball, so that minimum-norm attacks
    serve as well, then put to the model itself: that pass decides what is broken, whatever the library says. Untargeted. It
    knows the model alone: ``gradient`` and ``precision`` do not change what it does. The libraries draw from the global streams
    of Python, NumPy and torch: all are set from the generator for the call, and put back.

    Raises:
        ValueError: ``settings`` hold a norm or a radius (they come from the threat model), or there are targets.
    """

    norms = ("linf", "l2", "l1")
    from_threat: ClassVar[frozenset[str]] = frozenset({"norm", "eps"})
    """Names of the library's settings that the threat model decides."""

    attack: type[Any]
    """The library's class, such as ``torchattacks.PGD``."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else it is made with, by the library's own names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if twice := sorted(self.from_threat & set(self.settings)):
            raise ValueError(f"leave {', '.join(twice)} out of the settings: set by the threat model ({self.threat})")

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        if problem.targets is not None:
            raise ValueError(f"{self.attack.__name__} is offered untargeted only")
        candidates = problem.images.clone()
        standing = (~hits(logits, problem)).nonzero().flatten()
        if len(standing) == 0:
            return candidates
        part = problem.part(standing)
        victim = Victim(oracle.model, part.images.device)
        seed = int(torch.randint(0, 2**31 - 1, (), generator=generator, device=generator.device))
        with _seeded(seed, part.images.device):
            found = self._run(victim, part, logits.shape[1], seed).detach().to(part.images)
        oracle.queries[standing] += victim.passed // len(standing)
        finite = torch.isfinite(found).flatten(1).all(1)  # DeepFool divides by the length of a gradient
        found = torch.where(finite[:, None, None, None], found, part.images)
        candidates[standing] = self.threat.project(found, part.images)
        return candidates

    @abstractmethod
    def _run(self, victim: Victim, part: Problem, classes: int, seed: int) -> Tensor:
        """What the library finds for ``part``: (n, C, H, W)."""


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the libraries draw from NumPy's global stream
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
