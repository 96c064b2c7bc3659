"""What an audit compares: purifiers in front of one classifier, as plain functions that do not mind values outside [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from purify.attacks.gradient import Model
from purify.classifier import PurifiedClassifier, wrap
from purify.eval.baselines import GaussianFilter
from purify.eval.spectrum.jacobian import NotDifferentiableError, check_differentiable

__all__ = ["Subject", "make_subjects", "matched_blur"]

RANDOM_DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One purifier (or none) in front of the classifier."""

    name: str
    defended: nn.Module
    """The classifier, wrapped or bare: what attacks are made on."""
    purifier: Model | None
    """Images to images, averaged over ``draws``; None for the bare classifier."""
    model: Model
    """Images to logits, averaged over ``draws``, without a check of its input."""
    draws: int
    """1, or of a random purifier ``RANDOM_DRAWS``."""
    differentiable: bool

    @classmethod
    def of(cls, name: str, defended: nn.Module, probe: Tensor) -> Subject:
        """From a wrapped or bare classifier; a few images (n, C, H, W) show whether it is random, and whether it has a
        gradient."""
        if not isinstance(defended, PurifiedClassifier):
            return cls(name=name, defended=defended, purifier=None, model=defended, draws=1, differentiable=True)
        stage, rest = defended.purifier, defended.undefended
        with torch.no_grad():
            random = not torch.equal(stage(probe), stage(probe))
        draws = RANDOM_DRAWS if random else 1
        try:
            check_differentiable(stage, probe[0])
            differentiable = True
        except NotDifferentiableError:
            differentiable = False
        return cls(
            name=name,
            defended=defended,
            purifier=_mean(stage, draws),
            model=_mean(lambda images: rest(stage(images)), draws),
            draws=draws,
            differentiable=differentiable,
        )


def _mean(model: Model, draws: int) -> Model:
    if draws == 1:
        return model

    def averaged(images: Tensor) -> Tensor:
        return torch.stack([model(images) for _ in range(draws)]).mean(0)

    return averaged


def make_subjects(classifier: nn.Module, purifiers: Mapping[str, nn.Module], probe: Tensor) -> list[Subject]:
    """The bare classifier first, then each purifier in front of it."""
    wrapped = {name: wrap(classifier, purifier.eval()) for name, purifier in purifiers.items()}
    return [Subject.of(name, model, probe) for name, model in {"bare": classifier, **wrapped}.items()]


def matched_blur(classifier: nn.Module, purifier: nn.Module, images: Tensor, labels: Tensor) -> GaussianFilter:
    """The widest Gaussian blur that costs no more clean accuracy than ``purifier`` does, within half a point: what a purifier is
    worth more than blurring must show against it.

    Args:
        classifier: images to logits.
        purifier: images to images.
        images: (N, C, H, W), apart from those of the audit.
        labels: (N,).
    """

    def accuracy(stage: nn.Module) -> float:
        with torch.no_grad():
            parts = [classifier(stage(part)).argmax(1) for part in torch.split(images, 128)]
        return float((torch.cat(parts) == labels).float().mean())

    least = accuracy(purifier) - 0.005
    widest = 0.2
    for sigma in np.arange(0.3, 3.01, 0.1):
        if accuracy(GaussianFilter(float(sigma))) < least:
            break
        widest = float(sigma)
    return GaussianFilter(round(widest, 1))
