"""A purifier for one's own classifier and pictures, in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify.attacks import ThreatModel
from purify.autoencoder import DenoisingSparseAutoencoder, DSAEConfig
from purify.checkpoint import load
from purify.classifier import PurifiedClassifier, wrap
from purify.data import ImageSet, Split, split_indices
from purify.eval.evaluate import Settings, evaluate
from purify.eval.report import Report
from purify.images import check_images, check_labels
from purify.normalization import PerChannel
from purify.training.catalogue import find_recipe
from purify.training.loop import train
from purify.training.recipes import PurifierRecipe
from purify.training.tasks import make_task
from purify.training_mode import layers_in_training

__all__ = ["Fitted", "fit", "fit_to", "suggest_recipe"]

_STEPS = 1500
"""Of the optimiser, unless the caller says how many epochs; twice as many for large images, half of which need no classifier."""
_SHARES = (0.8, 0.08, 0.12)
"""Training, validation and test part of images that come without parts."""
_ASKED_AT_ONCE = 64


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` made."""

    purifier: DenoisingSparseAutoencoder
    defended: PurifiedClassifier
    """The purifier before the classifier; given ``weights``, its ``preprocess`` takes pictures of any size."""
    report: Report
    """Clean, oblivious and adaptive accuracy and margins on images held out; ``print(fitted.report.table())``."""
    path: Path
    """Of the checkpoint: ``purify.load(path)`` brings the purifier back."""


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    weights: Any = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    eps: float | None = None,
    epochs: int | None = None,
    folder: str | Path = "runs/fit",
    seed: int = 0,
    quiet: bool = False,
) -> Fitted:
    """Train a denoising purifier for ``model`` on ``images``, and measure the pair on images held out.

    It learns to undo noise and attacks that were made on the bare classifier: the oblivious figure of the table is what to expect
    of an attacker who does not know the purifier, the adaptive one of an attacker who does. The same call goes on where
    an interrupted one stopped.

    Args:
        model: any classifier, in eval mode, on the CPU and in float32; it stays as it is.
        images: (N, C, H, W), uint8 or in [0, 1]; a few hundred are enough for photographs, a thousand or more for small images.
        labels: (N,); None: what the classifier itself says of them, and accuracies are then agreement with that.
        weights: normalisation of the classifier, or ``mean`` and ``std``: see ``purify.wrap``.
        mean: see ``weights``.
        std: see ``weights``.
        eps: L∞ radius of the attacks to learn from and to be measured by; None: 0.2 for grey images, 8/255 for coloured ones.
        epochs: passes through the images; None: so many that the optimiser takes 1,500 steps, 3,000 above 64 pixels.
        folder: of the run and the checkpoint.
        seed: of all randomness.
        quiet: neither progress bar nor table.

    Raises:
        TypeError, ValueError: images or labels are not what they should be, or too few; the classifier is in training mode, in
            another precision or on another device; or the folder holds a run with other settings, pictures or another classifier.

    >>> import purify, tempfile
    >>> images, labels = purify.load_dataset("digits", "train").first(300).batch(slice(None))
    >>> victim = purify.load_classifier("digits-shufflenet")
    >>> fitted = fit(victim, images, labels, epochs=1, folder=tempfile.mkdtemp(), quiet=True)
    >>> fitted.defended(images[:2]).shape
    torch.Size([2, 10])
    """
    _check_classifier(model)
    pixels = _as_bytes(images)
    whole = wrap(model, nn.Identity(), weights=weights, mean=mean, std=std)
    if labels is None:
        labels, classes = _ask(whole, pixels)
    else:
        check_labels(labels, images)
        labels = labels.long()
        classes = int(labels.max()) + 1
    parts = split_indices(labels, _SHARES)
    names = tuple(map(str, range(classes)))
    splits: tuple[Split, ...] = ("train", "val", "test")
    training, validation, test = (
        ImageSet("images", split, pixels[part], labels[part], names) for split, part in zip(splits, parts, strict=True)
    )
    fitted = fit_to(whole.classifier, training, validation, test, eps=eps, epochs=epochs, folder=folder, seed=seed, quiet=quiet)
    fitted.defended.preprocessing = whole.preprocessing
    return fitted


