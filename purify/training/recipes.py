"""Training recipes: small dataclasses. A recipe is a whole description of how a checkpoint was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from purify.architecture import ClassifierConfig
from purify.attacks import ThreatModel
from purify.autoencoder import DSAEConfig
from purify.denoisers import DenoiserConfig

__all__ = [
    "ClassifierRecipe",
    "DenoiserRecipe",
    "DenoisingRecipe",
    "PurifierRecipe",
    "Recipe",
    "RobustClassifierRecipe",
    "RobustRecipe",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training has."""

    name: str
    """Name of the checkpoint that it makes."""
    dataset: str
    """Name of the data set (see ``purify.load_dataset``)."""
    epochs: int = 10
    """Passes through the training split."""
    batch_size: int = 256
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), or sgd with Nesterov's momentum 0.9."""
    learning_rate: float = 2e-3
    """Peak of a cosine schedule with linear warm-up (a tenth of the run)."""
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    """Of the exponential moving average of the weights, which is what is validated and saved (0: none)."""
    shift: float = 0.0
    """Augmentation: largest shift, in pixels and fractions of them."""
    crop: int = 0
    """Augmentation: largest shift by whole pixels, which blurs nothing (for photographs; padding and random crop)."""
    window: int = 0
    """Augmentation: side of the square cut at random out of each image, for networks that take any size (0: the whole image)."""
    rotate: float = 0.0
    """Augmentation: largest rotation, in degrees."""
    zoom: float = 0.0
    """Augmentation: largest relative change of size."""
    flip: bool = False
    """Augmentation: mirror half of the images."""
    cutout: int = 0
    """Augmentation: side of a square that is blackened at a random place, in pixels (DeVries & Taylor 2017)."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "window", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"recipe {self.name}: {name} must not be negative, got {getattr(self, name)}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"recipe {self.name}: optimizer must be 'adamw' or 'sgd', got {self.optimizer!r}")
        _at_least_one(self, "epochs", "batch_size")
        if not self.learning_rate > 0:
            raise ValueError(f"recipe {self.name}: learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"recipe {self.name}: ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Recipe):
    """A torchvision classifier trained on clean images: the victim."""

    architecture: ClassifierConfig = field(default_factory=ClassifierConfig)
    mean: tuple[float, ...] = (0.5,)
    """Normalisation inside the classifier, one value a channel."""
    std: tuple[float, ...] = (0.5,)
    label_smoothing: float = 0.0
    held_out: bool = True
    """Keep the validation split for validation. False: learn from it as well, once all other settings are settled; then nothing
    is validated. `purify train` joins the splits; in Python it is ``training.joined(validation)``."""


@dataclass(frozen=True, kw_only=True)
class RobustClassifierRecipe(ClassifierRecipe):
    """A classifier trained on attacked images (Madry et al. 2018): what a purifier of as many operations competes with."""

    eps: float
    """L∞ radius; it grows from 0 over the first part of the run."""
    attack_steps: int = 7
    """Of the attack on each batch; 1: N-FGSM (de Jorge et al. 2022), more: PGD."""
    growing: float = 0.4
    """Share of the run during which eps grows."""
    warm_start: str = ""
    """Name or path of a classifier of the same architecture and normalisation to begin with; empty: random weights. A resnet18
    may have further blocks, which begin as copies of those before them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ThreatModel("linf", self.eps)  # says now what is wrong with it, not where eps has grown to it
        _at_least_one(self, "attack_steps")
        _shares(self, "growing")


