"""``purify clean``: one picture, purified."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from torch import Tensor

from purify.commands.named_classifier import NamedClassifier
from purify.commands.weights_options import WeightsOptions

__all__ = ["CleanCommand", "Verdict", "clean", "suitable_purifier"]

_PHOTOGRAPHS = 64
"""A purifier that was trained on images of this side or more is taken for one of photographs, of any size."""


@dataclass(frozen=True, kw_only=True)
class CleanCommand(WeightsOptions):
    """Purify one picture, of any kind and size; large ones tile by tile."""

    picture: tyro.conf.Positional[Path]
    """JPEG, PNG, TIFF, WebP, GIF (its first frame), …: grey or colour, turned upright, transparency laid over white."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Where the purified picture goes: grey or RGB, 8 bits a channel, as large as the picture. A PNG keeps every pixel."""
    purifier: str = ""
    """Name or path of a purifier's checkpoint; default: the shipped one that suits the picture's channels and size."""
    report: bool = False
    """Draw the picture, the purified one and what was removed ×10 into a PNG beside it (OUT.report.png)."""
    model: str = ""
    """Predictions before and after: name of a torchvision classifier, or name or path of a classifier's checkpoint."""
    tile: int = 512
    """Side in pixels of the tiles of large pictures."""


@dataclass(frozen=True)
class Verdict:
    """What a classifier says of one picture."""

    names: tuple[str, ...]
    """Of the likeliest classes, likeliest first."""
    logits: tuple[float, ...]
    margin: float
    """Logit of the first class minus that of the second; the true class is not known here."""

    def __str__(self) -> str:
        others = ", ".join(f"{name} {logit:.2f}" for name, logit in zip(self.names, self.logits, strict=True))
        return f"{self.names[0]}, margin {self.margin:+.2f} ({others})"


def clean(command: CleanCommand) -> int:
    """Run ``purify clean``."""
    from purify.checkpoint import load, load_denoiser, read_card
    from purify.commands.clean_report import save_clean_report
    from purify.picture import picture_to_tensor, read_picture, tensor_to_picture
    from purify.tiling import purify_in_tiles

    _check(command)
    pixels = picture_to_tensor(read_picture(command.picture))
    if len(pixels) == 3 and torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2]):
        pixels = pixels[:1]  # all grey, whatever the file calls it
    judge = _judge(command.named(command.model)) if command.model else None
    name = command.purifier or suitable_purifier(*pixels.shape)
    card = read_card(name)
    purifier = load_denoiser(name) if card.kind == "denoiser" else load(name)
    purified = purify_in_tiles(purifier, _with_channels(pixels, card.image_shape[0], name)[None], tile=command.tile)[0]
    if len(purified) > len(pixels):
        purified = purified.float().mean(0, keepdim=True).round().to(torch.uint8)
    before, after = tensor_to_picture(pixels), tensor_to_picture(purified)
    after.save(command.out)

    height, width = pixels.shape[1:]
    removed = torch.maximum(pixels, purified) - torch.minimum(pixels, purified)  # in bytes: large pictures have many
    print(f"{command.picture}: {width}×{height}, {'grey' if len(pixels) == 1 else 'colour'}, purified by {name}")
    print(f"removed: {int(removed.sum()) / removed.numel():.2f} of 255 on average, {removed.max()} at most")
    verdicts = None if judge is None else (judge(before), judge(after))
    if verdicts is not None:
        print(f"{command.model} before: {verdicts[0]}\n{command.model} after:  {verdicts[1]}")
    written = [command.out]
    if command.report:
        title = f"{command.picture.name}, {width}×{height}, purified by {Path(name).stem}"
        written.append(save_clean_report(command.out.with_suffix(".report.png"), title, pixels, purified, verdicts))
    print(f"wrote {', '.join(str(path) for path in written)}")
    return 0


def suitable_purifier(channels: int, height: int, width: int) -> str:
    """The shipped purifier whose training images had the same channels as a picture, and the size closest to its own.

    One trained on images of 64 pixels or more is taken for one of photographs, which serves any size; one trained on smaller
    images serves pictures of up to twice their side. A purifier of colour serves grey pictures too, where none of grey does.

    Raises:
        ValueError: none suits; the message lists those that are shipped.

    >>> suitable_purifier(1, 8, 8)
    'digits-dsae'
    """
    from purify.checkpoint import list_checkpoints, read_card

    cards = [card for card in map(read_card, list_checkpoints()) if card.kind == "purifier"]
    side, found = max(height, width), []
    for card in cards:
        own = max(card.image_shape[1:])
        if card.image_shape[0] in (channels, 3) and (own >= _PHOTOGRAPHS or side <= 2 * own):
            preference = (card.image_shape[0] != channels, abs(math.log(side / own)), len(card.name))
            found.append((preference, card.name))
    if not found:
        shipped = ", ".join(f"{card.name} ({'×'.join(str(n) for n in card.image_shape)})" for card in cards)
        raise ValueError(
            f"no shipped purifier suits a picture of {channels}×{height}×{width} (channels, height, width); shipped: "
            f"{shipped or 'none'}; give the name or path of one with --purifier (`purify train --data …` makes one)"
        )
    return min(found)[1]


def _check(command: CleanCommand) -> None:
    """Before any work is done: can what comes out be written?"""
    command.check_model(command.model)
    known = Image.registered_extensions()
    if known.get(command.out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"expected an output file that ends with .png or another picture format's ending, got {command.out}")
    written = [command.out, *([command.out.with_suffix(".report.png")] if command.report else [])]
    if command.picture.resolve() in [path.resolve() for path in written]:
        raise ValueError(f"the purified picture would overwrite {command.picture}; give another file with -o")
    command.out.parent.mkdir(parents=True, exist_ok=True)


def _with_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    if len(pixels) == channels:
        return pixels
    if len(pixels) == 1:
        return pixels.expand(channels, -1, -1)
    raise ValueError(
        f"the purifier {name} takes grey pictures and this one is in colour; make it grey first, or give another one"
    )


def _judge(named: NamedClassifier) -> Callable[[Image.Image], Verdict]:
    """From a picture to what the classifier says of it."""

    def judge(picture: Image.Image) -> Verdict:
        with torch.no_grad():
            logits = named.module(named.preprocess(picture))[0]
        top = logits.topk(min(5, len(logits)))
        known = len(named.categories) == len(logits)
        names = named.categories if known else [f"class {index}" for index in range(len(logits))]
        margin = float(top.values[0] - top.values[1]) if len(logits) > 1 else math.inf
        return Verdict(tuple(names[int(i)] for i in top.indices), tuple(float(v) for v in top.values), margin)

    return judge
