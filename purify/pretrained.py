"""Torchvision classifiers with weights from a file or from torchvision, ready to stand behind a purifier."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from purify.normalization import Normalize, NormalizedClassifier, PerChannel

__all__ = ["load_torchvision"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TRANSFORM = ("googlenet", "inception_v3")
"""Torchvision's own weights of these expect that ImageNet's normalisation is turned into theirs inside."""


def load_torchvision(
    model: str, weights: str | Path, *, mean: PerChannel | None = None, std: PerChannel | None = None
) -> NormalizedClassifier:
    """A torchvision classifier in eval mode, normalisation inside: images (N, 3, H, W) in [0, 1] to logits (N, classes).

    The number of classes is what the file holds. googlenet and inception_v3 get ``transform_input=True``, as torchvision's own
    weights and what is fine-tuned from them need it, unless ``mean`` and ``std`` are others than ImageNet's.

    Args:
        model: name in ``torchvision.models``.
        weights: a state dict (``*.safetensors``, or a ``torch.save`` file without code), or the name of one of torchvision's
            own weights such as ``DEFAULT``, which torchvision downloads.
        mean: normalisation with which the weights were trained, in units of [0, 1]; None: that of the model's own torchvision
            weights.
        std: see ``mean``.

    Warns:
        UserWarning: weights of googlenet or inception_v3 for other than 1,000 classes: that they were fine-tuned from
            torchvision's is assumed.

    Raises:
        ValueError: unknown model or weights, a state dict of another model, or ``mean`` without ``std`` or the reverse.
        FileNotFoundError: no such file.

    >>> load_torchvision("resnet18", "nowhere.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: no weights file nowhere.safetensors
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
    given = None if mean is None or std is None else Normalize(mean, std)
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise ValueError(f"torchvision has no classifier {model!r}; known: {', '.join(known)}")
    shipped = torchvision.models.get_model_weights(model)
    path = Path(weights)
    if path.suffix:
        if not path.exists():
            raise FileNotFoundError(f"no weights file {path}")
        network: nn.Module = _from_file(model, path, transform=given is None or repr(given) == repr(Normalize(*_IMAGENET)))
        transform = next(iter(shipped)).transforms()
    else:
        if str(weights) not in shipped.__members__:
            names = ", ".join(shipped.__members__)
            raise ValueError(f"expected a weights file or one of {names} for {model}, got {str(weights)!r}")
        chosen = shipped[str(weights)]
        network, transform = torchvision.models.get_model(model, weights=chosen), chosen.transforms()
    if given is None:
        given = Normalize(getattr(transform, "mean", _IMAGENET[0]), getattr(transform, "std", _IMAGENET[1]))
    return NormalizedClassifier(network, given).eval()


def _from_file(model: str, path: Path, transform: bool) -> nn.Module:
    safe = path.suffix == ".safetensors"
    try:
        state: dict[str, Tensor] = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:  # its own message advises to run the code that such a file may hold
        raise ValueError(f"{path} cannot be read as a state dict: it is damaged, or holds code beside tensors") from error
    except Exception as error:  # torch.load raises nearly anything on files that are not its own
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a state dict: {said}") from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict: expected names and tensors")
    classes = _classes(model, state)
    network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=classes, **_options(model, transform))
    expected = network.state_dict()
    needed = {n: v for n, v in expected.items() if not n.startswith(_AUXILIARY) and not n.endswith("num_batches_tracked")}
    lacking = [n for n, v in needed.items() if n not in state or state[n].shape != v.shape]
    if lacking:
        more = f", nor {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise ValueError(f"{path} does not hold the weights of {model}: it has no {lacking[0]} of its shape{more}")
    if surplus := [n for n in state if n not in expected and not n.startswith(_AUXILIARY)]:
        more = f" and {len(surplus) - 1} others" if len(surplus) > 1 else ""
        raise ValueError(f"{path} holds the weights of another model than {model}, which has no {surplus[0]}{more}")
    for name in expected:  # filled in place: some models read versions from the dictionary itself
        if name in state and state[name].shape == expected[name].shape:  # a head for training may know other classes
            expected[name] = state[name].float() if state[name].is_floating_point() else state[name]
    network.load_state_dict(expected)
    if getattr(network, "transform_input", False) and classes != 1000:
        warnings.warn(
            f"{path} is taken for fine-tuned from torchvision's own {model}, with transform_input=True; if it was trained "
            "otherwise, model.model.transform_input = False on what load_torchvision gives undoes that, or give mean and std",
            UserWarning,
            stacklevel=3,
        )
    return network


_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that serve the training of googlenet and inception_v3 only, and may be absent."""


def _options(model: str, transform: bool) -> dict[str, bool]:
    return {"transform_input": transform, "init_weights": False} if model in _TRANSFORM else {}


def _classes(model: str, state: dict[str, Tensor]) -> int:
    """How many the state dict knows: the length of the parameter that alone depends on their number."""
    with torch.device("meta"):
        one, other = (torchvision.models.get_model(model, weights=None, num_classes=n).state_dict() for n in (3, 5))
    changes = [n for n, value in one.items() if value.shape != other[n].shape and not n.startswith(_AUXILIARY)]
    return len(state[changes[-1]]) if changes and changes[-1] in state else 1000
