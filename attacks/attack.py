"""What every attack shares: checks on the way in, scoring by the real model and the ball's check on the way out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from purify.attacks.gradient import GradientPath, Model, exact
from purify.attacks.oracle import Oracle
from purify.attacks.precision import Precision, steps_in_bfloat16
from purify.attacks.problem import Problem, hits
from purify.attacks.result import AttackResult, margin
from purify.attacks.threat import Norm, ThreatModel
from purify.images import check_images, check_labels
from purify.training_mode import layers_in_training

__all__ = ["Attack"]


@dataclass(frozen=True)
class Attack(ABC):
    """Settings of an attack; call it with a model, images and labels.

    Raises:
        ValueError: the attack is not made for the threat model's norm, or a setting is out of its range.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """Those that the attack is made for."""

    threat: ThreatModel

    def __post_init__(self) -> None:
        if self.threat.norm not in self.norms:
            raise ValueError(f"{type(self).__name__} is made for {' and '.join(self.norms)}, got {self.threat}")

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
        gradient: GradientPath | None = None,
        precision: Precision = "auto",
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: images (N, C, H, W) in [0, 1] to logits (N, classes); in eval mode. Its parameters get no gradient.
            images: (N, C, H, W) in [0, 1].
            labels: (N,), the true classes.
            targets: (N,), classes to be reached instead; None for an untargeted attack.
            generator: source of all randomness; None: one on the images' device, seeded with 0.
            gradient: where gradients come from; None: ``exact(model)``.
            precision: of gradient steps; ``auto``: bfloat16 where the processor computes in it and the model is large enough to
                gain (:mod:`purify.attacks.precision`). Verdicts are the model's own in any case: every break is confirmed
                without autocast, and images whose claimed breaks are all denied are attacked again without it.

        Raises:
            TypeError, ValueError: images, labels, targets or logits are not what they should be, or images are in half precision.
            RuntimeError: the attack left the threat model (a defect of the attack; no result is given).

        Warns:
            UserWarning: the model, or a layer of it that then works otherwise, is in training mode.
        """
        check_images(images)
        check_labels(labels, images)
        if images.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"expected images in float32 or float64, got {images.dtype}, in which the ball's edge is a matter of rounding; "
                f"attack such a model through float32: lambda images: model(images.to({images.dtype})).float()"
            )
        layers = layers_in_training(model) if isinstance(model, nn.Module) else []
        if layers or (isinstance(model, nn.Module) and model.training):
            where = f" in {', '.join(layers[:3])}" if layers else ""
            warnings.warn(
                f"the attacked model is in training mode (batch statistics, dropout){where}: call model.eval() first",
                UserWarning,
                stacklevel=2,
            )
        images = images.detach().clamp(0, 1)  # where rounding has left it
        labels, targets = labels.long(), None if targets is None else targets.long()
        logits, passes = _answers(model, images, average=not getattr(self, "early_stop", True))
        check_logits(logits, images)
        check_labels(labels, images, classes=logits.shape[1])
        if targets is not None:
            check_labels(targets, images, classes=logits.shape[1])
            if bool((targets == labels).any()):
                raise ValueError("a target equals its label: a targeted attack needs another class")
        if generator is None:
            generator = torch.Generator(device=images.device).manual_seed(0)
        problem, path = Problem(images, labels, targets), gradient or exact(model)
        oracle = Oracle(model, path, problem, bfloat16=steps_in_bfloat16(precision, model, images))
        candidates = self._search(problem, logits, oracle, generator)
        after = self._score(model, candidates, images)
        queries = oracle.queries + passes + 1
        doubted = (oracle.claimed & ~hits(after, problem)).nonzero().flatten()
        if len(doubted):
            part = problem.part(doubted)
            again = Oracle(model, path, part)
            candidates[doubted] = self._search(part, logits[doubted], again, generator)
            after[doubted] = self._score(model, candidates[doubted], part.images)
            queries[doubted] += again.queries + 1
        return AttackResult(
            adversarial=candidates,
            success=hits(after, problem),
            margin=margin(after, labels),
            distance=self.threat.distance(candidates, images),
            queries=queries,
        )

    @abstractmethod
    def _search(self, problem: Problem, logits: Tensor, oracle: Oracle, generator: torch.Generator) -> Tensor:
        """Find candidates (N, C, H, W); ``logits`` (N, classes) are those of the clean images."""

    @torch.no_grad()
    def _score(self, model: Model, candidates: Tensor, images: Tensor) -> Tensor:
        """The model's logits for the candidates, which must lie within the threat model."""
        self.threat.verify(candidates, images)
        return model(candidates).to(images.dtype)


@torch.no_grad()
def _answers(model: Model, images: Tensor, *, average: bool) -> tuple[Tensor, int]:
    """Logits (N, classes) of the untouched images, and how many passes they took. To ``average`` is for attacks that may be on a
    random model, whose one unlucky draw is not a break: the mean of twenty passes, unless the second says what the first did."""
    logits = model(images)
    if not average:
        return logits, 1
    again = model(images)
    if not isinstance(logits, Tensor) or torch.equal(logits, again):
        return logits, 2
    return torch.stack([logits, again, *(model(images) for _ in range(18))]).mean(0), 20


def check_logits(logits: Tensor, images: Tensor) -> None:
    """Raises ValueError for anything but finite logits (N, classes) of two classes or more for images (N, C, H, W)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected the model to give logits ({len(images)}, classes), got {came}")
    if logits.shape[1] < 2:
        raise ValueError("the model gives one class only: there is nothing to attack")
    if not bool(torch.isfinite(logits).all()):
        bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"the model gives NaN or infinite logits for images {bad[:8]} of the batch")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            "the model gives probabilities (each row is positive and sums to 1), whose losses hide gradients: give the logits, "
            "or the logarithm: lambda images: model(images).clamp_min(1e-30).log()"
        )
