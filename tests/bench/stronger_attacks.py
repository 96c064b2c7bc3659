"""How far do longer and other attacks come than the tables' adaptive PGD? The MNIST defence, its first 60 test images.

    python tests/bench/stronger_attacks.py [DATA_ROOT]

Each attack runs on what the ones before left standing; about five minutes on 2 cores.
"""

from __future__ import annotations

import sys

import torch

import purify
from purify.attacks import APGD, PGD, Square, TargetedAPGD, ThreatModel
from purify.eval import Settings, evaluate

IMAGES = 60


def main() -> None:
    root = sys.argv[1] if len(sys.argv) > 1 else None
    x, y = purify.load_dataset("mnist", "test", data_root=root).first(IMAGES).batch(slice(None))
    defended = purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")
    threat = ThreatModel("linf", 0.2)
    report = evaluate(defended, x, y, threat, settings=Settings())
    print(f"the table's attack: {report.adaptive} % stand", flush=True)
    standing = (report.per_image["adaptive_margin"] > 0).nonzero().flatten()
    for name, attack in {
        "APGD-CE, 100 steps": APGD(threat, steps=100),
        "PGD on the margin, 40 steps, 3 restarts": PGD(threat, steps=40, restarts=3, loss="margin"),
        "targeted APGD-DLR, 4 classes, 60 steps": TargetedAPGD(threat, steps=60, classes=4),
        "Square, 1,000 queries": Square(threat, queries=1000),
    }.items():
        result = attack(defended, x[standing], y[standing], generator=torch.Generator().manual_seed(1))
        standing = standing[~result.success]
        print(f"then {name}: {100 * len(standing) / IMAGES:.1f} % stand", flush=True)


if __name__ == "__main__":
    main()