@dataclass(frozen=True, kw_only=True)
class DenoisingRecipe(Recipe):
    """Something trained to undo Gaussian noise and attacks that were made on the bare classifier."""

    classifier: str
    """Name or path of the classifier's checkpoint; it stays frozen."""
    noise: float = 0.3
    """Gaussian noise: each image's sigma is uniform in [0, noise]."""
    attacked: float = 0.5
    """Share of each batch that is attacked (on the bare classifier) in place of noise."""
    eps: tuple[float, float] = (0.1, 0.3)
    """L∞ radius of those attacks, uniform in this range for each batch."""
    attack_steps: int = 5
    """Steps of PGD; one batch in four is attacked by FGSM."""
    pixel_weight: float = 200.0
    """Of half the squared error, divided by the number of pixel values (for a DSAE: of the lasso)."""
    agreement_weight: float = 1.0
    """Of KL(classifier(clean) ‖ classifier(purified))."""
    feature_weight: float = 0.0
    """Of the squared error of the classifier's last features, over their square."""
    pixels_first: float = 0.0
    """Share of the run, at its beginning, that learns pictures alone: noise, no attacks, no classifier. Many times cheaper, and a
    classifier's gradients say little as long as it recognises nothing. The optimiser and its schedule then start anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = (ThreatModel("linf", eps).eps for eps in self.eps)
        if low > high:
            raise ValueError(f"recipe {self.name}: eps must be a range, the smaller radius first, got {low} and {high}")
        _at_least_one(self, "attack_steps")
        _shares(self, "attacked", "pixels_first")


@dataclass(frozen=True, kw_only=True)
class PurifierRecipe(DenoisingRecipe):
    """A DSAE."""

    architecture: DSAEConfig = field(default_factory=DSAEConfig)
    l1: float = 0.04
    """λ of the lasso ½‖x̂ − x‖² + λ Σ z, in pixel units: the same λ means the same for images of any size."""
    revive_until: float = 0.6
    """Share of the run during which units that never fired in an epoch are revived at its end."""
    warm_start: str = ""
    """Name or path of a DSAE of the same architecture to begin with; empty: random weights."""


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe(DenoisingRecipe):
    """A dense denoiser to compare a DSAE with."""

    architecture: DenoiserConfig = field(default_factory=DenoiserConfig)


@dataclass(frozen=True, kw_only=True)
class RobustRecipe(Recipe):
    """A DSAE trained against attacks that know it, in front of classifiers that stay as they are.

    The loss is a sum: weight by weight cross-entropy, agreement, features, the read-out of the code, and the lasso of a DSAE, all
    on attacked images.
    """

    classifiers: tuple[str, ...]
    """Names or paths of classifiers' checkpoints; they stay frozen. Of several, each batch meets one, drawn at random. None: the
    attack is made on the read-out of the code, at a fraction of the cost; the purifier is then one to start others from."""
    architecture: DSAEConfig = field(default_factory=DSAEConfig)
    norm: Literal["linf", "l2"] = "linf"
    eps: float
    """Radius of the attacks."""
    growing: float = 0.3
    """Share of the run during which eps grows from 0."""
    attack_steps: int = 1
    """Of the attack on each batch; 1: N-FGSM (de Jorge et al. 2022), more: PGD."""
    final_steps: int = 3
    """Of the attack in the last part of the run."""
    final: float = 0.25
    """Share of the run that the last part takes; 0: none."""
    label_weight: float = 1.0
    """Of the cross-entropy with the labels."""
    agreement_weight: float = 0.0
    """Of KL(classifier(clean) ‖ classifier(purified)): labels need not be right, nor be there."""
    feature_weight: float = 0.0
    """Of the squared error of the classifier's last features, over their square."""
    code_weight: float = 0.0
    """Of the cross-entropy of a linear read-out of the mean code, which learns along and is not kept."""
    code_attacked: float = 0.0
    """Share of the batches that are attacked through that read-out in place of a classifier, at a fraction of the cost; the
    losses stay the same. (Without any classifier all are.)"""
    pixel_weight: float = 0.0
    """Of half the squared error plus ``l1`` times the code, divided by the number of pixel values."""
    l1: float = 0.04
    """λ of the lasso ½‖x̂ − x‖² + λ Σ z, in pixel units."""
    decoder_first: float = 0.0
    """Share of the run, at its beginning, that leaves the encoder as it is: the atoms learn to write what it reads. For a
    warm start whose code is robust already, and cheaper than all at once."""
    warm_start: str = ""
    """Name or path of a DSAE of the same architecture to begin with; empty: random weights."""
    validation_eps: float = 0.0
    """Radius by which each epoch is judged; 0: ``eps``. (Trained at less, a network keeps more of its clean accuracy.)"""
    validation_steps: int = 50
    """Of the APGD-CE on the whole pipeline by which each epoch is judged, and the best one kept."""
    validated: int = 300
    """Images of the validation split that are attacked for that: of 300, a difference of 3 points is chance."""
    keep_last: bool = False
    """Keep the last epoch's weights instead of the best one's: for a run that others go on from, whose clean accuracy is still
    rising when APGD's is not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for radius in (self.eps, self.validation_eps):
            ThreatModel(self.norm, radius)  # says now what is wrong with it, not where eps has grown to it
        _at_least_one(self, "attack_steps", "final_steps", "validation_steps", "validated")
        _shares(self, "growing", "final", "code_attacked", "decoder_first")
        of_classifiers = self.label_weight or self.agreement_weight or self.feature_weight
        if not self.classifiers and (of_classifiers or not self.code_weight):
            raise ValueError(
                f"recipe {self.name}: at least one classifier is needed, or a code_weight above 0 and no label_weight, "
                "agreement_weight or feature_weight"
            )
        if self.code_attacked and not self.code_weight:
            raise ValueError(
                f"recipe {self.name}: code_attacked needs a code_weight above 0 (an untrained read-out is nothing to attack), "
                f"got {self.code_attacked} with code_weight {self.code_weight}"
            )
        if self.decoder_first and self.architecture.encoder == "tied":
            raise ValueError(
                f"recipe {self.name}: a tied encoder is its decoder, which cannot learn first: decoder_first must be 0"
            )
        if self.decoder_first and self.architecture.steps > 1:
            raise ValueError(
                f"recipe {self.name}: with architecture.steps {self.architecture.steps} the code depends on the decoder, which "
                "cannot learn first: decoder_first must be 0"
            )
        if self.classifiers and not of_classifiers:
            raise ValueError(f"recipe {self.name}: label_weight, agreement_weight or feature_weight must be above 0")


def _at_least_one(recipe: Recipe, *names: str) -> None:
    for name in names:
        if getattr(recipe, name) < 1:
            raise ValueError(f"recipe {recipe.name}: {name} must be at least 1, got {getattr(recipe, name)}")


def _shares(recipe: Recipe, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"recipe {recipe.name}: {name} must be in [0, 1], got {getattr(recipe, name)}")
