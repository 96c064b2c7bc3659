"""The last features of a classifier: what it sees in an image before it decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LastFeatures", "feature_error"]


class LastFeatures:
    """What a classifier hands to its last layer with weights, caught as it passes.

    (N, F) where that is a linear layer; (N, F, h, w) where it is a convolution, as in SqueezeNet: one answer for each place.

    >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> features = LastFeatures(classifier)
    >>> _ = classifier(torch.zeros(5, 1, 2, 2))
    >>> features.caught.shape
    torch.Size([5, 3])
    """

    def __init__(self, classifier: nn.Module) -> None:
        last = [module for module in classifier.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        if not last:
            raise ValueError("feature_weight needs a classifier with a linear or convolutional layer; this one has none")
        self.caught = torch.empty(0)
        last[-1].register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.caught = inputs[0]


def feature_error(after: Tensor, before: Tensor) -> Tensor:
    """‖φ(x̂) − φ(x)‖² / ‖φ(x)‖² over a batch, in float32 (Liao et al. 2018 guide a denoiser by such features).

    Both (N, F) or (N, F, h, w), as caught.

    Raises:
        ValueError: nothing was caught, since the classifier does not use that layer.
    """
    if not before.numel():
        raise ValueError("the classifier's last layer with weights took no part in its answer; set feature_weight to 0 for it")
    before = before.float()
    return (after.float() - before).square().sum() / before.square().sum()
