"""Memory of EOT with 20 draws against EOT with one: peak resident memory of a process of its own, above that of a forward pass.

python tests/bench/eot_memory.py
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch

from purify.architecture import ClassifierConfig, build_classifier
from purify.attacks import eot, exact


def child(draws: int) -> None:
    torch.manual_seed(0)
    network = build_classifier(ClassifierConfig(model="resnet18", small_stem=True, max_pool=False)).eval()
    x = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        network(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = exact(lambda images: network(images + 0.01 * torch.randn_like(images)))
    eot(path, draws)(x, lambda logits: logits.logsumexp(1))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    grown = {
        draws: float(subprocess.run([sys.executable, __file__, str(draws)], check=True, capture_output=True, text=True).stdout)
        for draws in (1, 20)
    }
    print(
        f"ResNet-18, 64 × 3 × 32 × 32: EOT 1 takes {grown[1]:.0f} MiB, EOT 20 {grown[20]:.0f} MiB: {grown[20] / grown[1]:.2f} ×"
    )


if __name__ == "__main__":
    child(int(sys.argv[1])) if len(sys.argv) > 1 else main()
