"""The weights' own preprocessing, held against the libraries that they come from."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import models

import purify

WEIGHTS = [
    models.SqueezeNet1_0_Weights.DEFAULT,  # bilinear, 256 → 224
    models.ResNet50_Weights.IMAGENET1K_V2,  # 232 → 224
    models.EfficientNet_B1_Weights.IMAGENET1K_V1,  # bicubic, 256 → 240
    models.EfficientNet_V2_L_Weights.DEFAULT,  # bicubic, mean and std 0.5
    models.Inception_V3_Weights.DEFAULT,  # 342 → 299
    models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # bicubic, 384 → 384
]


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def small(classes: int = 7) -> nn.Module:
    """A classifier of pictures of any size that sees where things are."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, classes)).eval()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", [(300, 500), (417, 233), (64, 96)])
def test_preprocessing_is_torchvisions(weights: Any, size: tuple[int, int]) -> None:
    """Behind the identity: what torchvision's whole transform and the bare model give. For PIL images and for bytes."""
    model = small()
    defended = purify.wrap(model, nn.Identity(), weights=weights)
    image = photograph(*size)
    pixels = torchvision.transforms.functional.pil_to_tensor(image)
    for given in (image, pixels, pixels[None].expand(2, -1, -1, -1)):
        images = defended.preprocess(given)
        wanted = weights.transforms()(given)
        assert images.shape == (len(images), 3, *weights.transforms().crop_size * 2)
        assert torch.allclose(images, denormalised(wanted, weights).view_as(images), atol=1e-6)
        assert torch.allclose(defended(images), model(wanted.view_as(images)), atol=1e-5)
    float_images = defended.preprocess(pixels / 255)
    assert float_images.min() >= 0
    assert float_images.max() <= 1
    assert torch.allclose(float_images, defended.preprocess(pixels), atol=2 / 255)


def denormalised(images: Tensor, weights: Any) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (weights.transforms().mean, weights.transforms().std))
    return images * std + mean


def test_preprocessing_of_lists_and_files(tmp_path: Path) -> None:
    """Pictures of any kind and size, and the folder that holds them."""
    defended = purify.wrap(small(), nn.Identity(), weights="SqueezeNet1_0_Weights.DEFAULT")
    some = [photograph(300, 400), photograph(90, 30, seed=1), Image.new("RGB", (1, 1), (255, 0, 0))]
    for number, image in enumerate(some):
        image.save(tmp_path / f"{number}.png")
    batch = defended.preprocess(some)
    assert batch.shape == (3, 3, 224, 224)
    assert torch.equal(batch[1:2], defended.preprocess(some[1]))
    assert torch.equal(batch, defended.preprocess(sorted(tmp_path.glob("*.png"))))
    assert torch.equal(batch, defended.preprocess(tuple(str(path) for path in sorted(tmp_path.glob("*.png")))))
    tensors = [torchvision.transforms.functional.pil_to_tensor(image) for image in some]
    assert torch.allclose(batch, defended.preprocess(tensors), atol=2 / 255)
    assert torch.equal(batch[2], torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 224, 224))
    assert defended(batch).shape == (3, 7)


def test_preprocessing_of_other_kinds() -> None:
    defended = purify.wrap(small(), nn.Identity(), weights="SqueezeNet1_0_Weights.DEFAULT")
    grey = photograph(100, 80).convert("L")
    wanted = defended.preprocess(grey.convert("RGB"))
    assert torch.equal(defended.preprocess(grey), wanted)
    assert torch.allclose(defended.preprocess(torchvision.transforms.functional.pil_to_tensor(grey)), wanted, atol=2 / 255)
    clear = photograph(100, 80).convert("RGBA")
    clear.putalpha(0)
    assert (defended.preprocess(clear) == 1).all()  # white shines through
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert torch.equal(defended.preprocess(deep), wanted)


def test_preprocessing_goes_where_the_model_is() -> None:
    wrapped = purify.wrap(small().double(), nn.Identity(), weights="SqueezeNet1_0_Weights.DEFAULT")
    images = wrapped.preprocess(photograph(30, 40))
    assert images.dtype == torch.float64
    assert wrapped(images).dtype == torch.float64
    on_meta = purify.wrap(small().to("meta"), nn.Identity(), weights="SqueezeNet1_0_Weights.DEFAULT", validate=False)
    assert on_meta.preprocess(photograph(30, 40)).device.type == "meta"
    copied = pickle.loads(pickle.dumps(copy.deepcopy(wrapped)))
    assert torch.equal(copied.preprocess(photograph(30, 40)), images)
    assert wrapped.state_dict().keys() == purify.wrap(small(), nn.Identity()).state_dict().keys()


def test_preprocessing_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"wrapped without weights.*wrap\(model, purifier, weights=…\)"):
        purify.wrap(small(), nn.Identity()).preprocess(photograph(30, 40))
    wrapped = purify.wrap(small(), nn.Identity(), weights="SqueezeNet1_0_Weights.DEFAULT")
    for wrong, error, says in (
        (np.zeros((8, 8, 3), np.uint8), TypeError, "expected a PIL image.*got ndarray"),
        ([photograph(30, 40), 3], TypeError, "got int"),
        ([], ValueError, "empty list"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), ValueError, r"\(3, H, W\).*got shape \(4, 8, 8\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), ValueError, r"got shape \(8, 8\)"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), ValueError, r"got shape \(3, 0, 8\)"),
        (torch.randn(3, 8, 8), ValueError, "normalised already"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError, "torch.int64"),
        ("nowhere.jpg", FileNotFoundError, "no picture nowhere.jpg"),
    ):
        with pytest.raises(error, match=says):
            wrapped.preprocess(wrong)
    with pytest.raises(ValueError, match="names no mean and std"):
        purify.wrap(small(), nn.Identity(), weights=models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT)
