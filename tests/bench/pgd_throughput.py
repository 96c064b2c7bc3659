"""PGD against a bare loop of forward and backward passes of the same model on the same images, alternating in one run.

python tests/bench/pgd_throughput.py
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

import purify
from purify.attacks import PGD, ThreatModel

STEPS, ROUNDS = 40, 5


def main() -> None:
    torch.manual_seed(0)
    cases = {
        "digits, defended": (purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae"), (256, 1, 8, 8)),
        "MNIST, bare": (purify.load_classifier("mnist-resnet18"), (64, 1, 28, 28)),
        "MNIST, defended": (purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae"), (64, 1, 28, 28)),
    }
    for name, (model, shape) in cases.items():
        images = torch.rand(shape)
        with torch.no_grad():
            labels = model(images).argmax(1)
        attack = PGD(ThreatModel("linf", 1e-7), steps=STEPS)  # so small a ball that no image leaves the batch

        def bare(model: torch.nn.Module = model, images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            x = images.clone()
            for _ in range(STEPS):
                x = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)

        ratios = []
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            bare()
            middle = time.perf_counter()
            result = attack(model, images, labels)
            ratios.append((time.perf_counter() - middle) / (middle - started))
        assert not result.success.any(), "an image left the batch: the comparison would flatter PGD"
        print(f"{name}: PGD-{STEPS} takes {statistics.median(ratios[1:]):.3f} × the bare loop (median of {ROUNDS} pairs)")


if __name__ == "__main__":
    main()
