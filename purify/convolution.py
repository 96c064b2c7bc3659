"""Convolutions on maps of very few pixels, as matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallMapConv2d", "speed_up_small_maps"]

_WEIGHTS = 2**17
"""in · out channels from which on the weights outweigh a small map."""
_POSITIONS = 16
"""Output pixels up to which they do."""


class SmallMapConv2d(nn.Conv2d):
    """A 3×3 convolution that becomes one matrix product where many channels meet few pixels, on a processor.

    There torch's own convolution spends its time on rearranging the weights: the last stage of a ResNet-18 on images of 28 × 28
    (512 channels, 2 × 2 pixels, 128 images) takes a third of the time this way. Parameters and results are those of
    :class:`torch.nn.Conv2d`, up to rounding.

    >>> layer = SmallMapConv2d(512, 512, 3, padding=1)
    >>> x = torch.rand(1, 512, 2, 2)
    >>> torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-5)
    True
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride = int(self.stride[0])
        height, width = ((size - 1) // stride + 1 for size in input.shape[-2:])
        if height * width > _POSITIONS or input.device.type != "cpu":
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
        windows = [
            padded[:, down : down + stride * (height - 1) + 1 : stride, across : across + stride * (width - 1) + 1 : stride]
            for down in range(3)
            for across in range(3)
        ]
        patches = torch.cat(windows, 3).flatten(0, 2)  # (N · h · w, 9 C)
        out = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
        return out.view(input.shape[0], height, width, -1).permute(0, 3, 1, 2)


def speed_up_small_maps(model: nn.Module) -> nn.Module:
    """Exchange, in place, the 3×3 convolutions of many channels for :class:`SmallMapConv2d`; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = SmallMapConv2d
    return model


def _suits(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.padding == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.stride in ((1, 1), (2, 2))
        and layer.padding_mode == "zeros"
        and layer.in_channels * layer.out_channels >= _WEIGHTS
    )
