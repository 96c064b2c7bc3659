"""ART, the Adversarial Robustness Toolbox (Nicolae et al. 2018): a purifier and a wrapped model for it, its attacks for us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify.attacks.gradient import Model
from purify.attacks.input_gradient import input_gradient_only
from purify.attacks.problem import Problem
from purify.checkpoint import load
from purify.interop.borrowed import BorrowedAttack
from purify.interop.victim import Victim, device_of, unchecked

try:
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
    from art.estimators.classification import PyTorchClassifier
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("purify.interop.art needs ART: pip install 'purify-defense[art]'") from missing

__all__ = ["ARTAttack", "PurifierPreprocessor", "to_art"]


class PurifierPreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """A purifier as one of ART's ``preprocessing_defences``, with its true gradient.

    While every preprocessing is of this PyTorch kind, ART's ``PyTorchClassifier`` differentiates through :meth:`forward` and
    calls neither ``estimate_forward`` nor ``estimate_gradient``, where its documentation puts the backward pass of BPDA (seen in
    ART 1.20.1: ``loss_gradient`` and ``class_gradient``). So ``surrogate`` works inside :meth:`forward`, as in
    :func:`purify.attacks.bpda`: the purifier's own values, the surrogate's gradient. Those two methods agree with it.

    Args:
        purifier: images (N, C, H, W) in [0, 1] to the same, or the name or path of a checkpoint. Its parameters get no gradient.
        surrogate: a differentiable stand-in, for purifiers without a usable gradient; ``torch.nn.Identity()`` is "straight
            through". None: the true gradient.
        device_type: ``gpu`` or ``cpu``; as ART does it, the purifier is moved there (``gpu``: if there is one).
        apply_fit: purify during ART's training as well.
        apply_predict: purify for predictions and attacks.

    >>> import purify
    >>> purifier = PurifierPreprocessor("digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(2).batch(slice(None))
    >>> purifier(images.numpy())[0].shape
    (2, 1, 8, 8)
    """

    params = ("purifier", "surrogate", "apply_fit", "apply_predict")

    def __init__(
        self,
        purifier: nn.Module | str | Path,
        *,
        surrogate: Model | None = None,
        device_type: str = "gpu",
        apply_fit: bool = True,
        apply_predict: bool = True,
    ) -> None:
        super().__init__(device_type=device_type, is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier = (load(purifier) if isinstance(purifier, (str, Path)) else purifier).to(self.device)
        self.surrogate = surrogate

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purified images (N, C, H, W), differentiable, and the labels as they came."""
        if self.surrogate is None:
            return input_gradient_only(self.purifier, x), y
        with torch.no_grad():
            purified = self.purifier(x)
        substitute = input_gradient_only(self.surrogate, x)
        return purified + (substitute - substitute.detach()), y  # the second term is exactly zero, but has a gradient


def to_art(model: nn.Module, image_shape: Sequence[int], *, classes: int | None = None) -> Any:
    """The model as an ``art.estimators.classification.PyTorchClassifier`` with clip values (0, 1), on the device it is on.

    Its loss is the cross-entropy, and ART does nothing to the images: normalisation is inside the model.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits, normalisation inside, in eval mode; such as :func:`purify.wrap` gives.
        image_shape: (C, H, W) of the images to come.
        classes: how many; None: found by one pass of a black image.

    Raises:
        ValueError: ``image_shape`` is not (C, H, W).

    >>> import purify
    >>> defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(8).batch(slice(None))
    >>> bool((to_art(defended, (1, 8, 8)).predict(images.numpy()).argmax(1) == labels.numpy()).all())
    True
    """
    if len(image_shape) != 3:
        raise ValueError(f"expected the shape (C, H, W) of one image, got {tuple(image_shape)}")
    device = device_of(model)
    if classes is None:
        with torch.no_grad():
            classes = int(model(torch.zeros(1, *image_shape, device=device)).shape[1])
    return PyTorchClassifier(
        model=unchecked(model),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(image_shape),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        device_type="cpu" if device.type == "cpu" else "gpu",
    )


@dataclass(frozen=True)
class ARTAttack(BorrowedAttack):
    """An evasion attack of ART behind the call of this package; see :class:`BorrowedAttack`.

    Norm and eps are given to those of ART's attacks that take them. ART's default ``batch_size`` is 1 in several attacks.

    >>> import purify
    >>> from art.attacks.evasion import FastGradientMethod
    >>> from purify.attacks import ThreatModel
    >>> defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(8).batch(slice(None))
    >>> result = ARTAttack(ThreatModel("linf", 0.3), FastGradientMethod, {"batch_size": 8})(defended, images, labels)
    >>> int(result.success.sum()) > 4
    True
    """

    def _run(self, victim: Victim, part: Problem, classes: int, seed: int) -> Tensor:
        classifier = to_art(victim, part.images.shape[1:], classes=classes)
        norm = {"linf": np.inf, "l2": 2, "l1": 1}[self.threat.norm]
        known = {"norm": norm, "eps": self.threat.eps, "verbose": False}
        given = {name: value for name, value in known.items() if name in self.attack.attack_params}
        images, labels = part.images.cpu().numpy(), part.labels.cpu().numpy()
        one_hot = np.eye(classes, dtype=np.float32)[labels]  # what every attack of ART takes
        found = self.attack(classifier, **{**given, **self.settings}).generate(images, one_hot)
        return torch.from_numpy(found)
