"""Which layers of a model work otherwise in training than in use."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["layers_in_training"]


def layers_in_training(model: nn.Module) -> list[str]:
    """Names of the layers in training mode whose answers then depend on the batch or on chance: batch normalisation, dropout.

    A module says nothing of its parts: one in eval mode may hold others that were never put there.

    >>> layers_in_training(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()))
    ['1', '2']
    """
    return [name for name, layer in model.named_modules() if layer.training and isinstance(layer, (_NormBase, _DropoutNd))]
