"""Attacks on a bare classifier, made once for all the defences that stand in front of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from purify.attacks.result import AttackResult

__all__ = ["SharedAttacks"]


class SharedAttacks:
    """What an oblivious attacker made for the first row of a table, kept for the others: it does not know any of them.

    One object serves one classifier, one set of images and one threat model. Results are kept in memory alone, and no more than
    ``limit`` bytes of it: what does not fit is made again for each row, and is the same, since every batch has its own seed.

    >>> import torch
    >>> shared, made = SharedAttacks(), []
    >>> def attack():
    ...     made.append("once")
    ...     return AttackResult(*torch.zeros(5, 1))
    >>> shared.get("images 0 to 9", attack) is shared.get("images 0 to 9", attack), made
    (True, ['once'])
    """

    def __init__(self, limit: int = 2**30) -> None:
        self.left = limit
        self.batch_size: int | None = None
        """Images at once, as the defence before had them: a batch of another size is another batch."""
        self._kept: dict[Hashable, AttackResult] = {}

    def get(self, key: Hashable, attack: Callable[[], AttackResult]) -> AttackResult:
        """The result under ``key``; at first what ``attack`` makes."""
        if key in self._kept:
            return self._kept[key]
        result = attack()
        size = sum(_bytes(part) for part in result)
        if size <= self.left:
            self.left -= size
            self._kept[key] = result
        return result


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
