"""A model as other libraries' attacks want it: without a check of its input, and with gradients for the images alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from purify.attacks.gradient import Model
from purify.attacks.input_gradient import input_gradient_only
from purify.classifier import PurifiedClassifier

__all__ = ["Victim", "device_of", "unchecked"]


def unchecked(model: nn.Module) -> nn.Module:
    """The model, sharing every part, without the check that images lie in [0, 1]; anything but a wrapped model as it came.

    Several attacks look ahead at points outside [0, 1] (NI-FGSM, SPSA, SparseFool) before they come back into it; the check
    would stop them.

    >>> import purify
    >>> defended = purify.wrap(nn.Flatten().eval(), nn.Identity())
    >>> unchecked(defended)(torch.full((1, 1, 1, 2), 1.5)), defended.validate
    (tensor([[1.5000, 1.5000]]), True)
    """
    if not isinstance(model, PurifiedClassifier):
        return model
    twin = copy.copy(model)  # shallow: the same purifier and classifier
    twin.validate = False
    return twin


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the processor if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


class Victim(nn.Module):
    """Any function from images to logits as the module that other libraries want; counts the images that pass through it.

    Those libraries set modes, move modules and ask them for their device. Here they find one empty parameter: the model itself
    stays as it was.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        self.held = (unchecked(model) if isinstance(model, nn.Module) else model,)  # in a tuple: not registered as a part
        self.whereabouts = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.passed = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for images (N, C, H, W)."""
        self.passed += len(images)
        return input_gradient_only(self.held[0], images)