def fit_to(
    classifier: nn.Module,
    training: ImageSet,
    validation: ImageSet,
    test: ImageSet,
    *,
    eps: float | None = None,
    epochs: int | None = None,
    folder: str | Path = "runs/fit",
    seed: int = 0,
    tested: int = 100,
    quiet: bool = False,
) -> Fitted:
    """The same for a data set with parts, and a classifier with its normalisation inside ([0, 1] images to logits).

    Args:
        classifier: in eval mode, on the CPU and in float32; it stays as it is.
        training: images to learn from.
        validation: images by which each epoch is judged.
        test: images for the table.
        eps: see :func:`fit`.
        epochs: see :func:`fit`.
        folder: see :func:`fit`.
        seed: see :func:`fit`.
        tested: how many test images the table takes.
        quiet: see :func:`fit`.

    Raises:
        ValueError: as for :func:`fit`.
    """
    if empty := [part.split for part in (training, validation, test) if len(part) == 0]:
        count = len(training) + len(validation) + len(test)
        raise ValueError(
            f"{count} images are too few: nothing is left for {' and '.join(empty)} (train, val, test are {_SHARES[0]:.0%}, "
            f"{_SHARES[1]:.0%} and {_SHARES[2]:.0%} of images without such parts)"
        )
    _check_classifier(classifier)
    recipe = suggest_recipe(training, eps=eps, epochs=epochs, seed=seed)
    if recipe.window and not _takes(classifier, training.image_shape, recipe.window):
        recipe = replace(recipe, window=0)
    learnt = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    try:
        path = train(make_task(recipe, training, validation, classifier), recipe, training, folder, quiet=quiet)
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
    purifier = load(path)
    defended = PurifiedClassifier(classifier, purifier, None)
    report = evaluate(
        defended,
        test.first(tested),
        None,
        ThreatModel("linf", recipe.eps[1]),
        settings=Settings(norm_images=0, check_images=0, pictures=0, seed=seed),
        name=recipe.name,
        about={"data": test.name, "purifier": str(path)},
        quiet=quiet,
    )
    if not quiet:
        print(f"\n{report.table()}\n\nwrote {path} and its card {path.with_suffix('.json')}")
    return Fitted(purifier, defended, report, path)


def suggest_recipe(training: ImageSet, *, eps: float | None = None, epochs: int | None = None, seed: int = 0) -> PurifierRecipe:
    """Settings for images of this size and these channels, those of the shipped purifiers where there is a like one.

    >>> from purify import load_dataset
    >>> suggest_recipe(load_dataset("digits", "train")).architecture.units
    32
    """
    channels, height, width = training.image_shape
    side, colour = min(height, width), channels > 1
    if side > 64:
        photographs = find_recipe("imagenet-dsae")
        assert isinstance(photographs, PurifierRecipe)
        architecture = replace(photographs.architecture, channels=channels)
        recipe = replace(
            photographs,
            architecture=architecture,
            window=side // 2 if side >= 128 else 0,
            feature_weight=0.0,  # which layer of a model of one's own hands over its features, nobody knows
        )
    else:
        if side <= 16:
            architecture = DSAEConfig(channels=channels, units=32 * channels, atom=4, stride=2, width=32, depth=2)
        else:
            units, wide = (192, 96) if colour else (96, 64)
            architecture = DSAEConfig(channels=channels, units=units, atom=6, stride=2, width=wide, depth=3)
        recipe = PurifierRecipe(
            name="fitted-dsae",
            dataset=training.name,
            classifier="given",
            architecture=architecture,
            batch_size=128,
            attack_steps=3,
            l1=0.02 if colour else 0.04,
        )
    steps = _STEPS if side <= 64 else 2 * _STEPS
    strength = eps if eps is not None else (8 / 255 if colour else 0.2)
    return replace(
        recipe,
        name="fitted-dsae",
        dataset=training.name,
        classifier="given",
        flip=colour,
        noise=min(2.0 * strength, 0.4),
        eps=(strength / 2, strength),
        epochs=epochs if epochs is not None else max(2, math.ceil(steps / math.ceil(len(training) / recipe.batch_size))),
        seed=seed,
    )


def _check_classifier(classifier: nn.Module) -> None:
    """Raise where it would change by being asked, or cannot be asked here."""
    if classifier.training or (layers := layers_in_training(classifier)):
        where = "" if classifier.training else f", in {', '.join(layers[:3])}"
        raise ValueError(f"the classifier is in training mode{where}, and would change: call model.eval() first")
    for parameter in classifier.parameters():
        kind, place = parameter.dtype, parameter.device
        if place.type != "cpu" or (parameter.is_floating_point() and kind != torch.float32):
            raise ValueError(
                f"expected a classifier on the CPU in float32, since fit trains there, got {kind} on {place}; fit the "
                "purifier to a copy: copy.deepcopy(model).cpu().float()"
            )


@torch.no_grad()
def _takes(classifier: nn.Module, image_shape: tuple[int, int, int], side: int) -> bool:
    """Whether it classifies squares of that side beside its own images: vision transformers know but one size."""
    classifier(torch.zeros(1, *image_shape))  # what stops it here has other reasons
    try:
        classifier(torch.zeros(1, image_shape[0], side, side))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _as_bytes(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W)."""
    if images.dtype == torch.uint8:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"expected images (N, C, H, W), got shape {tuple(images.shape)}")
        return images
    check_images(images)
    return (images * 255).round().to(torch.uint8)


@torch.no_grad()
def _ask(classifier: nn.Module, pixels: Tensor) -> tuple[Tensor, int]:
    """What the classifier says, and how many classes it knows."""
    pieces = [pixels[start : start + _ASKED_AT_ONCE] for start in range(0, len(pixels), _ASKED_AT_ONCE)]
    logits = torch.cat([classifier(piece.float() / 255) for piece in pieces])
    return logits.argmax(1), logits.shape[1]
