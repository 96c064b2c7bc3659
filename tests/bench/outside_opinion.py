"""AutoAttack by pyautoattack on a shipped purifier and its classifier, batch by batch: is the table's worst case true?

    python tests/bench/outside_opinion.py mnist-dsae-robust --eps 0.3 --images 500

An hour for 100 images of MNIST on one core, so each batch is written as it ends, and the same command goes on after the last one.
Its own standard version, unchanged: APGD-CE, targeted APGD and FAB, Square with 5,000 queries, float32.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import purify
from purify.attacks import AutoAttack, ThreatModel
from purify.checkpoint import read_card
from purify.eval.intervals import wilson_interval


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to attack."""

    purifier: tyro.conf.Positional[str]
    """Name or path of a purifier's checkpoint; its card names the classifier and the data."""
    classifier: str = ""
    data: str = ""
    eps: float
    norm: Literal["linf", "l2"] = "linf"
    images: int = 500
    batch: int = 20
    data_root: Path | None = None
    out: Path = Path("runs/outside")


def main(command: Command) -> None:
    card = read_card(command.purifier)
    classifier = command.classifier or card.recipe.get("classifier") or card.recipe["classifiers"][0]
    data, threat = command.data or card.dataset, ThreatModel(command.norm, command.eps)
    model = purify.wrap(purify.load_classifier(classifier), purify.load(command.purifier)).eval()
    test = purify.load_dataset(data, "test", data_root=command.data_root).first(command.images)
    file = command.out / f"{Path(command.purifier).stem}.{command.norm}.{command.eps:.4g}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    for start in range(sum(batch["images"] for batch in done), len(test), command.batch):
        x, y = test.batch(slice(start, min(start + command.batch, len(test))))
        with torch.no_grad():
            clean = int((model(x).argmax(1) == y).sum())
        started = time.perf_counter()
        result = AutoAttack(threat)(model, x, y, generator=torch.Generator().manual_seed(start))
        standing = (start + (~result.success).nonzero().flatten()).tolist()
        seconds = round(time.perf_counter() - started, 1)
        done.append({"images": len(x), "clean": clean, "stand": len(standing), "standing": standing, "seconds": seconds})
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(done[-1]) + "\n")
        n, stand = (sum(batch[key] for batch in done) for key in ("images", "stand"))
        low, high = wilson_interval(stand, n)
        print(
            f"{n} images, {threat}: {stand} stand, {100 * stand / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; {file}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Command, prog="outside_opinion"))
