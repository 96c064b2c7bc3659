"""Purify pictures of any size with bounded memory: tile by tile, each with enough of its surroundings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from purify.autoencoder import DenoisingSparseAutoencoder
from purify.denoisers import LinearAutoencoder

__all__ = ["purify_in_tiles", "reach_of"]

_ALIGNMENT = 16
"""Tiles begin at multiples of it, so that they keep to the purifier's grid: strides of 1, 2, 4, 8 and 16."""
_PROBES = (128, 512)
"""Sides of the images on which the reach is looked for, the larger one only where the smaller does not hold it."""


@torch.no_grad()
def purify_in_tiles(purifier: nn.Module, images: Tensor, *, tile: int = 512, alignment: int | None = None) -> Tensor:
    """What ``purifier(images)`` gives, computed tile by tile, so that memory does not grow with the inner maps of large images.

    Each tile is purified together with as much around it as the purifier looks at (:func:`reach_of`), and that is cut off again:
    the result is that of the whole image up to rounding. A purifier that looks at the whole image (a top-k code, pooling over
    everything) cannot be cut into tiles and gets the image whole, as do images that are no larger than a tile.

    Args:
        purifier: images (N, C, H, W) in [0, 1] to the same; in eval mode.
        images: (N, C, H, W) in [0, 1], or as bytes, which are divided by 255, purified and rounded tile by tile.
        tile: side in pixels; rounded up to a multiple of ``alignment``.
        alignment: a multiple of every stride inside the purifier; default: of 16, of twice the stride of each DSAE in it, and of
            the stride of each linear autoencoder.

    Returns:
        Purified images (N, C, H, W), in [0, 1] or bytes as the images were.

    Raises:
        ValueError: a tile or an alignment below 1.

    >>> image = torch.rand(1, 1, 40, 50)
    >>> blur = nn.AvgPool2d(3, stride=1, padding=1)
    >>> torch.allclose(purify_in_tiles(blur, image, tile=16), blur(image), atol=1e-6)
    True
    """
    if alignment is None:
        alignment = math.lcm(_ALIGNMENT, *_strides(purifier))
    if tile < 1 or alignment < 1:
        raise ValueError(f"expected a tile and an alignment of at least 1 pixel, got {tile} and {alignment}")
    tile = _round_up(tile, alignment)
    height, width = images.shape[-2:]
    reach = reach_of(purifier, images.shape[1], alignment) if max(height, width) > tile else None
    if reach is None:
        return _purify(purifier, images)
    margin = _round_up(reach, alignment)
    out = torch.empty_like(images)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = max(0, top - margin), max(0, left - margin)
            bottom, right = min(height, top + tile), min(width, left + tile)
            part = _purify(purifier, images[..., above : bottom + margin, before : right + margin])
            out[..., top:bottom, left:right] = part[..., top - above : bottom - above, left - before : right - before]
    return out


@torch.no_grad()
def reach_of(purifier: nn.Module, channels: int, alignment: int = _ALIGNMENT) -> int | None:
    """How many pixels around an aligned block can change what the purifier gives inside it: its receptive field, measured.

    A block of NaN in the middle of an image spreads exactly as far as the purifier looks, whatever the weights are: convolutions,
    thresholds and clipping hand NaN on. What does not (a jump, a choice of the largest) shows as another value than without it.

    Args:
        purifier: images (N, C, H, W) to the same.
        channels: C.
        alignment: side of the block.

    Returns:
        Pixels, or None where the border of an image of 512 pixels is reached: the purifier then looks at the whole image.

    >>> reach_of(nn.Conv2d(1, 1, 7, padding=3), 1)
    3
    """
    reference = next(iter(purifier.parameters()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    for side in _PROBES:
        side = _round_up(side, alignment)
        start = side // 2 // alignment * alignment
        plain = torch.rand(1, channels, side, side, generator=generator).to(reference)
        probe = plain.clone()
        probe[..., start : start + alignment, start : start + alignment] = torch.nan
        touched = (purifier(probe) != purifier(plain)).any(1)[0]  # (side, side); NaN differs from everything
        rows, columns = (touched.any(axis).nonzero().flatten() for axis in (1, 0))
        if not len(rows):
            return 0  # it gives the same whatever it gets
        first, last = int(min(rows[0], columns[0])), int(max(rows[-1], columns[-1]))
        if first > 0 and last < side - 1:
            return max(start - first, last - (start + alignment - 1), 0)
    return None


def _strides(purifier: nn.Module) -> Iterator[int]:
    """Of the grids that are known, wherever in the purifier they are."""
    for module in purifier.modules():
        if isinstance(module, DenoisingSparseAutoencoder):
            yield 2 * module.config.stride
        elif isinstance(module, LinearAutoencoder):
            yield module.stride


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _purify(purifier: nn.Module, images: Tensor) -> Tensor:
    purified: Tensor = purifier(images if images.is_floating_point() else images.float() / 255)
    return purified if images.is_floating_point() else (purified.clamp(0, 1) * 255).round().to(images.dtype)
