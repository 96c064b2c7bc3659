"""Defences that only look like ones, in front of the digits' classifier: what plain PGD says of them, and what ``adaptive`` says.

    python tests/bench/planted_fakes.py [IMAGES]

Prints the table of ``docs/attacks.md``.
"""

from __future__ import annotations

import sys

import torch
import victims
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel, every_path, make_suite, run_suite
from purify.eval.fakes import FAKES, ExtremeTemperature

THREAT = ThreatModel("linf", 0.2)


def main() -> None:
    classifier = purify.load_classifier("digits-shufflenet")
    x, y = victims.digits_images(int(sys.argv[1]) if len(sys.argv) > 1 else 450)
    bare = 100 * float(run_suite(make_suite("standard", THREAT), classifier, x, y).robust.mean())
    print(f"no defence: clean {_clean(classifier, x, y):.1f} %, standard {bare:.1f} %")
    print("\n| planted fake | clean | plain PGD-40 | adaptive | broken first by |\n|---|---|---|---|---|")
    models = {name: purify.wrap(classifier, make().eval()) for name, make in FAKES.items()}
    models["softmax temperature 10⁻⁶"] = purify.wrap(ExtremeTemperature(classifier).eval(), nn.Identity())
    for name, model in models.items():
        plain = PGD(THREAT)(model, x, y).adversarial
        paths = every_path(model, stage=model.purifier, rest=model.undefended, probe=x[:8])
        suite = make_suite("adaptive", THREAT, draws=20 if name == "random resize" else 1)
        result = run_suite(suite, model, x, y, paths=paths)
        names = [by for by in result.broken_by if by not in ("", "clean")]
        first = ", ".join(f"{by} ({names.count(by)})" for by in sorted(set(names), key=names.count, reverse=True)[:3])
        figures = _clean(model, x, y), _clean(model, plain, y), 100 * float(result.robust.mean())
        print(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {first} |", flush=True)


@torch.no_grad()
def _clean(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in %, over 20 draws."""
    return 100 * float(torch.stack([(model(x).argmax(1) == y).float().mean() for _ in range(20)]).mean())


if __name__ == "__main__":
    main()
