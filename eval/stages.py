"""A defence taken apart, so that its attacker reaches every part: compiled modules, and wrapped classifiers wrapped once more."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from purify.classifier import PurifiedClassifier

__all__ = ["PurifierChain", "taken_apart"]

_Step = Callable[[Tensor], Tensor]


class PurifierChain(nn.Module):
    """Purifiers one after the other, images (N, C, H, W) in [0, 1] to the same.

    ``relaxed`` leaves out the clip of every part that can do without; ``surrogates`` are those of one part with the other as it
    is, and one part alone taken for the identity, where one keeps back the gradient that the other would let through.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.training = first.training

    def forward(self, images: Tensor) -> Tensor:
        """Purify."""
        purified: Tensor = self.second(self.first(images))
        return purified

    def relaxed(self, images: Tensor) -> Tensor:
        """The same without any final clip."""
        for part in (self.first, self.second):
            images = getattr(part, "relaxed", part)(images)
        return images

    @property
    def surrogates(self) -> dict[str, _Step]:
        """Differentiable stand-ins by name."""
        found: dict[str, _Step] = {}
        for name, stand_in in _stand_ins(self.first).items():
            found[f"first {name}"] = lambda x, f=stand_in: self.second(f(x))  # type: ignore[misc]
        for name, stand_in in _stand_ins(self.second).items():
            found[f"second {name}"] = lambda x, f=stand_in: f(self.first(x))  # type: ignore[misc]
        return found


def _stand_ins(stage: nn.Module) -> dict[str, _Step]:
    relaxed = getattr(stage, "relaxed", None)
    found: dict[str, _Step] = {"straight through": lambda x: x}
    found |= {} if relaxed is None else {"without the clip": relaxed}
    return found | getattr(stage, "surrogates", {})


def taken_apart(defended: nn.Module) -> nn.Module:
    """The same function as a :class:`PurifiedClassifier` whose purifier is all that stands before the classifier; or a bare one.

    What ``torch.compile`` and ``DataParallel`` put around a module is taken off, since no gradient path can be laid through its
    parts there; a wrapped classifier in another :class:`PurifiedClassifier` gives a :class:`PurifierChain`.

    Raises:
        ValueError: a wrapped classifier inside some other module: its parts would be out of reach, and the attack weaker than the
            one on the wrapped classifier itself.

    >>> from purify import wrap
    >>> victim = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> taken_apart(wrap(wrap(victim, nn.Identity()), nn.Identity())).purifier
    PurifierChain(
      (first): Identity()
      (second): Identity()
    )
    """
    module = _uncovered(defended)
    while isinstance(module, PurifiedClassifier):
        inner = _uncovered(module.classifier.model)
        if not isinstance(inner, PurifiedClassifier) or not isinstance(module.classifier.normalize, nn.Identity):
            break
        module = PurifiedClassifier(
            inner.classifier.model, PurifierChain(module.purifier, inner.purifier), inner.classifier.normalize, module.validate
        )
    if any(isinstance(part, PurifiedClassifier) for part in module.modules() if part is not module):
        raise ValueError(
            f"there is a wrapped classifier inside this {type(module).__name__}: the paths through its purifier would be out of "
            "the attacker's reach, and the result too good. Evaluate the wrapped classifier itself, or put what stands around it "
            "into its purifier: wrap(classifier, purifier)"
        )
    return module


def _uncovered(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile's
            module = inner
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module
