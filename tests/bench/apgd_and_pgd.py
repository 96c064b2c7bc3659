"""APGD-CE with 100 steps against pyautoattack's, and PGD-40 against foolbox's: loss reached and wall time in one run.

    python tests/bench/apgd_and_pgd.py [DATA_ROOT]

Losses are compared at full strength (no image leaves early). pyautoattack is compared with itself from another seed as well:
that is what two runs of one and the same attack have in common. Wall times are those of an evaluation: images leave when broken.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
import victims
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from purify.attacks import APGD, PGD, ThreatModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox

CASES = {
    "digits, defended": (victims.digits_defended, lambda: victims.digits_images(200), ThreatModel("linf", 0.15)),
    "MNIST, adversarially trained": (victims.mnist_robust, lambda: victims.mnist_images(200), ThreatModel("linf", 0.2)),
    "MNIST, defended": (victims.mnist_defended, lambda: victims.mnist_images(100), ThreatModel("linf", 0.2)),
    "CIFAR-10-JPEG, ResNet-18": (victims.cifar_resnet18, lambda: victims.cifar_images(100), ThreatModel("linf", 1 / 255)),
}
ROUNDS = 3


def main() -> None:
    for name, (make, images, threat) in CASES.items():
        compare(name, make(), *images(), threat)


def compare(name: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    found = APGD(threat, early_stop=False)(model, x, y).adversarial
    theirs, others = (_theirs(model, x, y, threat, seed, full=True) for seed in (0, 1))
    (ours, ours_broken), (first, first_broken), (second, _) = (_reached(model, images, y) for images in (found, theirs, others))
    print(
        f"{name}, {threat}, {len(x)} images: loss at least pyautoattack's, within 1 %, on {_share(ours, first):.1f} % "
        f"(its own other seed {_share(second, first):.1f}), strictly on {_strictly(ours, first):.1f} % "
        f"({_strictly(second, first):.1f}); mean loss {ours.mean():.3f} ({first.mean():.3f}, {second.mean():.3f}); "
        f"broken {ours_broken} ({first_broken})",
        flush=True,
    )
    apgd = _ratio(lambda: APGD(threat)(model, x, y), lambda: _theirs(model, x, y, threat, 0, full=False))
    pgd = _ratio(lambda: PGD(threat)(model, x, y), lambda: _foolbox(model, x, y, threat))
    print(f"    wall time: APGD-CE-100 {apgd:.2f} × pyautoattack's, PGD-40 {pgd:.2f} × foolbox's", flush=True)


@torch.no_grad()
def _reached(model: nn.Module, images: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Cross-entropy (N,), and how many are broken."""
    logits = model(images)
    return F.cross_entropy(logits, y, reduction="none"), int((logits.argmax(1) != y).sum())


def _share(ours: Tensor, theirs: Tensor) -> float:
    return 100 * float((ours >= 0.99 * theirs - 1e-3).float().mean())


def _strictly(ours: Tensor, theirs: Tensor) -> float:
    return 100 * float((ours >= theirs).float().mean())


def _theirs(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int, *, full: bool) -> Tensor:
    quiet = logging.getLogger("quiet")
    attack = APGDAttack(model, n_iter=100, norm="Linf", eps=threat.eps, seed=seed, loss="ce", device="cpu", logger=quiet)
    found: Tensor = attack.perturb(x, y, best_loss=full)
    return found


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    foolbox.attacks.LinfPGD(rel_stepsize=2.5 / 40, steps=40)(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=threat.eps)


def _ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Median over pairs."""
    ratios = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        ratios.append((middle - started) / (time.perf_counter() - middle))
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
