"""Checkpoints: a safetensors file and a card (JSON) beside it. Saved, verified, listed and loaded here; never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from purify.architecture import ClassifierConfig, build_classifier
from purify.autoencoder import DenoisingSparseAutoencoder, DSAEConfig
from purify.denoisers import DenoiserConfig, build_denoiser
from purify.normalization import Normalize, NormalizedClassifier

__all__ = [
    "Card",
    "CheckpointError",
    "list_checkpoints",
    "load",
    "load_any",
    "load_classifier",
    "load_denoiser",
    "read_card",
    "save",
]

FOLDER = Path(__file__).resolve().parent / "checkpoints"
Kind = Literal["purifier", "classifier", "denoiser"]
_Config = TypeVar("_Config")


class CheckpointError(ValueError):
    """A checkpoint that is unknown, damaged, or of another kind than asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is written beside the weights."""

    name: str
    kind: Kind
    architecture: dict[str, Any]
    """Fields of ``DSAEConfig``, ``ClassifierConfig`` or ``DenoiserConfig``."""
    image_shape: tuple[int, int, int]
    """(C, H, W) of the training images."""
    mean: tuple[float, ...] = ()
    """Normalisation inside a classifier, in units of [0, 1]; empty for none."""
    std: tuple[float, ...] = ()
    dataset: str = ""
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    wall_seconds: float = 0.0
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was measured when the training ended, on the validation split unless it says otherwise."""
    sha256: str = ""
    """Of the safetensors file."""


def list_checkpoints() -> list[str]:
    """Names of the shipped checkpoints, sorted.

    >>> "digits-dsae" in list_checkpoints()
    True
    """
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def save(module: nn.Module, card: Card, path: str | Path, dtype: torch.dtype = torch.float16) -> Card:
    """Write ``path`` (``*.safetensors``) and the card beside it (``*.json``), both atomically.

    Args:
        module: what is saved; its floating tensors are stored as ``dtype``, those with values beyond its range as they are.
        card: its sha256 is filled in.
        path: of the weights.
        dtype: of the stored weights.

    Returns:
        The card as written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (_shortened(tensor, dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in _network(module).state_dict().items()
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    card = dataclasses.replace(card, sha256=_sha256(partial.read_bytes()))
    partial.replace(path)
    partial.write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", encoding="utf-8")
    partial.replace(path.with_suffix(".json"))
    return card


def _shortened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``, unless that would make infinity of a finite value."""
    short = tensor.to(dtype)
    return short if torch.equal(torch.isfinite(short), torch.isfinite(tensor)) else tensor


def read_card(name: str | Path) -> Card:
    """The card of a shipped checkpoint, or of the one at a path.

    Raises:
        CheckpointError: no such checkpoint (the message lists the known names), or a card that cannot be read.
    """
    path = _locate(name).with_suffix(".json")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("kind") not in get_args(Kind):
            raise CheckpointError(f"the card {path} is of no kind that is known here: {', '.join(get_args(Kind))}")
        for key in ("image_shape", "mean", "std"):
            fields[key] = tuple(fields.get(key, ()))
        return Card(**fields)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {name} has no card: expected {path}") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the card {path} cannot be read: {error}") from error


def load(name: str | Path, *, low_pass: float | None = None) -> DenoisingSparseAutoencoder:
    """Load a purifier in eval mode, float32, verified against its card's sha256.

    Args:
        name: a name from :func:`list_checkpoints`, or the path of a ``*.safetensors`` file.
        low_pass: let it see its images as if they had been shrunk so many times (``DSAEConfig.low_pass``), at least 1; default:
            as it was trained. More of an attack is removed then, and more of the picture.

    Raises:
        CheckpointError: unknown name, damaged or truncated file, a pickle, another architecture, or a classifier.
        ValueError: ``low_pass`` is below 1.

    >>> purifier = load("digits-dsae")
    >>> purifier(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """
    card = _card_of_kind(name, "purifier")
    config = _architecture(DSAEConfig, card, name)
    purifier = DenoisingSparseAutoencoder(config if low_pass is None else dataclasses.replace(config, low_pass=low_pass))
    _fill(purifier, name, card)
    return purifier.eval()


