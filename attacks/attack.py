"""What every attack shares: checks on the way in, scoring by the real model and the ball's check on the way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.gradient import GradientPath, Model, exact
from purify.attacks.result import AttackResult, margin
from purify.attacks.threat import ThreatModel
from purify.images import check_images, check_labels

__all__ = ["Attack", "Problem", "hits"]


@dataclass(frozen=True)
class Problem:
    """One batch to be attacked; the same fields for the whole batch and for the rows still under attack."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)."""
    targets: Tensor | None
    """(N,) classes to reach, or None: any class but the label."""

    def rows(self, index: Tensor) -> Problem:
        """The problem for some rows only."""
        return Problem(self.images[index], self.labels[index], None if self.targets is None else self.targets[index])


@dataclass(frozen=True)
class Attack(ABC):
    """Settings of an attack; call it with a model, images and labels."""

    threat: ThreatModel

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
        gradient: GradientPath | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: images (N, C, H, W) in [0, 1] to logits (N, classes); in eval mode. Its parameters get no gradient.
            images: (N, C, H, W) in [0, 1].
            labels: (N,), the true classes.
            targets: (N,), classes to be reached instead; None for an untargeted attack.
            generator: source of all randomness; None: one on the images' device, seeded with 0.
            gradient: where gradients come from; None: ``exact(model)``.

        Raises:
            TypeError, ValueError: images, labels, targets or logits are not what they should be.
            RuntimeError: the attack left the threat model (a defect of the attack; no result is given).
        """
        check_images(images)
        check_labels(labels, images)
        images = images.detach()
        with torch.no_grad():
            logits = model(images)
        _check_logits(logits, images)
        check_labels(labels, images, classes=logits.shape[1])
        if targets is not None:
            check_labels(targets, images, classes=logits.shape[1])
            if bool((targets == labels).any()):
                raise ValueError("a target equals its label: a targeted attack needs another class")
        if generator is None:
            generator = torch.Generator(device=images.device).manual_seed(0)
        problem = Problem(images, labels, targets)
        candidates, queries = self._search(model, problem, logits, generator, gradient or exact(model))
        self.threat.verify(candidates, images)
        with torch.no_grad():
            logits = model(candidates)
        return AttackResult(
            adversarial=candidates,
            success=hits(logits, problem),
            margin=margin(logits, labels),
            distance=self.threat.distance(candidates, images),
            queries=queries + 2,
        )

    @abstractmethod
    def _search(
        self, model: Model, problem: Problem, logits: Tensor, generator: torch.Generator, gradient: GradientPath
    ) -> tuple[Tensor, Tensor]:
        """Find candidates (N, C, H, W) and the forward passes spent on each (N,); ``logits`` are those of the clean images."""


def hits(logits: Tensor, problem: Problem) -> Tensor:
    """bool (N,): does the attack succeed with these logits (N, classes)?"""
    predicted = logits.argmax(1)
    return predicted != problem.labels if problem.targets is None else predicted == problem.targets


def _check_logits(logits: Tensor, images: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected the model to give logits ({len(images)}, classes), got {came}")
    if logits.shape[1] < 2:
        raise ValueError("the model gives one class only: there is nothing to attack")
    if not bool(torch.isfinite(logits).all()):
        bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"the model gives NaN or infinite logits for images {bad[:8]} of the batch")
