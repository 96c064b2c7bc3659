"""Data-parallel training by several processes, as ``torchrun`` starts them: each takes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "anywhere",
    "average_gradients",
    "from_first",
    "is_first",
    "rank",
    "same_everywhere",
    "share_buffers",
    "start",
    "wait",
    "world_size",
]


_T = TypeVar("_T")
_PATIENCE = timedelta(days=7)
"""So long the others wait for the first process while it validates; torch's half an hour is too short for large pictures."""


def start() -> None:
    """Join the other processes where ``torchrun`` has set ``RANK`` and ``WORLD_SIZE``; alone, do nothing. The backend is gloo:
    the loop trains on the processor."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)


def world_size() -> int:
    """Number of processes.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that validates, prints and writes files."""
    return rank() == 0


def wait() -> None:
    """Until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: _T) -> _T:
    """What the first process has, for all of them: on several machines the others may not see its files.

    >>> from_first("alone")
    'alone'
    """
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def average_gradients(module: nn.Module) -> None:
    """Sum the gradients of all processes, each of which has scaled its loss by its share of the batch."""
    if not dist.is_initialized():
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers (batch statistics), which it also saves: a run that was stopped goes on as one
    that was not."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def anywhere(condition: bool) -> bool:
    """Whether ``condition`` holds in any process, so that all take the same way on."""
    if not dist.is_initialized():
        return condition
    flag = torch.tensor([float(condition)])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its largest value over all processes (of booleans: whether any is true)."""
    if not dist.is_initialized():
        return
    for tensor in tensors:
        wide = tensor.to(torch.int32 if tensor.dtype == torch.bool else tensor.dtype)
        dist.all_reduce(wide, dist.ReduceOp.MAX)
        tensor.copy_(wide)