def load_denoiser(name: str | Path) -> nn.Module:
    """Load a dense denoiser (``purify.denoisers``) in eval mode, float32.

    Args:
        name: a name from :func:`list_checkpoints`, or the path of a ``*.safetensors`` file.

    Raises:
        CheckpointError: as for :func:`load`.
    """
    card = _card_of_kind(name, "denoiser")
    denoiser = build_denoiser(_architecture(DenoiserConfig, card, name))
    _fill(denoiser, name, card)
    return denoiser.eval()


def load_classifier(name: str | Path) -> NormalizedClassifier:
    """Load a classifier in eval mode, float32, normalisation inside: images in [0, 1] to logits.

    Args:
        name: a name from :func:`list_checkpoints`, or the path of a ``*.safetensors`` file.

    Raises:
        CheckpointError: as for :func:`load`.
    """
    card = _card_of_kind(name, "classifier")
    model = build_classifier(_architecture(ClassifierConfig, card, name))
    _fill(model, name, card)
    classifier = NormalizedClassifier(model, Normalize(card.mean, card.std) if card.mean else None)
    return classifier.to(memory_format=torch.channels_last).eval()  # a tenth faster on a processor


def load_any(name: str | Path) -> nn.Module:
    """Load what the checkpoint holds: purifier, dense denoiser or classifier, by the kind on its card.

    Raises:
        CheckpointError: as for :func:`load`.
    """
    loaders: dict[str, Callable[[str | Path], nn.Module]] = {
        "purifier": load,
        "denoiser": load_denoiser,
        "classifier": load_classifier,
    }
    return loaders[read_card(name).kind](name)


def _network(module: nn.Module) -> nn.Module:
    """The part whose weights are stored: normalisation is on the card."""
    return module.model if isinstance(module, NormalizedClassifier) else module


def _card_of_kind(name: str | Path, kind: str) -> Card:
    card = read_card(name)
    if card.kind != kind:
        loaders = {
            "classifier": "purify.load_classifier",
            "purifier": "purify.load",
            "denoiser": "purify.checkpoint.load_denoiser",
        }
        other = loaders[card.kind]
        raise CheckpointError(f"checkpoint {name} is a {card.kind}, not a {kind}; load it with {other}")
    return card


def _architecture(config: Callable[..., _Config], card: Card, name: str | Path) -> _Config:
    """The card's architecture as ``config`` describes one, or an error that names the checkpoint."""
    try:
        return config(**card.architecture)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card of {name} describes no architecture that this version knows ({error}): is purify older than it?"
        ) from error


def _locate(name: str | Path) -> Path:
    """Path of the safetensors file."""
    path = Path(name)
    if path.suffix == ".safetensors" or path.is_file():  # a folder of a checkpoint's name does not hide it
        if not path.is_file():
            raise CheckpointError(f"no checkpoint file {path}")
        return path
    shipped = FOLDER / f"{name}.safetensors"
    if not shipped.is_file():
        raise CheckpointError(f"unknown checkpoint {str(name)!r}; known: {', '.join(list_checkpoints()) or 'none'}")
    return shipped


def _fill(module: nn.Module, name: str | Path, card: Card) -> None:
    path = _locate(name)
    raw = path.read_bytes()
    if raw[:2] == b"PK" or raw[:1] == b"\x80":
        raise CheckpointError(f"{path} is a pickle (torch.save); only safetensors files are loaded, since a pickle can run code")
    if _sha256(raw) != card.sha256:
        raise CheckpointError(
            f"{path} does not match its card: sha256 {_sha256(raw)[:12]}… with {len(raw):,} bytes, the card says "
            f"{card.sha256[:12]}…; the file is damaged, cut short or exchanged: fetch it again"
        )
    try:
        tensors = parse_safetensors(raw)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another architecture than its card describes: {error}") from error


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
