"""Random changes of the training images, as a recipe asks for them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from purify.training.recipes import Recipe

__all__ = ["augment"]


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, rotate, zoom, mirror and blacken each image (N, C, H, W) by its own random amounts; black beyond the border."""
    if recipe.crop:
        images = _crop(images, recipe.crop, generator)
    if recipe.cutout:
        images = _cutout(images, recipe.cutout, generator)
    if not (recipe.shift or recipe.rotate or recipe.zoom or recipe.flip):
        return images
    n, _, h, w = images.shape
    draw = torch.rand(5, n, generator=generator) * 2 - 1  # uniform in [-1, 1]
    angle, zoom = draw[0] * math.radians(recipe.rotate), 1 + draw[1] * recipe.zoom
    mirror = draw[4].sign() if recipe.flip else torch.ones(n)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across, down = draw[2] * recipe.shift * 2 / w, draw[3] * recipe.shift * 2 / h
    matrix = torch.stack([torch.stack([cos * mirror, -sin, across], 1), torch.stack([sin * mirror, cos, down], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _crop(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Pad by ``most`` black pixels and cut each image (N, C, H, W) out again at its own random place."""
    n, c, h, w = images.shape
    padded = F.pad(images, (most, most, most, most))
    down, across = torch.randint(2 * most + 1, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(h))[:, None, :, None]
    columns = (across[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(c)[None, :, None, None], rows, columns]


def _cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blacken a square of ``side`` pixels around a random pixel of each image (N, C, H, W), as far as it lies inside."""
    n, _, h, w = images.shape
    down, across = (torch.randint(size, (n, 1), generator=generator) - side // 2 for size in (h, w))
    rows, columns = torch.arange(h) - down, torch.arange(w) - across
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return images.masked_fill(inside, 0)
