"""Random changes of the training images: what is moved, turned, cut out and blackened, by how much."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from purify.training.augmentation import augment
from purify.training.catalogue import find_recipe
from purify.training.recipes import Recipe


def only(**changes: object) -> Recipe:
    """A recipe with no changes but these."""
    return dataclasses.replace(find_recipe("digits-dsae"), **{"shift": 0, "rotate": 0, "zoom": 0, **changes})  # type: ignore[arg-type]


def test_augmentation() -> None:
    x = torch.rand(6, 1, 9, 9)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(x, only(), generator), x)
    moved = augment(x, only(shift=2, rotate=10, zoom=0.1), generator)
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, x)
    mirrored = augment(x, only(flip=True), generator)
    same = [torch.allclose(m, i, atol=1e-5) for m, i in zip(mirrored, x, strict=True)]
    turned = [torch.allclose(m, i.flip(-1), atol=1e-5) for m, i in zip(mirrored, x, strict=True)]
    assert all(a or b for a, b in zip(same, turned, strict=True))
    assert any(same)
    assert any(turned)


def test_a_rotation_is_one_on_pictures_that_are_not_square() -> None:
    """A spot stays as far from the centre, and turns by up to the angle, wherever it lies."""
    x = torch.zeros(64, 1, 32, 96)
    x[:32, 0, 15:17, 62:64] = 1  # 15 pixels beside the centre
    x[32:, 0, 4:6, 47:49] = 1  # 11 above it
    moved = augment(x, only(rotate=30), torch.Generator().manual_seed(0))
    down, across = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(96) - 47.5, indexing="ij")
    mass = moved.sum((1, 2, 3))
    y, x_ = (moved[:, 0] * down).sum((1, 2)) / mass, (moved[:, 0] * across).sum((1, 2)) / mass
    distance = torch.hypot(y, x_)
    assert (distance[:32] - 15).abs().max() < 0.3
    assert (distance[32:] - 11).abs().max() < 0.3
    angles = torch.cat([torch.atan2(y[:32], x_[:32]), torch.atan2(x_[32:], -y[32:])]).rad2deg()
    assert 25 < angles.abs().max() < 31


def test_crops_are_whole_pixels_of_the_padded_image() -> None:
    x = torch.rand(12, 3, 8, 6)
    cropped = augment(x, only(crop=2), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    places = [
        [(i, j) for i in range(5) for j in range(5) if torch.equal(out, image[:, i : i + 8, j : j + 6])]
        for out, image in zip(cropped, padded, strict=True)
    ]
    assert all(len(found) == 1 for found in places)
    assert len({found[0] for found in places}) > 4


def test_windows_are_cut_out_of_each_image_at_its_own_place() -> None:
    x = torch.rand(12, 3, 8, 6)
    windows = augment(x, only(window=4), torch.Generator().manual_seed(0))
    assert windows.shape == (12, 3, 4, 4)
    places = [
        [(i, j) for i in range(5) for j in range(3) if torch.equal(out, image[:, i : i + 4, j : j + 4])]
        for out, image in zip(windows, x, strict=True)
    ]
    assert all(len(found) == 1 for found in places)
    assert len({found[0] for found in places}) > 4
    with pytest.raises(ValueError, match=r"recipe .*: window is 7, but the images are \(8, 6\)"):
        augment(x, only(window=7), torch.Generator().manual_seed(0))


def test_cutout_blackens_one_square_of_each_image() -> None:
    x = torch.full((40, 3, 10, 9), 0.5)
    cut = augment(x, only(cutout=4), torch.Generator().manual_seed(0))
    gone = cut == 0
    assert torch.equal(cut[~gone], x[~gone])
    assert bool((gone == gone[:, :1]).all())  # all channels alike
    areas = set()
    for image in gone[:, 0]:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(image.sum()) == height * width  # a whole rectangle, cut off at the border only
        assert 2 <= height <= 4
        assert 2 <= width <= 4
        areas.add((height, width))
    assert (4, 4) in areas
    assert len(areas) > 1
