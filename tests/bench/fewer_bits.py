"""Does a purifier with int8 convolutions purify as well? Clean, and under the oblivious PGD of the defence tables.

    python tests/bench/fewer_bits.py

Prints the measured rows of ``docs/deployment.md``. MNIST is looked for in ``$PURIFY_DATA``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import purify
from purify.attacks import PGD, ThreatModel
from purify.export import export_onnx, load_onnx


def main() -> None:
    print("| | images | purifier in float32 | in int8 |\n| --- | --- | --- | --- |")
    for name, classifier, eps, count in (("digits", "digits-shufflenet", 0.15, 450), ("MNIST", "mnist-resnet18", 0.2, 500)):
        pair = purify.wrap(purify.load_classifier(classifier), f"{name.lower()}-dsae")
        x, y = purify.load_dataset(name.lower(), "test").first(count).batch(slice(None))
        attack = PGD(ThreatModel("linf", eps), steps=40, early_stop=False)
        attacked = attack(pair.undefended, x, y, generator=torch.Generator().manual_seed(0)).adversarial
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "purifier.onnx"
            export_onnx(pair.purifier, path, tuple(x.shape[1:]), output="purified", int8="")
            for title, images in (("clean", x), (f"oblivious PGD-40 at L∞ {eps}", attacked)):
                figures = [_accuracy(pair, purifier, images, y) for purifier in (pair.purifier, load_onnx(path))]
                print(f"| {name}, {title} | {count} | {figures[0]:.1f} | {figures[1]:.1f} |", flush=True)


@torch.no_grad()
def _accuracy(pair: purify.PurifiedClassifier, purifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """In per cent; the classifier is float32."""
    logits = torch.cat([pair.undefended(purifier(batch)) for batch in images.split(100)])
    return 100 * (logits.argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
