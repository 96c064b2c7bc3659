"""pyautoattack and the tables' own suite on a shipped purifier and its classifier, image by image: is the worst case true?

    python tests/bench/outside_opinion.py mnist-dsae-robust --eps 0.3 --images 100
    python tests/bench/outside_opinion.py mnist-dsae-robust --eps 0.3 --images 100 --attacker adaptive

Two hours for 100 images of MNIST on one core, so each batch is written as it ends, and the same command goes on after the last
one. pyautoattack is its own standard version: APGD-CE, targeted APGD and FAB, Square with 5,000 queries, float32. The second
of the two to be run is held against the first after each batch, on the images that both have seen.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

import purify
from purify.attacks import AutoAttack, ThreatModel, make_suite, run_suite
from purify.checkpoint import read_card
from purify.eval.evaluate import gradient_paths
from purify.eval.intervals import wilson_interval

Attacker = Literal["pyautoattack", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to attack."""

    purifier: tyro.conf.Positional[str]
    """Name or path of a purifier's checkpoint; its card names the classifier and the data."""
    classifier: str = ""
    data: str = ""
    eps: float
    norm: Literal["linf", "l2"] = "linf"
    attacker: Attacker = "pyautoattack"
    images: int = 500
    batch: int = 20
    """Images attacked at once: small ones are written sooner, large ones take less time for each image."""
    data_root: Path | None = None
    out: Path = Path("runs/outside")

    def file(self, attacker: Attacker) -> Path:
        """Where an attacker's batches are written."""
        return self.out / f"{Path(self.purifier).stem}.{self.norm}.{self.eps:.4g}.{attacker}.jsonl"


def read(file: Path) -> list[dict[str, Any]]:
    """The batches in a file, from the first image on."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def standing(batches: list[dict[str, Any]], images: int) -> set[int]:
    """Which of the first so many images stand."""
    return {image for batch in batches for image in batch["standing"] if image < images}


def summary(command: Command) -> str:
    """What the attacker left standing so far, and what both did with the images that both have seen."""
    file, done = command.file(command.attacker), read(command.file(command.attacker))
    n, clean, stand = (sum(batch[key] for batch in done) for key in ("images", "clean", "stand"))
    low, high = wilson_interval(stand, n)
    said = f"{n} images, {clean} right: {stand} stand, {100 * stand / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; {file}"
    seen = {attacker: read(command.file(attacker)) for attacker in get_args(Attacker)}
    both = min(sum(batch["images"] for batch in batches) for batches in seen.values())
    if both == 0:
        return said
    theirs, ours = (standing(batches, both) for batches in seen.values())
    return (
        f"{said}\n  of the first {both}, {len(theirs)} stand pyautoattack and {len(ours)} the suite adaptive; "
        f"broken by the suite alone: {sorted(theirs - ours)}, by pyautoattack alone: {sorted(ours - theirs)}"
    )


def main(command: Command) -> None:
    card = read_card(command.purifier)
    classifier = command.classifier or card.recipe.get("classifier") or card.recipe["classifiers"][0]
    data, threat = command.data or card.dataset, ThreatModel(command.norm, command.eps)
    model = purify.wrap(purify.load_classifier(classifier), purify.load(command.purifier)).eval()
    test = purify.load_dataset(data, "test", data_root=command.data_root).first(command.images)
    file = command.file(command.attacker)
    file.parent.mkdir(parents=True, exist_ok=True)
    if read(file):
        print(summary(command), flush=True)
    for start in range(sum(batch["images"] for batch in read(file)), len(test), command.batch):
        x, y = test.batch(slice(start, min(start + command.batch, len(test))))
        with torch.no_grad():
            clean = int((model(x).argmax(1) == y).sum())
        started = time.perf_counter()
        if command.attacker == "pyautoattack":
            stands = ~AutoAttack(threat)(model, x, y, generator=torch.Generator().manual_seed(start)).success
        else:
            stands = (
                run_suite(make_suite("adaptive", threat), model, x, y, paths=gradient_paths(model, x[:8]), seed=start).robust > 0
            )
        left = (start + stands.nonzero().flatten()).tolist()
        seconds = round(time.perf_counter() - started, 1)
        with file.open("a", encoding="utf-8") as lines:
            batch = {"images": len(x), "clean": clean, "stand": len(left), "standing": left, "seconds": seconds}
            lines.write(json.dumps(batch) + "\n")
        print(summary(command), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Command, prog="outside_opinion"))
