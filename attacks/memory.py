"""How many images fit into memory at once, from what a gradient step of this very model keeps."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from purify.attacks.gradient import Model

__all__ = ["batch_size_from_memory", "free_memory", "graph_bytes_per_image"]

_LARGEST = 256
"""Images; larger batches are no faster on a processor, and little on an accelerator."""
_COPIES = 16
"""Tensors of the image's size that the longest attack keeps beside the graph."""


def graph_bytes_per_image(model: Model, images: Tensor) -> int:
    """Bytes that the backward pass holds for each further image: what two images keep minus what one keeps.

    Weights are kept as well, but once, and so cancel out.

    >>> graph_bytes_per_image(lambda x: (x * x).flatten(1), torch.zeros(2, 1, 4, 4))
    64
    """
    kept = [_graph_bytes(model, images[:1].repeat(n, 1, 1, 1)) for n in (1, 2)]
    return max(kept[1] - kept[0], 0)


def batch_size_from_memory(model: Model, images: Tensor, *, free: int | None = None) -> int:
    """The largest power of two up to 256 whose gradient step takes at most a quarter of the free memory.

    Args:
        model: images (N, C, H, W) to logits.
        images: the batch to be attacked; one image of it is tried out.
        free: bytes; None: what the images' device has free now.
    """
    if len(images) == 0:
        return 1
    free = free_memory(images.device) if free is None else free
    each = 2 * graph_bytes_per_image(model, images) + _COPIES * images[0].nbytes  # gradients of what is kept come beside it
    fit = max(free // 4 // max(each, 1), 1)
    return min(_LARGEST, 1 << (int(fit).bit_length() - 1))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on ``device`` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    listing = Path("/proc/meminfo")
    if listing.exists():
        for line in listing.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # no sysconf on this system
        return 4 << 30


def _graph_bytes(model: Model, images: Tensor) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = model(images.detach().requires_grad_())  # noqa: F841 - while it lives, no storage is freed and counted twice
    return sum(kept.values())
