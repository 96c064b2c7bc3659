"""The verdict on a random defence against the truth, beside pyautoattack's ``rand``.

    python tests/bench/random_verdict.py [DATA_ROOT]

The planted model: the digits' classifier with Gaussian noise on its logits, attacked in a ball so small that the noise decides.
The truth is the mean accuracy over 2,000 fresh draws on the very images that each attack hands back.
"""

from __future__ import annotations

import torch
import victims
from torch import Tensor, nn

import purify
from purify.attacks import AutoAttack, ThreatModel, make_suite, run_suite

IMAGES, NOISE = 200, 6.0


class NoisyLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.generator = model, torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits + NOISE * torch.randn(logits.shape, generator=self.generator)


def main() -> None:
    model = NoisyLogits(purify.load_classifier("digits-shufflenet")).eval()
    x, y = victims.digits_images(IMAGES)
    threat = ThreatModel("linf", 0.02)

    @torch.no_grad()
    def truth(images: Tensor) -> float:
        return 100 * float(torch.stack([(model(images).argmax(1) == y).float().mean() for _ in range(2000)]).mean())

    result = run_suite(make_suite("random", threat), model, x, y)
    print(f"clean: {truth(x):.1f} %")
    print(f"suite random: says {100 * float(result.robust.mean()):.1f} %, truth on its images {truth(result.adversarial):.1f} %")
    theirs = AutoAttack(threat, version="rand")
    images = theirs(model, x, y)
    print(f"pyautoattack rand: says {_says(model, x, y, threat):.1f} %, truth on its images {truth(images.adversarial):.1f} %")


def _says(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> float:
    """The share of images that it hands back with the label they had: what its log calls robust accuracy."""
    from pyautoattack import AutoAttack as Theirs

    runner = Theirs(model, norm="Linf", eps=threat.eps, seed=0, version="rand")
    _, predicted = runner.run_standard_evaluation(x, y)
    return 100 * float((predicted == y).float().mean())


if __name__ == "__main__":
    main()
