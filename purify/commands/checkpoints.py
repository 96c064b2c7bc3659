"""``purify checkpoints``: what is shipped."""

from __future__ import annotations

from purify.checkpoint import list_checkpoints, read_card

__all__ = ["checkpoints"]


def checkpoints() -> int:
    """Run ``purify checkpoints``."""
    for name in list_checkpoints():
        card = read_card(name)
        figures = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in card.figures.items())
        print(f"{name}: {card.kind} for {card.dataset} {card.image_shape}, sha256 {card.sha256[:12]}…\n    {figures}")
    return 0
