"""RobustBench (Croce et al. 2021): its benchmark call on a wrapped model."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from purify.attacks.threat import ThreatModel
from purify.images import check_images, check_labels
from purify.interop.victim import device_of, unchecked

__all__ = ["Benchmarked", "benchmark"]


class Benchmarked(NamedTuple):
    """What RobustBench's benchmark returns."""

    clean: float
    """Clean accuracy, 0 … 1."""
    robust: float
    """Accuracy under AutoAttack's standard version, 0 … 1."""


def benchmark(
    model: nn.Module,
    threat: ThreatModel,
    data: str | tuple[Tensor, Tensor] = "cifar10",
    *,
    n_examples: int = 10_000,
    batch_size: int = 32,
    data_dir: str | Path = "data",
    preprocessing: str | Callable[..., Any] | None = None,
) -> Benchmarked:
    """Run ``robustbench.benchmark``: clean accuracy, and accuracy under the standard version of AutoAttack.

    RobustBench ranks defences whose forward pass is deterministic, whose gradients are in general not zero, and which do not
    optimise at inference: a :class:`purify.DenoisingSparseAutoencoder` in front of a classifier is one.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits, normalisation inside, in eval mode; such as :func:`purify.wrap` gives.
        threat: L∞ or L2.
        data: ``cifar10``, ``cifar100`` or ``imagenet``, which RobustBench loads itself from ``data_dir`` (and downloads, all but
            the last); or images (N, C, H, W) in [0, 1] and labels (N,) of your own.
        n_examples: the first so many images; of ImageNet at most 5,000.
        batch_size: of every pass.
        data_dir: where RobustBench looks for its data.
        preprocessing: RobustBench's name for how ImageNet's images are resized and cropped, such as ``Res256Crop224``.

    Raises:
        ValueError: an L1 threat model, or images or labels that are not what they should be.
        ModuleNotFoundError: robustbench is not installed.
    """
    if threat.norm == "l1":
        raise ValueError(f"RobustBench has L∞ and L2 only, got {threat}")
    theirs = _import_robustbench()
    own: AbstractContextManager[Any] = nullcontext()
    if not isinstance(data, str):
        images, labels = data[0][:n_examples], data[1][:n_examples]
        check_images(images)
        check_labels(labels, images)
        own = mock.patch.object(theirs, "load_clean_dataset", return_value=(images, labels))
    with own, torch.random.fork_rng():  # AutoAttack seeds torch's global stream
        clean, robust = theirs.benchmark(
            unchecked(model),
            dataset=data if isinstance(data, str) else "cifar10",
            threat_model={"linf": "Linf", "l2": "L2"}[threat.norm],
            eps=threat.eps,
            n_examples=n_examples,
            batch_size=batch_size,
            data_dir=str(data_dir),
            device=device_of(model),
            preprocessing=preprocessing,
        )
    return Benchmarked(clean, robust)


def _import_robustbench() -> Any:
    """The module ``robustbench.eval``.

    robustbench 1.1.1 does not import as pip installs it: it depends on ``pyautoattack`` but imports ``autoattack``, which
    PyPI does not have, and it imports ``pkg_resources``, which setuptools dropped in version 82. Where they are missing they
    have stand-ins while it is imported.
    """
    if "robustbench.eval" in sys.modules:
        return sys.modules["robustbench.eval"]
    if find_spec("robustbench") is None:
        raise ModuleNotFoundError("purify.interop.robustbench needs robustbench: pip install 'purify-defense[robustbench]'")
    stand_ins: dict[str, ModuleType] = {}
    if find_spec("autoattack") is None:
        stand_ins |= {"autoattack": _autoattack(), "autoattack.state": importlib.import_module("pyautoattack.state")}
    if find_spec("pkg_resources") is None:
        stand_ins["pkg_resources"] = ModuleType("pkg_resources")
        stand_ins["pkg_resources"].resource_filename = _resource_filename  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its model zoo uses old names of timm's
            return importlib.import_module("robustbench.eval")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _autoattack() -> ModuleType:
    """``autoattack`` by way of ``pyautoattack``, which is the same code behind other names of its arguments."""
    from pyautoattack import AutoAttack as Theirs

    class AutoAttack:
        def __init__(
            self, model: nn.Module, norm: str, eps: float, version: str, device: Any, log_path: str | None = None
        ) -> None:
            self.runner = Theirs(model, norm=norm, eps=eps, version=version, device=device)

        def run_standard_evaluation(self, images: Tensor, labels: Tensor, bs: int, state_path: Path | None = None) -> Tensor:
            found: Tensor = self.runner.run_standard_evaluation(images, labels, batch_size=bs, state_path=state_path)[0]
            return found

    module = ModuleType("autoattack")
    module.AutoAttack = AutoAttack  # type: ignore[attr-defined]
    return module


def _resource_filename(module: str, path: str) -> str:
    return str(Path(sys.modules[module].__file__ or "").parent / path)
