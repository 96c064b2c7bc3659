"""Did the further residual blocks of a deeper classifier learn? How far each is from the block that it began as a copy of, and
how many decisions change without it.

    purify train cifar10-robust
    python tests/bench/further_blocks.py runs/train/cifar10-robust/cifar10-robust.safetensors

Data in ``PURIFY_DATA``. Half a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import purify
from purify.checkpoint import read_card


@dataclass
class Settings:
    """A classifier that was trained from a shallower one."""

    weights: tyro.conf.Positional[Path]
    """What ``purify train …-robust`` wrote."""
    images: int = 200
    """Test images."""


@torch.no_grad()
def main(settings: Settings) -> None:
    """Print a line for each further block, and one for all of them."""
    card = read_card(settings.weights)
    classifier = purify.load_classifier(settings.weights)
    before = purify.load_classifier(str(card.recipe["warm_start"])).state_dict()
    blocks = {name: block for name, block in classifier.named_modules() if isinstance(block, BasicBlock)}
    further = {name: block for name, block in blocks.items() if f"{name}.conv1.weight" not in before}
    images, labels = purify.load_dataset(card.dataset, "test").first(settings.images).batch(slice(None))
    whole = classifier(images).argmax(1)

    def without(*names: str) -> Tensor:
        for name in names:
            classifier.set_submodule(name, nn.Identity())
        decided: Tensor = classifier(images).argmax(1)
        for name in names:
            classifier.set_submodule(name, further[name])
        return decided

    print(f"{settings.weights.stem}: {int((whole == labels).sum())} of {len(images)} images right")
    for name, block in further.items():
        stage, _, number = name.rpartition(".")
        begun = before[f"{stage}.1.conv1.weight"]  # the last block of a stage of the shallower network
        moved = float((block.conv1.weight - begun).norm() / begun.norm())
        changed = int((without(name) != whole).sum())
        factor = float(block.bn2.weight.abs().mean())
        place = f"{stage.rpartition('.')[2]}, block {int(number) + 1}"
        print(f"{place}: first convolution moved by {moved:.0%}, last normalisation times {factor:.3f} in the mean")
        print(f"    without it {changed} decisions change")
    decided = without(*further)
    changed, right = int((decided != whole).sum()), int((decided == labels).sum())
    print(f"without all of them {changed} decisions change, and {right} images are right")


if __name__ == "__main__":
    main(tyro.cli(Settings))
