"""Did the further residual blocks of a deeper classifier learn? How far each is from the block that it began as a copy of, and
what becomes of the test images without it, clean and attacked anew (decisions on easy images say little).

    purify train cifar10-robust
    python tests/bench/further_blocks.py runs/train/cifar10-robust/cifar10-robust.safetensors

Data in ``PURIFY_DATA``. Two minutes on two cores for CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn
from torchvision.models.resnet import BasicBlock

import purify
from purify.attacks import APGD, ThreatModel
from purify.checkpoint import read_card


@dataclass
class Settings:
    """A classifier that was trained from a shallower one."""

    weights: tyro.conf.Positional[Path]
    """What ``purify train …-robust`` wrote."""
    images: int = 200
    """Test images."""
    steps: int = 20
    """Of APGD on the cross-entropy, at the eps of the recipe, made on each of the networks."""


@torch.no_grad()
def main(settings: Settings) -> None:
    """Print a line for each further block, and one for all of them."""
    card = read_card(settings.weights)
    classifier = purify.load_classifier(settings.weights)
    before = purify.load_classifier(str(card.recipe["warm_start"])).state_dict()
    blocks = {name: block for name, block in classifier.named_modules() if isinstance(block, BasicBlock)}
    further = {name: block for name, block in blocks.items() if f"{name}.conv1.weight" not in before}
    images, labels = purify.load_dataset(card.dataset, "test").first(settings.images).batch(slice(None))
    attack = APGD(ThreatModel("linf", card.recipe["eps"]), steps=settings.steps)
    whole = classifier(images).argmax(1)

    def clean_and_attacked() -> str:
        decided = classifier(images).argmax(1)
        stand = int((~attack(classifier, images, labels, generator=torch.Generator().manual_seed(0)).success).sum())
        right, changed = int((decided == labels).sum()), int((decided != whole).sum())
        return f"{right} of {len(images)} images right ({changed} decisions changed), {stand} stand APGD"

    def without(*names: str) -> str:
        for name in names:
            classifier.set_submodule(name, nn.Identity())
        said = clean_and_attacked()
        for name in names:
            classifier.set_submodule(name, further[name])
        return said

    print(f"{settings.weights.stem}: {clean_and_attacked()}", flush=True)
    for name, block in further.items():
        stage, _, number = name.rpartition(".")
        begun = before[f"{stage}.1.conv1.weight"]  # the last block of a stage of the shallower network
        moved = float((block.conv1.weight - begun).norm() / begun.norm())
        factor = float(block.bn2.weight.abs().mean())
        place = f"{stage.rpartition('.')[2]}, block {int(number) + 1}"
        print(f"{place}: first convolution moved by {moved:.0%}, last normalisation times {factor:.3f} in the mean")
        print(f"    without it {without(name)}", flush=True)
    print(f"without all of them {without(*further)}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
