"""The recipes by name: how each shipped checkpoint, and each trained baseline, is made."""

from __future__ import annotations

import dataclasses

from purify.architecture import ClassifierConfig
from purify.autoencoder import DSAEConfig
from purify.denoisers import DenoiserConfig
from purify.training.recipes import (
    ClassifierRecipe,
    DenoiserRecipe,
    DenoisingRecipe,
    PurifierRecipe,
    Recipe,
    RobustClassifierRecipe,
    RobustRecipe,
)

__all__ = ["find_recipe", "list_recipes", "register"]

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
register(  # of another family: does what a purifier learnt in front of the one hold in front of the other?
    ClassifierRecipe(
        name="mnist-shufflenet",
        dataset="mnist",
        architecture=ClassifierConfig(model="shufflenet_v2_x0_5", channels=1, small_stem=True, max_pool=False),
        mean=(0.1307,),
        std=(0.3081,),
        epochs=3,
        shift=2.0,
    )
)


_CIFAR10_RESNET18 = ClassifierRecipe(
    name="cifar10-resnet18",
    dataset="imagefolder:cifar10-jpeg.zip",
    architecture=ClassifierConfig(model="resnet18", small_stem=True, max_pool=False),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    epochs=24,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-3,
    label_smoothing=0.1,
    held_out=False,
    crop=4,
    flip=True,
    cutout=12,
)
register(_CIFAR10_RESNET18)
register(  # of another family, too
    dataclasses.replace(
        _CIFAR10_RESNET18,
        name="cifar10-shufflenet",
        architecture=ClassifierConfig(model="shufflenet_v2_x0_5", small_stem=True, max_pool=False),
        epochs=12,
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
register(
    PurifierRecipe(
        name="cifar10-dsae",
        dataset="imagefolder:cifar10-jpeg.zip",
        classifier="cifar10-resnet18",
        architecture=DSAEConfig(channels=3, units=192, atom=6, stride=2, width=96, depth=3),
        epochs=5,
        batch_size=128,
        flip=True,
        noise=0.04,
        attacked=0.5,
        attack_steps=2,
        eps=(1 / 255, 9 / 255),
        feature_weight=1.0,
        l1=0.02,
    )
)
_IMAGENET_DSAE = PurifierRecipe(
    name="imagenet-dsae",
    dataset="imagefolder:imagenet-750.zip",
    classifier="squeezenet1_0",  # not shipped: --model squeezenet1_0 --weights FILE
    architecture=DSAEConfig(channels=3, units=128, atom=8, stride=4, shortcut=True, width=64, depth=4),
    epochs=120,
    batch_size=16,
    learning_rate=2e-3,
    window=112,
    flip=True,
    noise=0.08,
    attacked=0.75,
    attack_steps=3,
    eps=(1 / 255, 5 / 255),
    pixel_weight=500.0,
    feature_weight=10.0,
    pixels_first=0.4,
    l1=0.03,
    revive_until=0.0,
)
register(_IMAGENET_DSAE)
register(
    RobustRecipe(
        name="imagenet-dsae-robust",
        dataset="imagefolder:imagenet-750.zip",
        classifiers=("squeezenet1_0",),  # likewise
        architecture=_IMAGENET_DSAE.architecture,
        epochs=30,
        batch_size=16,
        learning_rate=1e-3,
        window=112,
        flip=True,
        eps=1 / 255,
        growing=0.2,
        attack_steps=2,
        final_steps=4,
        label_weight=0.0,
        agreement_weight=1.0,
        feature_weight=10.0,
        pixel_weight=100.0,
        l1=0.03,
        warm_start="imagenet-dsae",
        validation_steps=5,
        validated=50,
    )
)
register(
    RobustRecipe(
        name="digits-dsae-robust",
        dataset="digits",
        classifiers=("digits-shufflenet",),
        architecture=DSAEConfig(units=32, atom=4, stride=2, width=32, depth=2),
        epochs=120,
        batch_size=128,
        shift=1.0,
        rotate=12,
        zoom=0.1,
        eps=0.15,
        final_steps=5,
        pixel_weight=20.0,
    )
)
register(
    RobustRecipe(
        name="mnist-dsae-robust",
        dataset="mnist",
        classifiers=("mnist-resnet18",),
        architecture=DSAEConfig(units=96, atom=6, stride=2, width=64, depth=3),
        epochs=10,
        batch_size=128,
        learning_rate=1e-3,
        eps=0.3,
        growing=0.1,
        attack_steps=4,
        final_steps=7,
        final=0.25,
        pixel_weight=20.0,
        warm_start="mnist-dsae",
        validated=500,
    )
)
_CIFAR10_CODE_ROBUST = RobustRecipe(
    name="cifar10-code-robust",
    dataset="imagefolder:cifar10-jpeg.zip",
    classifiers=(),
    architecture=DSAEConfig(channels=3, units=192, atom=8, stride=4, encoder="pyramid", width=80, depth=2, global_units=128),
    epochs=30,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.2,
    weight_decay=5e-4,
    crop=4,
    flip=True,
    eps=8 / 255,
    validation_eps=8 / 255,
    growing=0.1,
    final=0.0,
    label_weight=0.0,
    code_weight=1.0,
    pixel_weight=2.0,
    l1=0.01,
    validation_steps=10,
    keep_last=True,
)
register(_CIFAR10_CODE_ROBUST)
register(
    RobustRecipe(
        name="cifar10-dsae-robust",
        dataset="imagefolder:cifar10-jpeg.zip",
        classifiers=("cifar10-resnet18",),
        architecture=_CIFAR10_CODE_ROBUST.architecture,
        epochs=6,
        batch_size=128,
        learning_rate=4e-4,
        weight_decay=0.01,
        ema_decay=0.99,
        crop=4,
        flip=True,
        eps=8 / 255,
        validation_eps=8 / 255,
        growing=0.0,
        final=0.0,
        code_weight=0.5,
        code_attacked=0.25,
        decoder_first=0.1,
        pixel_weight=5.0,
        l1=0.01,
        warm_start="runs/train/cifar10-code-robust/cifar10-code-robust.safetensors",
        validation_steps=10,
        validated=200,
        keep_last=True,
    )
)
register(
    RobustClassifierRecipe(
        name="digits-robust",
        dataset="digits",
        architecture=ClassifierConfig(model="shufflenet_v2_x1_0", channels=1, small_stem=True, max_pool=False),
        mean=(0.306,),
        std=(0.376,),
        epochs=80,
        batch_size=128,
        shift=1.0,
        rotate=12,
        zoom=0.1,
        eps=0.15,
    )
)
register(
    RobustClassifierRecipe(
        name="mnist-robust",
        dataset="mnist",
        architecture=ClassifierConfig(model="resnet18", channels=1, small_stem=True, blocks=(2, 3, 3, 3)),
        mean=(0.1307,),
        std=(0.3081,),
        epochs=3,
        batch_size=128,
        eps=0.3,
        attack_steps=5,
        growing=0.3,
        warm_start="mnist-resnet18",
    )
)
register(
    RobustClassifierRecipe(
        name="cifar10-robust",
        dataset="imagefolder:cifar10-jpeg.zip",
        architecture=dataclasses.replace(_CIFAR10_RESNET18.architecture, blocks=(2, 3, 3, 3)),
        mean=_CIFAR10_RESNET18.mean,
        std=_CIFAR10_RESNET18.std,
        epochs=6,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.05,
        weight_decay=5e-4,
        crop=4,
        flip=True,
        eps=8 / 255,
        attack_steps=1,
        growing=0.2,
        warm_start="cifar10-resnet18",
    )
)


def _register_retrained(classifier: str, robust: str) -> None:
    """The classifier itself, trained on against attacks like ``robust``: what to compare with where it need not stay as it is."""
    before, like = find_recipe(classifier), find_recipe(robust)
    assert isinstance(before, ClassifierRecipe)
    name = f"{robust.removesuffix('-robust')}-retrained"
    begun = {"warm_start": classifier, "architecture": before.architecture, "mean": before.mean, "std": before.std}
    register(dataclasses.replace(like, name=name, **begun))  # type: ignore[arg-type]


_register_retrained("digits-shufflenet", "digits-robust")
_register_retrained("mnist-resnet18", "mnist-robust")
_register_retrained("cifar10-resnet18", "cifar10-robust")


def _register_dense(like: str, dncnn: tuple[int, int]) -> None:
    """The dense denoisers of a DSAE's size, trained as that is; MagNet's on noise alone, as by its authors."""
    dsae = find_recipe(like)
    assert isinstance(dsae, PurifierRecipe)
    of = dsae.architecture
    size = DenoiserConfig(channels=of.channels, width=of.width, depth=of.depth, units=of.units, atom=of.atom, stride=of.stride)
    shared = {f.name: getattr(dsae, f.name) for f in dataclasses.fields(DenoisingRecipe) if f.name != "name"}
    for config in (
        dataclasses.replace(size, network="linear"),
        size,
        dataclasses.replace(size, network="dncnn", width=dncnn[0], depth=dncnn[1]),
        dataclasses.replace(size, network="magnet", width=3),
    ):
        without = {"attacked": 0.0, "noise": 0.1, "agreement_weight": 0.0, "feature_weight": 0.0}
        alone = without if config.network == "magnet" else {}
        name = f"{like.removesuffix('-dsae')}-{config.network}"
        register(DenoiserRecipe(**{**shared, **alone, "name": name, "architecture": config}))


_register_dense("digits-dsae", dncnn=(16, 5))  # as many multiply-accumulates as the DSAE, within 6 %
_register_dense("mnist-dsae", dncnn=(32, 8))
_register_dense("cifar10-dsae", dncnn=(48, 8))
