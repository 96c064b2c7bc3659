"""The models and images that the benchmarks attack. What has to be trained is trained once and kept in ``runs/bench/``.

    python tests/bench/victims.py [DATA_ROOT]      # trains them beforehand: 1 minute and 5 minutes on 2 cores

Data beyond the embedded digits: MNIST, and CIFAR-10 as ``cifar10-jpeg.zip`` (a zip of an image folder), in DATA_ROOT or
``PURIFY_DATA``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import purify
from purify.architecture import ClassifierConfig, build_classifier
from purify.attacks import PGD, ThreatModel
from purify.data import ImageSet
from purify.normalization import Normalize, NormalizedClassifier

KEPT = Path("runs/bench")


def data_root() -> str | None:
    return sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PURIFY_DATA")


def mnist_bare() -> nn.Module:
    return purify.load_classifier("mnist-resnet18")


def digits_defended() -> nn.Module:
    return purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")


def mnist_defended() -> nn.Module:
    return purify.wrap(purify.load_classifier("mnist-resnet18"), "mnist-dsae")


def mnist_robust() -> nn.Module:
    """A small convolutional network, adversarially trained on MNIST (PGD-7, L∞ 0.2), 2 epochs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    threat = ThreatModel("linf", 0.2)

    def attacked(x: Tensor, y: Tensor) -> Tensor:
        attack = PGD(threat, steps=7, early_stop=False)
        return attack(model.eval(), x, y, generator=torch.Generator().manual_seed(0), precision="float32").adversarial

    return _trained(model, "mnist-robust", lambda: purify.load_dataset("mnist", "train", data_root=data_root()), 2, attacked)


def cifar_resnet18() -> nn.Module:
    """ResNet-18 for 32×32 images, trained on CIFAR-10-JPEG for one epoch: a victim, not a good classifier."""
    torch.manual_seed(0)
    network = build_classifier(ClassifierConfig(model="resnet18", small_stem=True, max_pool=False))
    model = NormalizedClassifier(network, Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
    return _trained(model, "cifar10-resnet18", lambda: _cifar("train"), 1, None)


def mnist_images(count: int) -> tuple[Tensor, Tensor]:
    return purify.load_dataset("mnist", "test", data_root=data_root()).first(count).batch(slice(None))


def digits_images(count: int) -> tuple[Tensor, Tensor]:
    return purify.load_dataset("digits", "test").first(count).batch(slice(None))


def cifar_images(count: int) -> tuple[Tensor, Tensor]:
    data = _cifar("test")
    return data.batch(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count])


def _cifar(split: str) -> ImageSet:
    root = data_root()
    if root is None:
        raise SystemExit("CIFAR-10 is needed: give the folder that holds cifar10-jpeg.zip, or set PURIFY_DATA")
    return purify.load_dataset(f"imagefolder:{Path(root) / 'cifar10-jpeg.zip'}", split)  # type: ignore[arg-type]


def _batches(data: ImageSet, epochs: int, size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data) - size + 1, size):
            yield data.batch(order[start : start + size])


def _trained(
    model: nn.Module,
    name: str,
    load: Callable[[], ImageSet],
    epochs: int,
    attacked: Callable[[Tensor, Tensor], Tensor] | None,
) -> nn.Module:
    file = KEPT / f"{name}.pt"
    if not file.exists():
        data = load()
        steps = epochs * (len(data) // 128)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for x, y in tqdm(_batches(data, epochs), total=steps, desc=name, mininterval=5):
            inputs = x if attacked is None else attacked(x, y)
            model.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=attacked is None):
                loss = F.cross_entropy(model(inputs).float(), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
        print(f"wrote {file}")
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


if __name__ == "__main__":
    for make, images in ((mnist_robust, mnist_images), (cifar_resnet18, cifar_images)):
        model, (x, y) = make(), images(500)
        with torch.no_grad():
            print(f"{make.__name__}: {100 * float((model(x).argmax(1) == y).float().mean()):.1f} % of 500 clean test images")
