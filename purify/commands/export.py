"""``purify export``: a purifier, alone or before a classifier, as a file for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from purify.commands.weights_options import WeightsOptions

__all__ = ["ExportCommand", "export"]


@dataclass(frozen=True, kw_only=True)
class ExportCommand(WeightsOptions):
    """A purifier, alone or before a classifier, as an ONNX graph or a torch.export program for any number of images at once.

    What is written is held against PyTorch on random images first; see docs/deployment.md for how to load it.
    """

    checkpoint: tyro.conf.Positional[str]
    """Name or path of a purifier's checkpoint."""
    model: str | None = None
    """Classifier: name or path of a checkpoint or, with --weights, a name in torchvision.models. Default: none, the purifier
    alone is exported."""
    size: tuple[int, int] | None = None
    """Height and width of the images in pixels. Default: what the classifier was trained on or, without one, the purifier."""
    format: Literal["onnx", "pt2"] = "onnx"
    """onnx: needs the extra of that name; pt2: a program of torch.export."""
    out: Path | None = None
    """File to write; default: runs/export/CHECKPOINT-MODEL.FORMAT."""
    int8: bool = False
    """The purifier's convolutions in int8 (dynamic quantisation, ONNX only): a smaller file, not a faster one."""
    latency: bool = False
    """Measure milliseconds a batch in PyTorch, as pt2 and as ONNX, with and without the purifier, and print the table."""
    repeats: int = 30
    """Rounds of --latency, whose medians it shows."""


def export(command: ExportCommand) -> int:
    """Run ``purify export``."""
    from purify.checkpoint import load_any, read_card
    from purify.classifier import wrap
    from purify.export import export_onnx, export_program
    from purify.latency import latency_table

    if command.int8 and command.format != "onnx":
        raise ValueError(f"--int8 is for --format onnx, got {command.format}")
    command.check_model(command.model)
    card = read_card(command.checkpoint)
    if card.kind == "classifier":
        raise ValueError(f"{command.checkpoint} is a classifier: name a purifier first and the classifier with --model")
    module, shape, name = load_any(command.checkpoint), card.image_shape, Path(command.checkpoint).stem
    classifier = None
    if command.model is not None:
        named = command.named(command.model)
        classifier, shape = named.module, named.image_shape
        if shape[0] != card.image_shape[0]:
            raise ValueError(
                f"{command.checkpoint} purifies images of {card.image_shape[0]} channels, {command.model} takes {shape[0]}"
            )
        module, name = wrap(classifier, module), f"{name}-{Path(command.model).stem}"
    shape = shape if command.size is None else (shape[0], *command.size)
    path = command.out or Path("runs/export") / f"{name}.{command.format}"
    if command.format == "pt2":
        parity = export_program(module, path, shape)
    else:
        part = None if not command.int8 else "purifier" if classifier else ""
        parity = export_onnx(module, path, shape, output="logits" if classifier else "purified", int8=part)
    to = "logits" if classifier else "purified images"
    print(
        f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB): images (N, {_words(shape)}) in [0, 1] to {to} "
        f"(N, {_words(parity.output_shape)})"
    )
    print(f"parity with PyTorch: {parity}")
    if command.latency:
        print(f"\n{latency_table(module, shape, bare=classifier, repeats=command.repeats)}")
    return 0


def _words(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
