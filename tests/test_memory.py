"""A folder of pictures of any length is evaluated in the same memory."""

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from test_data import make_folder
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel
from purify.attacks.suite import SUITES, Entry
from purify.eval import Settings, evaluate


class _Watched(nn.Module):
    """Two classes, and the most memory that no file stood behind while it was asked, in kB."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 2))
        self.peak = 0

    def forward(self, x: Tensor) -> Tensor:
        ctypes.CDLL(None).malloc_trim(0)  # glibc else keeps what is freed, by chance more or less of it
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        self.peak = max(self.peak, int(held.split()[1]))
        logits: Tensor = self.inner(x)
        return logits


def _peak_memory(folder: Path, store: Path) -> tuple[int, int]:
    """How many pictures were evaluated, and the most memory that it took in kB; for a process of its own."""
    os.environ["PURIFY_CACHE"] = str(store.parent / "cache")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    test = purify.load_dataset(f"imagefolder:{folder}", "test")
    SUITES["fast"] = "one step", lambda threat, _: (Entry("PGD-1", PGD(threat, steps=1)),)
    few = Settings(suite="fast", oblivious_steps=1, norm_images=0, check_images=0, pictures=0, batch_size=10)
    model = _Watched().eval()
    evaluate(model, test, None, ThreatModel("linf", 0.01), settings=few, store=store, quiet=True)
    return len(test), model.peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_folder_is_evaluated_in_memory_that_does_not_grow(tmp_path: Path, processes: ForkServerContext) -> None:
    """Pictures of 224 × 224: 100 more of them are 15 MB as bytes, and 60 MB as floats. (A batch may hold 128 of them, so that the
    fewer are more than that.)"""
    peaks = {}
    for n in (200, 300):
        folder = make_folder(tmp_path / str(n), parts=("test",), per_class=n // 2, size=(224, 224))
        with ProcessPoolExecutor(1, processes) as alone:
            count, peaks[n] = alone.submit(_peak_memory, folder, tmp_path / f"{n}.sqlite").result()
        assert count == n
    assert peaks[300] - peaks[200] < 7_000, peaks
