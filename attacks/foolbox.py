"""Attacks of foolbox behind the call of this package: HopSkipJump (labels only), Carlini & Wagner, DDN, DeepFool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from purify.attacks.attack import Attack
from purify.attacks.gradient import Model
from purify.attacks.input_gradient import input_gradient_only
from purify.attacks.oracle import Oracle
from purify.attacks.problem import Problem

__all__ = ["FoolboxAttack", "FoolboxName"]

FoolboxName = Literal["hopskipjump", "carlini-wagner", "ddn", "deepfool"]


@dataclass(frozen=True)
class FoolboxAttack(Attack):
    """One of foolbox's minimum-norm attacks; what it finds outside the ball does not count (Rauber et al. 2020).

    ``hopskipjump`` (Chen, Jordan & Wainwright 2020) uses the predicted label alone; ``carlini-wagner`` (2017) and ``ddn``
    (Rony et al. 2019) are L2 attacks; ``deepfool`` (Moosavi-Dezfooli et al. 2016) serves both norms. Untargeted. foolbox
    draws from torch's and NumPy's global streams: both are set from the generator for the call, and put back.
    """

    name: FoolboxName = "deepfool"
    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in get_args(FoolboxName):
            raise ValueError(f"unknown attack {self.name!r}; known: {', '.join(get_args(FoolboxName))}")
        if self.name in ("carlini-wagner", "ddn") and self.threat.norm != "l2":
            raise ValueError(f"{self.name} is an L2 attack, got a threat model in {self.threat.norm}")

    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        import foolbox
        import numpy as np

        if problem.targets is not None:
            raise ValueError(f"{self.name} is offered untargeted only")
        counter = _CountingModule(oracle.model).eval()
        wrapped = foolbox.PyTorchModel(counter, bounds=(0, 1), device=problem.images.device)  # type: ignore[attr-defined]
        seed = int(torch.randint(0, 2**31 - 1, (), generator=generator, device=generator.device))
        before = np.random.get_state()  # noqa: NPY002 - foolbox draws from NumPy's global stream
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                found = self._found(self._make(foolbox.attacks), wrapped, problem.images, problem.labels)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        inside = self.threat.distance(found, problem.images) <= self.threat.eps
        oracle.queries += counter.passes
        return torch.where(inside[:, None, None, None], found.clamp(0, 1), problem.images)

    def _found(self, attack: Any, wrapped: Any, images: Tensor, labels: Tensor) -> Tensor:
        """What foolbox's attack makes of the images (N, C, H, W); those for which HopSkipJump finds no start stay as they are."""
        try:
            found: Tensor = attack(wrapped, images, labels, epsilons=None)[1]
        except ValueError as error:
            if "init_attack failed" not in str(error):
                raise
            if len(images) == 1:
                return images
            found = torch.cat([self._found(attack, wrapped, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))])
        return found

    def _make(self, attacks: Any) -> Any:
        linf = self.threat.norm == "linf"
        if self.name == "hopskipjump":
            return attacks.HopSkipJumpAttack(steps=self.steps, constraint="linf" if linf else "l2")
        if self.name == "carlini-wagner":
            return attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=self.steps * 10)
        if self.name == "ddn":
            return attacks.DDNAttack(steps=self.steps)
        return (attacks.LinfDeepFoolAttack if linf else attacks.L2DeepFoolAttack)(steps=self.steps)


class _CountingModule(nn.Module):
    """A callable as the module that foolbox wants; counts its forward passes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.held = (model,)  # not registered as a part: foolbox moves and counts what it finds
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return input_gradient_only(self.held[0], images)
