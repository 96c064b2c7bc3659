"""A model for the attacks of other libraries: with gradients for the images alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify.attacks.gradient import Model

__all__ = ["input_gradient_only"]


def input_gradient_only(function: Model, images: Tensor) -> Tensor:
    """function(images), through which gradients reach the images and no parameter.

    Attacks of foolbox, pyautoattack, ART and torchattacks call ``backward()``, which would also compute, and pile up, the
    gradients of every weight on the way.

    Args:
        function: from images (N, C, H, W) to logits (N, classes), or to images.
        images: the leaf, or what depends on one; any shape that the function takes.

    Raises (in the backward pass):
        ValueError: the function cuts the gradient off.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> input_gradient_only(layer, x).sum().backward()
    >>> torch.equal(x.grad, layer.weight), layer.weight.grad is None
    (True, True)
    """
    if torch.is_grad_enabled() and images.requires_grad:
        out: Tensor = _InputGradient.apply(images, function)
        return out
    with torch.no_grad():
        return function(images)


class _InputGradient(torch.autograd.Function):
    """Runs a graph of its own inside, whose only leaf is the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Model) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = images.detach().requires_grad_()
            ctx.out = function(ctx.leaf)
        result: Tensor = ctx.out.detach()
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found = None
        if ctx.out.requires_grad:  # the graph is kept: DeepFool goes back through it once for each class
            (found,) = torch.autograd.grad(ctx.out, ctx.leaf, gradient, retain_graph=True, allow_unused=True)
        if found is None:
            raise ValueError(
                "no gradient reaches the images (a step of the model is not differentiable, or detaches): use an attack of "
                "purify.attacks along bpda(stage, rest); in ART, give the PurifierPreprocessor a surrogate"
            )
        return found, None
