"""torchattacks (Kim 2020): a wrapped model for it, its attacks for us."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from purify.attacks.problem import Problem
from purify.interop.borrowed import BorrowedAttack
from purify.interop.victim import Victim, unchecked

__all__ = ["TorchattacksAttack", "to_torchattacks"]


def to_torchattacks(model: nn.Module) -> nn.Module:
    """The model as torchattacks' attacks take it: the same parts, without the check that images lie in [0, 1].

    Normalisation is inside the model, so do not call the attack's ``set_normalization_used``.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits, normalisation inside, in eval mode; such as :func:`purify.wrap` gives.

    >>> import purify, torchattacks
    >>> defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(8).batch(slice(None))
    >>> torchattacks.NIFGSM(to_torchattacks(defended), eps=0.1)(images, labels).shape
    torch.Size([8, 1, 8, 8])
    """
    return unchecked(model)


@dataclass(frozen=True)
class TorchattacksAttack(BorrowedAttack):
    """An attack of torchattacks behind the call of this package; see :class:`BorrowedAttack`.

    Radius, norm, number of classes and seed are given to those that take them. Most are made for one norm (``PGD`` for L∞,
    ``PGDL2`` for L2): in a threat model of another norm they are weak. Their step sizes are made for eps 8/255: set ``alpha``.

    >>> import purify, torchattacks
    >>> from purify.attacks import ThreatModel
    >>> defended = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    >>> images, labels = purify.load_dataset("digits", "test").first(8).batch(slice(None))
    >>> result = TorchattacksAttack(ThreatModel("linf", 0.3), torchattacks.PGD, {"alpha": 0.1})(defended, images, labels)
    >>> int(result.success.sum())
    8
    """

    from_threat = frozenset({"norm", "eps", "max_epsilon"})

    def _run(self, victim: Victim, part: Problem, classes: int, seed: int) -> Tensor:
        norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[self.threat.norm]
        eps = self.threat.eps
        known = {"norm": norm, "eps": eps, "max_epsilon": eps, "n_classes": classes, "seed": seed}
        taken = inspect.signature(self.attack).parameters
        given = {name: value for name, value in known.items() if name in taken}
        found: Tensor = self.attack(victim, **{**given, **self.settings})(part.images, part.labels)
        return found
