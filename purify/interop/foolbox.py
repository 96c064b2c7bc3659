"""A defence for foolbox (Rauber et al. 2020). Its attacks behind our call: :class:`purify.attacks.FoolboxAttack`."""

from __future__ import annotations

from typing import Any

from torch import nn

from purify.interop.victim import device_of, unchecked

__all__ = ["to_foolbox"]


def to_foolbox(model: nn.Module) -> Any:
    """The model as a ``foolbox.PyTorchModel`` with bounds (0, 1), on the device it is on.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits, normalisation inside, in eval mode; such as :func:`purify.wrap` gives.

    >>> import foolbox, purify, torch
    >>> defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(8).batch(slice(None))
    >>> foolbox.accuracy(to_foolbox(defended), images, labels)
    1.0
    """
    import foolbox

    return foolbox.PyTorchModel(unchecked(model), bounds=(0, 1), device=device_of(model))  # type: ignore[attr-defined]
