"""Accuracy against eps, for each defence: oblivious and adaptive apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from purify.attacks import ThreatModel
from purify.eval.evaluate import Settings, adaptive_attack, craft_oblivious, margins_of
from purify.eval.recovery import Accuracy

__all__ = ["Curve", "accuracy_against_eps"]

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the threat model's eps, at which the curves are measured (0 is added)."""


@dataclass(frozen=True)
class Curve:
    """One defence's accuracy at growing eps."""

    name: str
    eps: list[float]
    oblivious: list[Accuracy]
    adaptive: list[Accuracy]


def accuracy_against_eps(
    defences: dict[str, nn.Module],
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    settings: Settings,
    *,
    quiet: bool = False,
) -> list[Curve]:
    """Measure every defence at ``SHARES`` of the threat's eps (L∞: at most 1), with half as many PGD steps as the table.

    An image that was broken at a smaller eps counts as broken at a larger one: the smaller ball lies in the larger.

    Args:
        defences: wrapped (or bare) classifiers by name.
        classifier: the bare one, on which the oblivious attacks are made.
        images: (N, C, H, W); labels (N,).
        labels: true classes.
        threat: gives the norm and the unit of eps.
        settings: of the attacks.
        quiet: no progress bar.
    """
    settings = dataclasses.replace(settings, steps=max(1, settings.steps // 2))
    most = 1.0 if threat.norm == "linf" else float("inf")
    grid = sorted({min(most, share * threat.eps) for share in SHARES})
    curves = {name: Curve(name, [0.0], [], []) for name in defences}
    lowest: dict[str, Tensor] = {}
    for name, model in defences.items():
        lowest[name] = margins_of(model, images, labels, settings.batch_size)
        curves[name].oblivious.append(Accuracy.of(lowest[name] > 0, "oblivious", "", settings.seed))
        curves[name].adaptive.append(Accuracy.of(lowest[name] > 0, "adaptive", "", settings.seed))
    for eps in tqdm(grid, desc="accuracy against eps", unit="eps", disable=quiet or None, leave=False):
        ball = ThreatModel(threat.norm, eps)
        shared = craft_oblivious(classifier, images, labels, ball, settings, quiet=True)
        for name, model in defences.items():
            under = margins_of(model, shared.images["PGD"], labels, settings.batch_size)
            start = torch.minimum(lowest[name], under)
            lowest[name], _, _ = adaptive_attack(model, images, labels, ball, settings, start, quiet=True)
            how = f"PGD {settings.steps} steps, {ball}"
            curves[name].eps.append(eps)
            curves[name].oblivious.append(Accuracy.of(under > 0, "oblivious", how, settings.seed))
            curves[name].adaptive.append(Accuracy.of(lowest[name] > 0, "adaptive", how, settings.seed))
    return list(curves.values())
