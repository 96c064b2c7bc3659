"""Adversarial training of a purifier: it becomes robust, the classifier stays as it was, and several processes agree."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.architecture import ClassifierConfig, build_classifier
from purify.attacks import APGD, PGD, ThreatModel
from purify.checkpoint import Card, read_card, save
from purify.normalization import Normalize, NormalizedClassifier
from purify.training.attack import training_attack
from purify.training.features import LastFeatures, feature_error
from purify.training.loop import Task, train
from purify.training.recipes import Recipe, RobustRecipe
from purify.training.robust_task import RobustTask
from purify.training.tasks import make_task

SMALL = purify.DSAEConfig(units=16, atom=4, stride=2, width=16, depth=1)
QUICK = RobustRecipe(
    name="quick",
    dataset="digits",
    classifiers=("digits-shufflenet",),
    architecture=SMALL,
    epochs=1,
    batch_size=128,
    eps=0.1,
    pixel_weight=10.0,
    feature_weight=0.1,
    agreement_weight=0.5,
    validation_steps=5,
)

READ = dataclasses.replace(QUICK, code_weight=0.5)
"""With a read-out of the code, which has batch statistics."""


def make(recipe: RobustRecipe) -> tuple[RobustTask, purify.data.ImageSet]:
    training, validation = (purify.load_dataset("digits", split) for split in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation)
    assert isinstance(task, RobustTask)
    return task, training


def stands(purifier: nn.Module, victim: nn.Module, eps: float) -> float:
    images, labels = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    result = PGD(ThreatModel("linf", eps), steps=30)(purify.wrap(victim, purifier), images, labels)
    return float((~result.success).float().mean())


@pytest.mark.usefixtures("quick_commands")
def test_a_purifier_becomes_robust_and_the_classifier_stays_as_it_was(tmp_path: Path, quick_victim: nn.Module) -> None:
    before_training = purify.load("digits-dsae")
    recipe = dataclasses.replace(
        QUICK, epochs=8, eps=0.15, feature_weight=0.0, architecture=before_training.config, warm_start="digits-dsae"
    )
    task, training = make(recipe)
    before = {name: value.clone() for name, value in task.classifiers[0].state_dict().items()}
    path = train(task, recipe, training, tmp_path, quiet=True)
    after = task.classifiers[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in task.classifiers[0].parameters())
    assert stands(purify.load(path), quick_victim, 0.15) > stands(before_training, quick_victim, 0.15) + 0.15
    card = read_card(path)
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert card.figures["val_apgd"] == max(epoch["val_apgd"] for epoch in history)
    assert card.figures["epoch"] in {epoch["epoch"] for epoch in history if epoch["val_apgd"] == card.figures["val_apgd"]}


def test_one_purifier_for_several_classifiers_and_a_warm_start(tmp_path: Path, victim: nn.Module) -> None:
    card = dataclasses.replace(read_card("digits-shufflenet"), name="twin")
    save(victim, card, tmp_path / "twin.safetensors")
    twin = str(tmp_path / "twin.safetensors")
    config = purify.load("digits-dsae").config
    recipe = dataclasses.replace(QUICK, classifiers=("digits-shufflenet", twin), architecture=config, warm_start="digits-dsae")
    task, training = make(recipe)
    assert torch.equal(task.model.purifier.atoms, purify.load("digits-dsae").atoms)
    assert len(task.classifiers) == 2
    path = train(task, recipe, training, tmp_path / "run", quiet=True)
    assert read_card(path).figures["val_clean"] > 0.8  # it began as a good purifier
    with pytest.raises(ValueError, match="warm_start digits-dsae has another architecture"):
        make(dataclasses.replace(recipe, architecture=SMALL))


def test_a_code_that_is_read_robustly_without_a_classifier(tmp_path: Path) -> None:
    config = purify.DSAEConfig(units=24, atom=6, stride=4, encoder="pyramid", width=12, depth=1)
    recipe = dataclasses.replace(
        QUICK,
        classifiers=(),
        label_weight=0.0,
        agreement_weight=0.0,
        feature_weight=0.0,
        code_weight=1.0,
        pixel_weight=100.0,
        architecture=config,
        epochs=16,
        eps=0.1,
    )
    task, training = make(recipe)
    path = train(task, recipe, training, tmp_path, quiet=True)
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(epoch["val_apgd"] for epoch in history) > 0.4  # chance is 0.1, and an undefended read-out leaves nothing
    purifier = purify.load(path)
    assert purifier.config == config
    assert not any(name.startswith("readout") for name in purifier.state_dict())
    assert read_card(path).figures["parameters"] == sum(p.numel() for p in purifier.parameters())
    assert read_card(path).figures["val_explained_variance"] > 0.2  # and the picture is rebuilt beside


@pytest.mark.parametrize(("share", "through_the_classifier"), [(0.0, 2), (1.0, 1)])
def test_a_part_of_the_batches_is_attacked_through_the_code(share: float, through_the_classifier: int) -> None:
    task, training = make(
        dataclasses.replace(QUICK, agreement_weight=0.0, feature_weight=0.0, code_weight=0.5, code_attacked=share)
    )
    batches = []
    task.classifiers[0].register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    loss, shown = task.loss(*training.batch(slice(0, 16)), torch.Generator().manual_seed(0))
    assert batches == [16] * through_the_classifier  # for the loss, and before for the attack's gradient
    assert loss.requires_grad
    assert {"robust", "code"} <= shown.keys()


def test_the_decoder_may_learn_first() -> None:
    config = purify.DSAEConfig(units=24, atom=6, stride=4, encoder="pyramid", width=12, depth=1, global_units=16, global_atom=8)
    task, training = make(dataclasses.replace(QUICK, architecture=config, code_weight=0.5, code_attacked=1.0, decoder_first=0.5))
    assert task.changes_at == 0.5  # where the optimiser starts anew
    purifier = task.model.purifier
    for share, learning in ((0.0, {"atoms", "whole.atoms"}), (0.5, {name for name, _ in purifier.named_parameters()})):
        task.share_done = share
        loss, _ = task.loss(*training.batch(slice(0, 16)), torch.Generator().manual_seed(0))
        task.model.zero_grad()
        loss.backward()
        assert {name for name, p in purifier.named_parameters() if p.grad is not None} == learning
        assert task.model.readout[1].weight.grad is not None
    with pytest.raises(ValueError, match=r"decoder_first must be in \[0, 1\]"):
        dataclasses.replace(QUICK, decoder_first=1.5)
    with pytest.raises(ValueError, match="a tied encoder is its decoder"):
        dataclasses.replace(QUICK, decoder_first=0.5, architecture=dataclasses.replace(SMALL, encoder="tied"))


def test_a_classifier_that_is_given_takes_the_place_of_the_recipes() -> None:
    victim = purify.load_classifier("digits-shufflenet")
    recipe = dataclasses.replace(QUICK, classifiers=("squeezenet1_0",))
    with pytest.raises(ValueError, match="not shipped: give it with --model squeezenet1_0 --weights FILE"):
        make(recipe)
    training, validation = (purify.load_dataset("digits", split) for split in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation, victim)
    assert isinstance(task, RobustTask)
    assert task.classifiers == [victim]
    assert not any(parameter.requires_grad for parameter in victim.parameters())


def test_bad_recipes_are_told_in_words(tmp_path: Path, victim: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least one classifier"):
        dataclasses.replace(QUICK, classifiers=())
    with pytest.raises(ValueError, match="or a code_weight above 0"):
        dataclasses.replace(QUICK, classifiers=(), label_weight=0.0, agreement_weight=0.0, feature_weight=0.0)
    with pytest.raises(ValueError, match="must be above 0"):
        dataclasses.replace(QUICK, label_weight=0.0, agreement_weight=0.0, feature_weight=0.0)
    with pytest.raises(ValueError, match="code_attacked needs a code_weight"):
        dataclasses.replace(QUICK, code_attacked=0.5)
    with pytest.raises(ValueError, match=r"architecture\.channels is 3, but data set digits has 1"):
        make(dataclasses.replace(QUICK, architecture=dataclasses.replace(SMALL, channels=3)))
    with pytest.raises(
        ValueError, match="does not take the images of digits, 1 channels of 8×8: expected images with 3 channels"
    ):
        make(dataclasses.replace(QUICK, classifiers=("cifar10-resnet18",)))
    card = read_card("digits-shufflenet")
    config = ClassifierConfig(**{**card.architecture, "classes": 7})
    seven = dataclasses.replace(card, architecture=dataclasses.asdict(config))
    save(NormalizedClassifier(build_classifier(config), Normalize((0.5,), (0.5,))), seven, tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match="knows 7 classes, data set digits has 10"):
        make(dataclasses.replace(QUICK, classifiers=(str(tmp_path / "seven.safetensors"),)))
    with pytest.raises(ValueError, match="with a linear or convolutional layer"):
        LastFeatures(nn.Flatten())
    with pytest.raises(ValueError, match="took no part"):
        feature_error(torch.empty(0), torch.empty(0))


# ---- the attack that is learnt from


def test_noise_fgsm_is_its_formula(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    threat = ThreatModel("linf", 0.05)
    found = training_attack(toy, x, y, threat, 1, torch.Generator().manual_seed(4))
    start = (x + torch.empty_like(x).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(4))).clamp(0, 1)
    at = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(toy(at), y, reduction="sum"), at)
    torch.testing.assert_close(found, (start + 0.05 * gradient.sign()).clamp(0, 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_stay_in_the_ball_and_raise_the_loss(norm: str, toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 0.5)  # type: ignore[arg-type]
    found = training_attack(toy, x, y, threat, 7, torch.Generator().manual_seed(0))
    threat.verify(found, x)
    losses = [torch.nn.functional.cross_entropy(toy(images), y) for images in (x, found)]
    assert losses[1] > losses[0]


def test_eps_grows_and_the_last_steps_are_longer() -> None:
    task, _ = make(dataclasses.replace(QUICK, growing=0.5, final=0.2, final_steps=4))
    seen = []
    for share in (0.0, 0.25, 0.5, 0.79, 0.81):
        task.share_done = share
        seen.append((task.threat.eps, task.steps))
    assert seen == [(0.0, 1), (0.05, 1), (0.1, 1), (0.1, 1), (0.1, 4)]


# ---- the loop


class Waning(Task):
    """Gets better until its second epoch, then worse: its weight says how many steps were taken."""

    criterion: str | None = "val_figure"

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.validated = 0

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.model.weight.sum() + 0 * images.sum(), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        self.validated += 1
        return {"val_figure": [0.2, 0.9, 0.5][self.validated - 1], "weight": model.weight.item()}

    def card(self, model: nn.Module) -> Card:
        return Card(name="waning", kind="purifier", architecture={}, image_shape=(1, 8, 8))


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    recipe = Recipe(name="waning", dataset="digits", epochs=3, ema_decay=0.0)
    path = train(Waning(), recipe, purify.load_dataset("digits", "train").first(256), tmp_path, quiet=True)
    figures, history = read_card(path).figures, [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (figures["epoch"], figures["val_figure"]) == (2, 0.9)
    from safetensors.torch import load_file

    assert float(load_file(path)["weight"]) == pytest.approx(history[1]["weight"], rel=1e-3)
    assert history[1]["weight"] != history[2]["weight"]


def test_or_the_last_one(tmp_path: Path) -> None:
    recipe, task = Recipe(name="waning", dataset="digits", epochs=3, ema_decay=0.0), Waning()
    task.criterion = None
    path = train(task, recipe, purify.load_dataset("digits", "train").first(256), tmp_path, quiet=True)
    assert read_card(path).figures["val_figure"] == 0.5
    assert make(dataclasses.replace(QUICK, keep_last=True))[0].criterion is None
    assert make(QUICK)[0].criterion == "val_apgd"


_TOGETHER = """
import dataclasses, sys
import pytest, torch
sys.path.insert(0, sys.argv[1])
from conftest import classify_quickly
from test_robust_training import READ, make
from purify.training import distributed
from purify.training.loop import train
classify_quickly(pytest.MonkeyPatch())
task, training = make(dataclasses.replace(READ, epochs=int(sys.argv[3])))
train(task, task.recipe, training.first(300), sys.argv[2], quiet=True)
assert distributed.world_size() == 2
torch.save(task.model.state_dict(), f"{sys.argv[2]}/weights.{distributed.rank()}.pt")
"""


@pytest.mark.usefixtures("quick_commands")
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    """By ``torchrun``, gloo: 300 images in batches of 128, the last of them of odd size."""
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER, encoding="utf-8")
    here, folder = str(Path(__file__).parent), tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), here]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, str(folder), "2"], check=True, env=environment, capture_output=True, timeout=300)
    first, second = (torch.load(folder / f"weights.{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    history = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [1, 2]  # the first process alone wrote
    assert purify.load(folder / "quick.safetensors").config == SMALL

    alone, training = make(dataclasses.replace(READ, epochs=2))
    train(alone, alone.recipe, training.first(300), tmp_path / "alone", quiet=True)
    start, _ = make(READ)
    moved = (alone.model.purifier.atoms - start.model.purifier.atoms).flatten()
    together = (first["purifier.atoms"] - start.model.purifier.atoms).flatten()
    assert (
        float(torch.nn.functional.cosine_similarity(moved.detach(), together.detach(), dim=0)) > 0.6
    )  # the same descent, with other noise


# ---- a purifier where it was not trained to be


def test_before_a_classifier_with_other_classes_another_size_or_other_channels(purifier: nn.Module) -> None:
    """Classes are the classifier's affair; any size is purified; other channels are refused in words."""
    seven = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 7)).eval()
    defended = purify.wrap(seven, purifier)
    for side in (8, 28, 33):
        images = torch.rand(2, 1, side, side + 1)
        assert defended(images).shape == (2, 7)
        assert defended.purify(images).shape == images.shape
    colour = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7)).eval()
    with pytest.raises(ValueError, match=r"expected images \(N, 1, H, W\), got shape \(2, 3, 8, 8\)"):
        purify.wrap(colour, purifier)(torch.rand(2, 3, 8, 8))


def test_the_shipped_robust_purifier_holds_on_mnist(mnist_test: purify.data.ImageSet) -> None:
    """Against an attacker who knows it, within the noise of 24 images; the one that only denoises falls."""
    x, y = mnist_test.first(24).batch(slice(None))
    victim = purify.load_classifier("mnist-resnet18")
    attack = APGD(ThreatModel("linf", 0.3), steps=15)
    standing = {}
    for name in ("mnist-dsae", "mnist-dsae-robust"):
        result = attack(purify.wrap(victim, name), x, y, generator=torch.Generator().manual_seed(0))
        standing[name] = float((~result.success).float().mean())
    assert standing["mnist-dsae-robust"] > 0.85
    assert standing["mnist-dsae"] < 0.3
