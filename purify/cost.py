"""What a module costs: multiply-accumulates, parameters, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_macs", "count_parameters", "milliseconds_per_image"]


def count_macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image (C, H, W): convolutions and matrix products, as torch counts them (half its FLOPs)."""
    parameter = next(module.parameters(), torch.empty(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.full((1, *image_shape), 0.5, device=parameter.device, dtype=parameter.dtype))
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Number of learnt values."""
    return sum(p.numel() for p in module.parameters())


def milliseconds_per_image(modules: Sequence[nn.Module], images: Tensor, repeats: int = 15) -> list[float]:
    """For each module the median wall time of a forward pass of the batch ``images`` (N, C, H, W), divided by N, in milliseconds.

    Rounded to six decimals, as results are written, so that ratios are the same when they are read again. The modules
    take turns, so that what else the machine does weighs on all of them alike.
    """
    times: list[list[float]] = [[] for _ in modules]
    with torch.no_grad():
        for turn in range(repeats + 1):
            for module, taken in zip(modules, times, strict=True):
                started = time.perf_counter()
                module(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                if turn:  # the first is a warm-up
                    taken.append(time.perf_counter() - started)
    return [round(sorted(taken)[len(taken) // 2] * 1000 / len(images), 6) for taken in times]
