"""Gradient paths: ways in which an attacker gets gradients from a defence. Scoring always uses the defence itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["GradientPath", "GradientStep", "Model", "bpda", "eot", "every_path", "exact", "transfer"]

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


def eot(path: GradientPath, draws: int) -> GradientPath:
    """Expectation over transformation: the mean **gradient** over ``draws`` passes of a random defence (Athalye et al. 2018).

    Logits and objective are means as well. One graph is held at a time, so that memory does not grow with ``draws``.

    Raises:
        ValueError: fewer than one draw.

    >>> noisy = exact(lambda x: x.flatten(1) * (1 + torch.rand(1)))
    >>> step = eot(noisy, 400)(torch.ones(1, 1, 1, 2), lambda logits: logits.sum(1))
    >>> bool((step.gradient - 1.5).abs().max() < 0.1)
    True
    """
    if draws < 1:
        raise ValueError(f"expected at least one draw, got {draws}")

    def step(images: Tensor, objective: Callable[[Tensor], Tensor]) -> GradientStep:
        logits, value, gradient = path(images, objective)
        gradient = gradient.clone()  # the sums below are made in place
        logits, value = logits.clone(), value.clone()
        for _ in range(draws - 1):
            more = path(images, objective)
            logits += more.logits
            value += more.value
            gradient += more.gradient
        return GradientStep(logits / draws, value / draws, gradient / draws)

    return step


def transfer(model: Model, source: Model) -> GradientPath:
    """Gradients from ``source`` (such as the bare classifier), logits and objective from ``model``, which is attacked.

    >>> path = transfer(lambda x: x.flatten(1), lambda x: 3 * x.flatten(1))
    >>> step = path(torch.ones(1, 1, 1, 2), lambda logits: logits.sum(1))
    >>> step.value.item(), step.gradient.flatten().tolist()
    (2.0, [3.0, 3.0])
    """
    other = exact(source)

    def step(images: Tensor, objective: Callable[[Tensor], Tensor]) -> GradientStep:
        with torch.no_grad():
            logits = model(images).to(images.dtype)
        return GradientStep(logits, objective(logits), other(images, objective).gradient)

    return step


def every_path(
    model: Model, *, stage: Model, rest: Model, probe: Tensor, surrogates: Mapping[str, Model] | None = None
) -> dict[str, GradientPath]:
    """Every gradient path against ``model`` = rest(stage(x)), for the suite ``adaptive``, by name.

    ``exact`` where a gradient arrives; ``straight through``: :func:`bpda` with the stage as the identity; :func:`bpda` with each
    surrogate; ``transfer``: gradients of ``rest`` (the bare classifier).

    Args:
        model: the defence.
        stage: its preprocessing.
        rest: what comes behind it.
        probe: a batch (n, C, H, W) on which it is tried whether a gradient arrives.
        surrogates: differentiable stand-ins for the stage, by name.
    """
    paths: dict[str, GradientPath] = {}
    try:
        if bool(exact(model)(probe, lambda logits: logits.logsumexp(1)).gradient.any()):
            paths["exact"] = exact(model)
    except ValueError:  # the stage cuts the gradient off
        pass
    for name, surrogate in (surrogates or {}).items():
        paths[name] = bpda(stage, rest, surrogate)
    return {**paths, "straight through": bpda(stage, rest), "transfer": transfer(model, rest)}
