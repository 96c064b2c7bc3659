"""Training recipes: small dataclasses, registered by name. A recipe is a whole description of how a checkpoint was made."""

from __future__ import annotations

from dataclasses import dataclass, field

from purify.architecture import ClassifierConfig
from purify.autoencoder import DSAEConfig

__all__ = ["ClassifierRecipe", "PurifierRecipe", "Recipe", "find_recipe", "list_recipes", "register"]


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
    learning_rate: float = 2e-3
    """Peak of a cosine schedule with linear warm-up (a tenth of the run); AdamW."""
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    """Of the exponential moving average of the weights, which is what is validated and saved (0: none)."""
    shift: float = 0.0
    """Augmentation: largest shift, in pixels."""
    rotate: float = 0.0
    """Augmentation: largest rotation, in degrees."""
    zoom: float = 0.0
    """Augmentation: largest relative change of size."""
    flip: bool = False
    """Augmentation: mirror half of the images."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe {self.name}: {name} must be at least 1, got {getattr(self, name)}")
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


@dataclass(frozen=True, kw_only=True)
class PurifierRecipe(Recipe):
    """A DSAE trained to undo Gaussian noise and attacks that were made on the bare classifier."""

    classifier: str
    """Name or path of the classifier's checkpoint; it stays frozen."""
    architecture: DSAEConfig = field(default_factory=DSAEConfig)
    noise: float = 0.3
    """Gaussian noise: each image's sigma is uniform in [0, noise]."""
    attacked: float = 0.5
    """Share of each batch that is attacked (on the bare classifier) in place of noise."""
    eps: tuple[float, float] = (0.1, 0.3)
    """L∞ radius of those attacks, uniform in this range for each batch."""
    attack_steps: int = 5
    """Steps of PGD; one batch in four is attacked by FGSM."""
    l1: float = 0.04
    """λ of the lasso ½‖x̂ − x‖² + λ Σ z, in pixel units: the same λ means the same for images of any size."""
    pixel_weight: float = 200.0
    """Of that lasso, divided by the number of pixel values."""
    agreement_weight: float = 1.0
    """Of KL(classifier(clean) ‖ classifier(purified))."""
    revive_until: float = 0.6
    """Share of the run during which units that never fired in an epoch are revived at its end."""


_RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Make a recipe known by its name.

    Raises:
        ValueError: the name is taken.
    """
    if recipe.name in _RECIPES:
        raise ValueError(f"a recipe named {recipe.name!r} is registered already")
    _RECIPES[recipe.name] = recipe
    return recipe


def list_recipes() -> list[str]:
    """Names of all recipes, sorted.

    >>> "digits-dsae" in list_recipes()
    True
    """
    return sorted(_RECIPES)


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: unknown; the message lists the known ones.
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(list_recipes())}")
    return _RECIPES[name]


register(
    ClassifierRecipe(
        name="digits-shufflenet",
        dataset="digits",
        architecture=ClassifierConfig(model="shufflenet_v2_x0_5", channels=1, small_stem=True, max_pool=False),
        mean=(0.306,),
        std=(0.376,),
        epochs=120,
        batch_size=128,
        shift=1.0,
        rotate=12,
        zoom=0.1,
    )
)
register(
    ClassifierRecipe(
        name="mnist-resnet18",
        dataset="mnist",
        architecture=ClassifierConfig(model="resnet18", channels=1, small_stem=True),
        mean=(0.1307,),
        std=(0.3081,),
        epochs=5,
        shift=2.0,
    )
)
register(
    PurifierRecipe(
        name="digits-dsae",
        dataset="digits",
        classifier="digits-shufflenet",
        architecture=DSAEConfig(units=32, atom=4, stride=2, width=32, depth=2),
        epochs=120,
        batch_size=128,
        shift=1.0,
        rotate=12,
        zoom=0.1,
        noise=0.2,
        eps=(0.05, 0.2),
    )
)
register(
    PurifierRecipe(
        name="mnist-dsae",
        dataset="mnist",
        classifier="mnist-resnet18",
        architecture=DSAEConfig(units=96, atom=6, stride=2, width=64, depth=3),
        epochs=4,
        noise=0.4,
        eps=(0.1, 0.3),
    )
)
