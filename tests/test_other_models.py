"""Classifiers of timm and of transformers, small and with random weights, built without a network."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
import torchvision
from test_preprocessing import photograph
from torch import nn

import purify
from purify.normalization import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, pretrained=False).eval()
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    defended = purify.wrap(model, nn.Identity(), weights=model.pretrained_cfg)
    image = photograph(300, 500)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    wanted = transform(image)[None]
    images = defended.preprocess(image)
    assert torch.allclose(images, wanted * 0.5 + 0.5, atol=1e-6)
    assert torch.allclose(defended(images), model(wanted), atol=1e-5)
    batch = defended.preprocess([image, torchvision.transforms.functional.pil_to_tensor(image)])
    assert torch.allclose(batch[0], batch[1], atol=2 / 255)
    assert torch.equal(pickle.loads(pickle.dumps(defended)).preprocess(image), images)

    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1)).eval()
    purified = purify.wrap(model, purifier, weights=model.pretrained_cfg)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(purified(images).logsumexp(1).sum(), images)
    assert torch.isfinite(gradient).all()
    program = torch.export.export(purified, (images.detach(),), strict=False)
    assert torch.allclose(program.module()(images), purified(images), atol=1e-4)

    with pytest.warns(UserWarning, match=r"pretrained_cfg says Normalize\(mean=\(0.5.*weights=model.pretrained_cfg"):
        purify.wrap(model, nn.Identity())
    with pytest.warns(UserWarning, match=r"the weights say .*0.485.*pretrained_cfg says .*0.5"):
        purify.wrap(model, nn.Identity(), weights="ViT_B_16_Weights.DEFAULT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purify.wrap(model, nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1))
        purify.wrap(nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), model).eval(), nn.Identity())


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, num_labels=5
    )
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD)
    defended = purify.wrap(model, nn.Identity(), weights=processor)
    image = photograph(100, 150)
    wanted = processor(images=image, return_tensors="pt")["pixel_values"]
    images = defended.preprocess(image)
    assert images.shape == (1, 3, 64, 64)
    assert torch.allclose(defended(images), model(wanted).logits, atol=1e-5)
    pixels = torchvision.transforms.functional.pil_to_tensor(image)
    batch = defended.preprocess([image, pixels, pixels / 255])
    assert torch.allclose(batch, images.expand(3, -1, -1, -1), atol=2 / 255)
    assert torch.equal(defended.preprocess(pixels[None].expand(2, -1, -1, -1))[1], batch[1])
    assert torch.equal(pickle.loads(pickle.dumps(defended)).preprocess(image), images)

    purifier = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=8, width=4, depth=1)).eval()
    purified = purify.wrap(model, purifier, weights=processor)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(purified(images).logsumexp(1).sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    program = torch.export.export(purified, (images.detach(),), strict=False)
    assert torch.allclose(program.module()(images), purified(images), atol=1e-4)
    for unusual in ({"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        other = transformers.ViTImageProcessor(**unusual)
        with pytest.raises(ValueError, match=r"more or less than divide by 255 and normalise.*give mean and std"):
            purify.wrap(model, nn.Identity(), weights=other)


def test_convolutions_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    model = transformers.ResNetForImageClassification(config).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"ResNetForImageClassification of transformers does not normalise .*image processor"):
        defended = purify.wrap(model, nn.Identity())
    assert torch.equal(defended(x), model(x).logits)
    efficientnet = transformers.EfficientNetImageProcessor(include_top=True)  # divides by std twice
    with pytest.raises(ValueError, match="give mean and std"):
        purify.wrap(model, nn.Identity(), weights=efficientnet)
