"""Random changes of the training images, as a recipe asks for them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from purify.training.recipes import Recipe

__all__ = ["augment"]


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, cut, rotate, zoom, mirror and blacken each image (N, C, H, W) by its own random amounts; black beyond the border.

    Raises:
        ValueError: the recipe's window is larger than the images.
    """
    if recipe.crop:
        images = _cut(F.pad(images, [recipe.crop] * 4), images.shape[-2], images.shape[-1], generator)
    if recipe.window:
        if recipe.window > min(images.shape[-2:]):
            raise ValueError(f"recipe {recipe.name}: window is {recipe.window}, but the images are {tuple(images.shape[-2:])}")
        images = _cut(images, recipe.window, recipe.window, generator)
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
    rows = (
        [cos * mirror, -sin * h / w, across],
        [sin * mirror * w / h, cos, down],
    )  # in units of half the width and half the height
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _cut(images: Tensor, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Cut h × w pixels out of each image (N, C, H, W), each at its own random place."""
    n, c, height, width = images.shape
    down = torch.randint(height - h + 1, (n,), generator=generator)
    across = torch.randint(width - w + 1, (n,), generator=generator)
    rows = (down[:, None] + torch.arange(h))[:, None, :, None]
    columns = (across[:, None] + torch.arange(w))[:, None, None, :]
    return images[torch.arange(n)[:, None, None, None], torch.arange(c)[None, :, None, None], rows, columns]


def _cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blacken a square of ``side`` pixels around a random pixel of each image (N, C, H, W), as far as it lies inside."""
    n, _, h, w = images.shape
    down, across = (torch.randint(size, (n, 1), generator=generator) - side // 2 for size in (h, w))
    rows, columns = torch.arange(h) - down, torch.arange(w) - across
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return images.masked_fill(inside, 0)
