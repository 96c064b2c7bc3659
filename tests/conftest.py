"""Shared fixtures. Data beyond the embedded digits is used where it is and otherwise skipped with the reason."""

from __future__ import annotations

import copy
import functools
import importlib
import multiprocessing
import os
from importlib.util import find_spec
from multiprocessing.context import ForkServerContext
from pathlib import Path

import hypothesis
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

import purify
from purify.attacks import FMN, PGD
from purify.attacks.suite import SUITES, Entry
from purify.commands import named_classifier
from purify.cost import milliseconds_per_image
from purify.data import ImageSet
from purify.eval import curves, judge, tables
from purify.normalization import NormalizedClassifier
from purify.training import frozen

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no error of the code
hypothesis.settings.load_profile("patient")

evaluate = importlib.import_module("purify.eval.evaluate")  # `from purify.eval import evaluate` is the function
gallery = importlib.import_module("purify.eval.gallery")
ROOT = Path(__file__).resolve().parent.parent
DATA = os.environ.get("PURIFY_DATA")  # as the tests began: some of them take it away


def data_root() -> Path | None:
    """``PURIFY_DATA``, else a folder ``shared/data`` beside the checkout, else None."""
    beside = ROOT.parent / "shared" / "data"
    return Path(DATA) if DATA else beside if beside.exists() else None


def need(path: str, how: str = "") -> Path:
    """A file or folder of the data root, or skip, saying ``how`` to get it."""
    root = data_root()
    if root is None:
        pytest.skip(f"no {path}: set PURIFY_DATA to a folder that holds it{how and f' ({how})'}")
    if not (root / path).exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{root} lacks {path}: in continuous integration nothing is skipped for want of data")
        pytest.skip(f"{root} lacks {path}{how and f' ({how})'}")
    return root / path


def need_library(name: str) -> None:
    """Skip unless it is installed; robustbench cannot be imported to find out."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def shorten_attacks(patch: pytest.MonkeyPatch) -> None:
    """Attacks take few steps and ask little: for tests in which their verdicts do not matter."""
    patch.setattr(evaluate, "Examination", functools.partial(evaluate.Examination, queries=20))
    patch.setattr(judge, "FMN", functools.partial(FMN, steps=3))
    for module in (curves, gallery):
        patch.setattr(module, "PGD", functools.partial(PGD, steps=3))
    patch.setattr(evaluate, "milliseconds_per_image", functools.partial(milliseconds_per_image, repeats=2))
    for name in ("fast", "adaptive"):
        patch.setitem(SUITES, name, ("three steps", lambda threat, _: (Entry("PGD-3", PGD(threat, steps=3)),)))


@pytest.fixture
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """See :func:`shorten_attacks`."""
    shorten_attacks(monkeypatch)


@pytest.fixture
def unsaved_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit's figures are painted, but neither laid out nor written, which would take longer than all else."""
    monkeypatch.setattr(Figure, "tight_layout", lambda figure: None)
    monkeypatch.setattr(Figure, "savefig", lambda figure, buffer, **options: buffer.write("<svg ></svg>"))


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that have imported everything already: new ones in all other respects, for a hundredth of the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["purify.cli", "purify.eval.tables", "purify.eval.html", "pytest", "hypothesis", "sklearn"])
    return context


@pytest.fixture(scope="session")
def mnist_test() -> ImageSet:
    need("mnist")
    return purify.load_dataset("mnist", "test", data_root=data_root())


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The first 120 test digits: images (120, 1, 8, 8) and labels."""
    return purify.load_dataset("digits", "test").first(120).batch(slice(None))


@pytest.fixture(scope="session")
def victim() -> nn.Module:
    return purify.load_classifier("digits-shufflenet")


@pytest.fixture(scope="session")
def purifier() -> purify.DenoisingSparseAutoencoder:
    return purify.load("digits-dsae")


@pytest.fixture(scope="session")
def defended(quick_victim: nn.Module) -> purify.PurifiedClassifier:
    """The shipped purifier of digits before the quick classifier."""
    return purify.wrap(quick_victim, "digits-dsae")


@functools.cache
def quick_classifier() -> nn.Module:
    """Of digits, 99 % right and fifty times as fast as the shipped one: random features, ridge regression."""
    images, labels = purify.load_dataset("digits", "train").batch(slice(None))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        features, head = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten()), nn.Linear(576, 10)
    with torch.no_grad():
        ridge = RidgeClassifier(1.0).fit(features(images).numpy(), labels.numpy())
        head.weight.copy_(10 * torch.from_numpy(ridge.coef_))
        head.bias.copy_(10 * torch.from_numpy(ridge.intercept_))
    return nn.Sequential(features, head).eval()


@pytest.fixture(scope="session")
def quick_victim() -> nn.Module:
    """See :func:`quick_classifier`."""
    return quick_classifier()


def classify_quickly(patch: pytest.MonkeyPatch) -> None:
    """Commands, tables and trainings take a copy of the quick classifier in the place of the one that they name: what other tests
    leave in it (gradients), and what these do to it, stays apart."""
    for module in (named_classifier, tables, frozen):
        patch.setattr(module, "load_classifier", lambda _: NormalizedClassifier(copy.deepcopy(quick_classifier())))


@pytest.fixture
def quick_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """See :func:`classify_quickly`."""
    classify_quickly(monkeypatch)


@pytest.fixture
def toy() -> nn.Module:
    """A small smooth classifier of 1×8×8 images, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 10))
    return model.eval()
