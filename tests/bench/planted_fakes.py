"""Defences that only look like ones, in front of the digits' classifier: what plain PGD says of them, and what ``adaptive`` says.

    python tests/bench/planted_fakes.py [IMAGES]

Prints the table of ``docs/attacks.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
import victims
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel, every_path, make_suite, run_suite

THREAT = ThreatModel("linf", 0.15)


def gradient_killer(x: Tensor) -> Tensor:
    """The image itself, with a gradient of zero."""
    return x.detach() + 0 * x


def hard_quantiser(x: Tensor) -> Tensor:
    """Sixteen levels."""
    return (x * 16).round() / 16


def dead_zone(x: Tensor) -> Tensor:
    """Sixteen levels joined by steep ramps: flat, and so without gradient, over nine tenths of the range."""
    level, within = (x * 16).floor(), (x * 16).frac()
    return (level + ((within - 0.45) / 0.1).clamp(0, 1)) / 16


class RandomResize(nn.Module):
    """Each image is resized by 0.75 to 1.25 and moved by up to a pixel, anew at each pass (after Xie et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        scale = 0.75 + 0.5 * torch.rand(len(x), generator=self.generator)
        shift = (2 * torch.rand(len(x), 2, generator=self.generator) - 1) * 2 / x.shape[-1]
        theta = torch.zeros(len(x), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = shift
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def main() -> None:
    classifier = purify.load_classifier("digits-shufflenet")
    x, y = victims.digits_images(int(sys.argv[1]) if len(sys.argv) > 1 else 450)
    bare = 100 * float(run_suite(make_suite("standard", THREAT), classifier, x, y).robust.mean())
    print(f"no defence: clean {_clean(classifier, x, y):.1f} %, standard {bare:.1f} %")
    print("\n| planted fake | clean | plain PGD-40 | adaptive | broken first by |\n|---|---|---|---|---|")
    resize = RandomResize()
    stages: dict[str, tuple[Callable[[Tensor], Tensor], float, int]] = {
        "gradient killer": (gradient_killer, 1.0, 1),
        "hard quantiser": (hard_quantiser, 1.0, 1),
        "dead zone": (dead_zone, 1.0, 1),
        "random resize": (resize, 1.0, 20),
        "softmax temperature 10⁻⁶": (nn.Identity(), 1e6, 1),
    }
    for name, (stage, sharpness, draws) in stages.items():

        def model(images: Tensor, stage: Callable[[Tensor], Tensor] = stage, sharpness: float = sharpness) -> Tensor:
            logits: Tensor = classifier(stage(images))
            return sharpness * logits

        def rest(images: Tensor, sharpness: float = sharpness) -> Tensor:
            logits: Tensor = classifier(images)
            return sharpness * logits

        plain = PGD(THREAT)(model, x, y).adversarial
        paths = every_path(model, stage=stage, rest=rest, probe=x[:8])
        result = run_suite(make_suite("adaptive", THREAT, draws=draws), model, x, y, paths=paths)
        names = [by for by in result.broken_by if by not in ("", "clean")]
        first = ", ".join(f"{by} ({names.count(by)})" for by in sorted(set(names), key=names.count, reverse=True)[:3])
        figures = _clean(model, x, y), _clean(model, plain, y), 100 * float(result.robust.mean())
        print(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {first} |", flush=True)


@torch.no_grad()
def _clean(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Accuracy in %, over 20 draws."""
    return 100 * float(torch.stack([(model(x).argmax(1) == y).float().mean() for _ in range(20)]).mean())


if __name__ == "__main__":
    main()
