"""Options of the weights of a torchvision classifier, which every command has that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from purify.commands.named_classifier import NamedClassifier, named_classifier

__all__ = ["WeightsOptions"]


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """What a torchvision classifier's weights are, and how their images are normalised."""

    weights: str = ""
    """Of a torchvision classifier: a state dict (*.safetensors, *.pt), or the name of torchvision's own, such as DEFAULT."""
    mean: tuple[float, ...] = ()
    """Of the images that the weights were trained on, in [0, 1]: one number a channel, or one for all; default: that of
    torchvision's own weights for the model."""
    std: tuple[float, ...] = ()
    """Goes with --mean."""

    def weighing(self) -> dict[str, Any]:
        """Those that were given, as plain values."""
        options = {"weights": self.weights, "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in options.items() if value}

    def weighed_as(self, options: Mapping[str, Any]) -> Self:
        """The command with what :meth:`weighing` gave of another one."""
        mean, std = (tuple(options.get(name, ())) for name in ("mean", "std"))
        return replace(self, weights=options.get("weights", ""), mean=mean, std=std)

    def check_model(self, model: str | None) -> None:
        """Raise a ValueError where options were given, and no ``model`` for them."""
        if (given := [f"--{name}" for name in self.weighing()]) and not model:
            raise ValueError(f"{' and '.join(given)} are those of a classifier of your own: name it with --model")

    def named(self, model: str) -> NamedClassifier:
        """The classifier of that name with these weights; see ``named_classifier``."""
        return named_classifier(model, self.weights, mean=self.mean, std=self.std)
