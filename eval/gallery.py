"""Pictures of the report: for each image clean, attacked, purified, what was removed, and what the models said."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from purify.attacks import PGD
from purify.classifier import PurifiedClassifier
from purify.eval.judge import Judge

__all__ = ["as_png", "gallery"]


def gallery(judge: Judge, defended: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """One entry an image, as plain values: number, label, tags, and for ``clean``, ``oblivious`` (PGD on the bare classifier) and
    ``adaptive`` (the worst that was found) pictures as PNG in base64 and logits.

    Tags: ``wrong when clean`` (never attacked), ``broken`` (by the adaptive attacker) or ``stands``, ``recovered`` (PGD broke the
    bare classifier, and the purifier brought it back).
    """
    errors = judge.store.errors()
    index = [i for i in range(len(labels)) if i not in errors]
    if not index:
        return []
    x, y = images[index], labels[index]
    attack, generator = PGD(judge.threat, early_stop=False), torch.Generator(device=x.device).manual_seed(judge.seed)
    batches = [slice(start, start + judge.batch_size) for start in range(0, len(x), judge.batch_size)]
    attacked = torch.cat(
        [attack(judge.bare, x[b], y[b], generator=generator, precision=judge.precision).adversarial for b in batches]
    )
    kept = judge.store.pictures((x.shape[1], x.shape[2], x.shape[3]), index)
    worst = torch.stack([kept.get(number, x[row].cpu()) for row, number in enumerate(index)]).to(x)
    fallen: set[int] = set()
    for stage in judge.store.stages():
        if stage.claim == "adaptive":
            fallen |= judge.store.fallen(stage)
    entries = []
    views = {"clean": x, "oblivious": attacked, "adaptive": worst}
    purify = defended.purify if isinstance(defended, PurifiedClassifier) else lambda view: view
    with torch.no_grad():
        purified, bare, own = (
            {name: torch.cat([function(view[b]) for b in batches]) for name, view in views.items()}
            for function in (purify, judge.bare, judge.model)
        )
    for row, number in enumerate(index):
        right = {name: int(own[name][row].argmax()) == int(y[row]) for name in views}
        tags = ["wrong when clean"] if not right["clean"] else ["broken" if number in fallen else "stands"]
        bare_fell = int(bare["clean"][row].argmax()) == int(y[row]) != int(bare["oblivious"][row].argmax())
        if bare_fell and right["oblivious"] and isinstance(defended, PurifiedClassifier):
            tags.append("recovered")
        entries.append(
            {
                "image": number,
                "label": int(y[row]),
                "tags": tags,
                "views": {
                    name: {
                        "attacked": as_png(view[row]),
                        "purified": as_png(purified[name][row]),
                        "removed": as_png(0.5 + 5 * (view[row] - purified[name][row])),
                        "undefended": [round(value, 3) for value in bare[name][row].tolist()],
                        "defended": [round(value, 3) for value in own[name][row].tolist()],
                    }
                    for name, view in views.items()
                },
            }
        )
    return entries


def as_png(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1], cut off where it leaves that, as PNG in base64."""
    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
