"""How far do longer attacks come than the tables' suite ``adaptive``? The MNIST defence, its first 60 test images.

    python tests/bench/stronger_attacks.py [DATA_ROOT]

Each attack runs on what the ones before left standing; about ten minutes on 2 cores.
"""

from __future__ import annotations

import sys

import torch

import purify
from purify.attacks import APGD, PGD, Square, ThreatModel, make_suite, run_suite
from purify.eval.evaluate import gradient_paths

IMAGES = 60


def main() -> None:
    root = sys.argv[1] if len(sys.argv) > 1 else None
    x, y = purify.load_dataset("mnist", "test", data_root=root).first(IMAGES).batch(slice(None))
    defended = purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")
    threat = ThreatModel("linf", 0.2)
    found = run_suite(make_suite("adaptive", threat), defended, x, y, paths=gradient_paths(defended, x[:2]))
    print(found, flush=True)
    standing = (found.robust > 0).nonzero().flatten()
    for name, attack in {
        "APGD-CE, 300 steps, 3 restarts": APGD(threat, steps=300, restarts=3),
        "PGD on the margin, 200 steps, 3 restarts": PGD(threat, steps=200, restarts=3, loss="margin"),
        "Square, 5,000 queries": Square(threat),
    }.items():
        result = attack(defended, x[standing], y[standing], generator=torch.Generator().manual_seed(1))
        standing = standing[~result.success]
        print(f"then {name}: {len(standing)} of {IMAGES} stand", flush=True)


if __name__ == "__main__":
    main()
