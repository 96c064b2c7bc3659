"""When gradients may be taken in bfloat16: where the processor computes in it, and the model is large enough to gain."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from purify.attacks.gradient import Model

__all__ = ["Precision", "steps_in_bfloat16"]

Precision = Literal["auto", "float32", "bfloat16"]
"""Of an attack's steps. Verdicts are float32's in any case."""

_LARGE_ENOUGH = 1e6
"""Multiply-accumulates of one image in the average convolution or matrix product. On a processor with AVX-512 bfloat16,
ResNet-18 at 28 × 28 has 2·10⁷ and gains a factor of 1.9, a network of two convolutions at 28 × 28 has 3·10⁵ and gains nothing, a
ShuffleNet at 8 × 8 has 3·10⁴ and loses a factor of 2.4."""


def steps_in_bfloat16(precision: Precision, model: Model, images: Tensor) -> bool:
    """Whether to take gradient steps under bfloat16 autocast; ``auto`` decides by processor and model, never by a clock, so that
    the same machine always decides alike.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
    if precision == "float32" or images.dtype != torch.float32 or len(images) == 0:
        return False
    if precision == "bfloat16":
        return True
    if not _processor_has_bfloat16(images.device):
        return False
    with torch.no_grad(), _Work() as work:
        model(images[:1])
    return work.calls > 0 and bool(work.macs >= _LARGE_ENOUGH * work.calls)


def _processor_has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)


class _Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions and matrix products, and their multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0
        self.macs = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.calls += 1
            self.macs += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) / 2
        return out
