"""Gradient paths: ways in which an attacker gets gradients from a defence. Scoring always uses the defence itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["GradientPath", "GradientStep", "Model", "bpda", "exact"]

Model = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to logits (N, classes)."""


class GradientStep(NamedTuple):
    """One evaluation along a gradient path."""

    logits: Tensor
    """(N, classes), the defence's own, detached."""
    value: Tensor
    """(N,), the objective at these images, detached."""
    gradient: Tensor
    """(N, C, H, W), of the objective with respect to the images."""


class GradientPath(Protocol):
    """Images (N, C, H, W) and an objective (logits -> (N,)) to a :class:`GradientStep`."""

    def __call__(self, images: Tensor, objective: Callable[[Tensor], Tensor]) -> GradientStep:
        """Evaluate the objective and its gradient."""
        ...


def exact(model: Model) -> GradientPath:
    """The true gradient, by autograd through all of ``model``.

    Raises (on call):
        ValueError: the model cuts the gradient off.
    """

    def step(images: Tensor, objective: Callable[[Tensor], Tensor]) -> GradientStep:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(images).to(images.dtype)  # under autocast the loss would otherwise be rounded to 8 bits
            value = objective(logits)
            total = value.sum()
        gradient = torch.autograd.grad(total, images, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            raise ValueError(
                "no gradient reaches the images through this model (a step of it is not differentiable, or detaches); "
                "attack it with bpda(stage, rest): purify.attacks.bpda"
            )
        return GradientStep(logits.detach(), value.detach(), gradient)

    return step


def bpda(stage: Model, rest: Model, surrogate: Model | None = None) -> GradientPath:
    """Backward pass differentiable approximation of rest(stage(x)) (Athalye, Carlini & Wagner 2018, section 4.1).

    Forward, the images pass ``stage`` (a purifier) itself; backward, the gradient goes through ``surrogate`` in its place:
    the identity (``None``: straight through), or any differentiable stand-in with the same output shape.

    >>> def quantise(x): return (x * 8).round() / 8
    >>> path = bpda(quantise, lambda x: x.flatten(1))
    >>> path(torch.full((1, 1, 1, 1), 0.3), lambda logits: logits.sum(1)).gradient.item()
    1.0
    """

    def model(images: Tensor) -> Tensor:
        with torch.no_grad():
            value = stage(images)
        substitute = images if surrogate is None else surrogate(images)
        return rest(value + (substitute - substitute.detach()))  # the second term is exactly zero, but has a gradient

    return exact(model)
