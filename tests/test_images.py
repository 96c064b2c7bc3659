"""Every wrong batch gets an error that quotes what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from purify.images import check_images, check_labels

GOOD = torch.rand(2, 3, 8, 8)


def with_value(value: float) -> torch.Tensor:
    images = GOOD.clone()
    images[1, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (GOOD[0], ValueError, r"got shape \(3, 8, 8\).*image\[None\]"),
        (GOOD[:0], ValueError, r"empty batch of shape \(0, 3, 8, 8\)"),
        ((GOOD * 255).byte(), TypeError, r"torch\.uint8.*float\(\) / 255"),
        (GOOD.long(), TypeError, "torch.int64"),
        (GOOD * 255, ValueError, r"values from .* to 25\d.*divided by 255"),
        ((GOOD - 0.5) / 0.25, ValueError, "normalised already"),
        (GOOD * 1.5, ValueError, "clamp"),
        (with_value(float("nan")), ValueError, r"NaN or infinity in image \[1\]"),
        (with_value(float("inf")), ValueError, r"NaN or infinity in image \[1\]"),
        (np.zeros((1, 3, 8, 8)), TypeError, "ndarray"),
    ],
)
def test_bad_images(images: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_images(images)


def test_wrong_channels() -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\).*got 3 channels"):
        check_images(GOOD, channels=1)
    check_images(GOOD, channels=3)


def test_rounding_is_forgiven() -> None:
    check_images(GOOD.clamp(0, 1) * (1 + 1e-6))
    check_images(GOOD.bfloat16())


@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        (torch.tensor([0.0, 1.0]), TypeError, "float32"),
        ([0, 1], TypeError, "list"),
        (torch.tensor([0]), ValueError, r"2 labels.*\(1,\)"),
        (torch.tensor([[0], [1]]), ValueError, r"\(2, 1\)"),
        (torch.tensor([0, 10]), ValueError, "0 … 9.*from 0 to 10"),
        (torch.tensor([-1, 3]), ValueError, "from -1 to 3"),
        (torch.zeros(2, dtype=torch.long, device="meta"), ValueError, "labels on meta"),
    ],
)
def test_bad_labels(labels: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_labels(labels, GOOD, classes=10)
