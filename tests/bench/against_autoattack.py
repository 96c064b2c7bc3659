"""The suite ``standard`` against pyautoattack's ``standard``, L∞: robust accuracy and wall time in one run.

python tests/bench/against_autoattack.py [DATA_ROOT] [CASE ...]
"""

from __future__ import annotations

import sys
import time

import victims

from purify.attacks import AutoAttack, ThreatModel, make_suite, run_suite

CASES = {
    "bare": (victims.mnist_bare, lambda: victims.mnist_images(500), 0.2),
    "robust": (victims.mnist_robust, lambda: victims.mnist_images(500), 0.2),
    "digits": (victims.digits_defended, lambda: victims.digits_images(500), 0.15),
    "mnist": (victims.mnist_defended, lambda: victims.mnist_images(100), 0.2),
}
"""A bare ResNet-18, an adversarially trained network, the digits' and MNIST's defended classifiers."""


def main() -> None:
    for name in sys.argv[2:] or ["bare", "robust", "digits"]:
        make, images, eps = CASES[name]
        model, (x, y), threat = make(), images(), ThreatModel("linf", eps)
        started = time.perf_counter()
        ours = run_suite(make_suite("standard", threat), model, x, y)
        middle = time.perf_counter()
        theirs = AutoAttack(threat)(model, x, y)
        seconds = middle - started, time.perf_counter() - middle
        robust = 100 * float(ours.robust.mean()), 100 * float((~theirs.success).float().mean())
        print(ours)
        print(
            f"{name}: {len(x)} images, {threat}: robust accuracy {robust[0]:.1f} % (pyautoattack {robust[1]:.1f} %), "
            f"{seconds[0]:.0f} s against {seconds[1]:.0f} s: {seconds[0] / seconds[1]:.2f} × (bfloat16 steps: {ours.bfloat16})",
            flush=True,
        )


if __name__ == "__main__":
    main()
