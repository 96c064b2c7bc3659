"""Training: what it learns, that it resumes with the same result however it was stopped, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from conftest import classify_quickly
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel
from purify.checkpoint import load_denoiser, read_card
from purify.cli import main
from purify.cost import count_macs
from purify.denoisers import build_denoiser
from purify.training.catalogue import find_recipe, list_recipes, register
from purify.training.loop import TrainingInterruptedError, train
from purify.training.recipes import ClassifierRecipe, DenoiserRecipe, PurifierRecipe, Recipe, RobustRecipe
from purify.training.tasks import DenoisingTask, PurifierTask, make_task


def short(name: str = "digits-dsae", **changes: object) -> Recipe:
    """A recipe cut down to seconds."""
    defaults: dict[str, object] = {"epochs": 3, "batch_size": 256}
    if name == "digits-dsae":
        defaults |= {"attack_steps": 1, "architecture": purify.DSAEConfig(units=8, atom=4, stride=2, width=8, depth=1)}
    return dataclasses.replace(find_recipe(name), **{**defaults, **changes})


def run(recipe: Recipe, folder: Path) -> Path:
    training, validation = (purify.load_dataset(recipe.dataset, s) for s in ("train", "val"))  # type: ignore[arg-type]
    return train(make_task(recipe, training, validation), recipe, training, folder, quiet=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of an uninterrupted three-epoch run of the purifier."""
    with pytest.MonkeyPatch.context() as patch:
        classify_quickly(patch)
        return run(short(), tmp_path_factory.mktemp("unbroken")).read_bytes()


@pytest.mark.usefixtures("quick_commands")
def test_same_seed_same_weights(unbroken: bytes, tmp_path: Path) -> None:
    assert run(short(), tmp_path / "again").read_bytes() == unbroken
    assert run(short(seed=1), tmp_path / "other").read_bytes() != unbroken


@pytest.mark.usefixtures("quick_commands")
def test_global_random_stream_is_left_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run(short(epochs=1), tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def _train(pause: float, *arguments: str) -> None:
    """The command line, for a process of its own, with ``pause`` seconds before every step."""
    patch, loss = pytest.MonkeyPatch(), PurifierTask.loss
    classify_quickly(patch)
    patch.setattr(PurifierTask, "loss", lambda *given: (time.sleep(pause), loss(*given))[1])
    sys.exit(main(["train", *arguments]))


def test_kill_9_then_the_same_command(unbroken: bytes, tmp_path: Path, processes: ForkServerContext) -> None:
    command = ("digits-dsae", "--epochs", "3", "--batch-size", "256", "--attack-steps", "1", "--units", "8", "--width", "8")
    command += ("--depth", "1", "--out", str(tmp_path), "--quiet")
    first, second = (processes.Process(target=_train, args=(pause, *command)) for pause in (0.3, 0))
    first.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.join()
    assert (tmp_path / "state.pt").exists()
    assert not (tmp_path / "digits-dsae.safetensors").exists()
    second.start()
    second.join()
    assert second.exitcode == 0
    assert (tmp_path / "digits-dsae.safetensors").read_bytes() == unbroken
    assert len((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.usefixtures("quick_commands")
def test_sigint_saves_in_the_middle_of_an_epoch(unbroken: bytes, tmp_path: Path) -> None:
    recipe = short()
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation)
    assert isinstance(task, PurifierTask)
    steps, real, before = 0, task.loss, signal.getsignal(signal.SIGINT)

    def loss(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal steps
        steps += 1
        if steps == 7:  # 5 batches an epoch: the second of the second epoch
            signal.raise_signal(signal.SIGINT)
        return real(images, labels, generator)

    task.loss = loss  # type: ignore[method-assign]
    with pytest.raises(TrainingInterruptedError, match="epoch 2 after 2 of 5 batches.*the same command goes on"):
        train(task, recipe, training, tmp_path, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert run(recipe, tmp_path).read_bytes() == unbroken


@pytest.mark.usefixtures("quick_commands")
def test_optimiser_and_schedule_start_anew_where_the_loss_changes(tmp_path: Path) -> None:
    """Also in a run that was stopped exactly there."""
    recipe = short(epochs=2, pixels_first=0.5)  # five batches of pictures alone, then five with the classifier
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    unbroken = run(recipe, tmp_path / "unbroken").read_bytes()
    optimizer = torch.load(tmp_path / "unbroken" / "state.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {5}
    assert 0 < optimizer["param_groups"][0]["lr"] < recipe.learning_rate

    task, steps = make_task(recipe, training, validation), 0
    real = task.loss

    def loss(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(signal.SIGINT)
        return real(images, labels, generator)

    task.loss = loss  # type: ignore[method-assign]
    with pytest.raises(TrainingInterruptedError):
        train(task, recipe, training, tmp_path / "broken", quiet=True)
    assert run(recipe, tmp_path / "broken").read_bytes() == unbroken
    with pytest.raises(ValueError, match="pixels_first must be in"):
        short(pixels_first=2.0)


@pytest.mark.usefixtures("quick_commands")
def test_works_outside_the_main_thread(unbroken: bytes, tmp_path: Path) -> None:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(run(short(), tmp_path).read_bytes()))
    thread.start()
    thread.join()
    assert found == [unbroken]


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    run(short(epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(learning_rate: 0.002 there, 0.01 here\)"):
        run(short(epochs=1, learning_rate=0.01), tmp_path)


@pytest.mark.usefixtures("quick_commands")
def test_divergence_stops_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    recipe = short()
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation)
    steps, real = 0, task.loss

    def loss(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal steps
        steps += 1
        value, shown = real(images, labels, generator)
        return (value * float("nan") if steps == 7 else value), shown

    task.loss = loss  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="nan in epoch 2, batch 2.*learning_rate"):
        train(task, recipe, training, tmp_path, quiet=True)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["position"][0] == 1


def test_classifier_learns_and_its_card_says_how(tmp_path: Path) -> None:
    path = run(short("digits-shufflenet", epochs=5, batch_size=64), tmp_path)
    card = read_card(path)
    assert card.kind == "classifier"
    assert card.figures["val_accuracy"] > 0.35  # of ten classes
    assert card.recipe["epochs"] == 5
    assert card.seed == 0
    assert card.dataset == "digits"
    assert card.wall_seconds > 0
    assert "torch" in card.versions
    logits = purify.load_classifier(path)(torch.rand(2, 1, 8, 8))
    assert logits.shape == (2, 10)


def test_a_classifier_may_learn_from_the_validation_split_too(tmp_path: Path) -> None:
    out = tmp_path / "all"
    command = ["train", "digits-shufflenet", "--epochs", "1", "--batch-size", "64", "--quiet", "--out", str(out)]
    assert main([*command, "--no-held-out"]) == 0
    train_images, held_out = (len(purify.load_dataset("digits", split)) for split in ("train", "val"))
    steps = torch.load(out / "state.pt", weights_only=True)["position"][2]
    assert steps == -(-(train_images + held_out) // 64) > -(-train_images // 64)
    card = read_card(out / "digits-shufflenet.safetensors")
    assert card.recipe["held_out"] is False
    assert not [name for name in card.figures if name.startswith("val_")]  # they would be of images that it has learnt


@pytest.mark.usefixtures("quick_commands")
def test_purifier_learns(tmp_path: Path) -> None:
    path = run(dataclasses.replace(find_recipe("digits-dsae"), epochs=6, batch_size=64, attack_steps=3), tmp_path)
    figures = read_card(path).figures
    assert figures["val_oblivious_undefended"] < 0.05
    assert figures["val_oblivious_pgd"] > 0.35
    assert figures["val_explained_variance"] > 0.4
    assert figures["val_density"] < 0.5


def test_the_classifier_stays_frozen(tmp_path: Path) -> None:
    recipe = short(epochs=1)
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation)
    assert isinstance(task, PurifierTask)
    before = {k: v.clone() for k, v in task.classifier.state_dict().items()}
    train(task, recipe, training, tmp_path, quiet=True)
    assert all(torch.equal(before[k], v) for k, v in task.classifier.state_dict().items())


@pytest.mark.parametrize("name", ["digits-dsae", "digits-dense"])
def test_the_classifier_is_not_asked_while_pictures_alone_are_learnt(name: str) -> None:
    recipe = short(name, pixels_first=0.5)
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training, validation)
    assert isinstance(task, DenoisingTask)
    asked = []
    task.classifier.register_forward_hook(lambda *_: asked.append(1))
    for share, expected in ((0.0, False), (0.49, False), (0.5, True)):
        task.share_done = share
        loss, _ = task.loss(*training.batch(slice(0, 8)), torch.Generator().manual_seed(0))
        loss.backward()  # type: ignore[no-untyped-call]
        assert bool(asked) is expected


def test_disagreement_is_its_formula() -> None:
    torch.manual_seed(0)
    front, last = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU()), nn.Conv2d(5, 10, 1)  # as SqueezeNet ends
    classifier = nn.Sequential(front, last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(short(agreement_weight=3.0, feature_weight=2.0), training, validation, classifier)
    assert isinstance(task, DenoisingTask)
    x, purified = training.batch(slice(0, 6))[0], torch.rand(6, 1, 8, 8, requires_grad=True)
    found = task.disagreement(x, purified)
    p, q = (classifier(images).softmax(1).detach() for images in (x, purified))
    agreement = (p * (p / q).log()).sum(1).mean()
    a, b = front(purified).detach(), front(x).detach()
    assert found.item() == pytest.approx(float(3 * agreement + 2 * (a - b).norm() ** 2 / b.norm() ** 2), rel=1e-4)
    found.backward()  # type: ignore[no-untyped-call]
    assert purified.grad is not None
    assert purified.grad.abs().sum() > 0
    assert all(p.grad is None for p in classifier.parameters())


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    """No batch statistics can be taken of it."""
    recipe = dataclasses.replace(find_recipe("digits-shufflenet"), name="odd", epochs=1, batch_size=32)  # type: ignore[call-arg]
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    task = make_task(recipe, training.first(33), validation)
    sizes: list[int] = []
    real = task.loss

    def loss(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        sizes.append(len(images))
        return real(images, labels, generator)

    task.loss = loss  # type: ignore[method-assign]
    train(task, recipe, training.first(33), tmp_path, quiet=True)
    assert sizes == [32]


@pytest.mark.parametrize("momentum", [True, False])
def test_optimizers(momentum: bool) -> None:
    from purify.training.loop import _optimizer

    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    made = _optimizer(model, short(optimizer="sgd" if momentum else "adamw", learning_rate=0.3, weight_decay=0.01))
    assert [group["weight_decay"] for group in made.param_groups] == [0.01, 0.0]
    assert isinstance(made, torch.optim.SGD if momentum else torch.optim.AdamW)


def test_registry() -> None:
    assert {"digits-dsae", "digits-shufflenet", "mnist-dsae", "mnist-resnet18"} <= set(list_recipes())
    with pytest.raises(ValueError, match="registered already"):
        register(find_recipe("digits-dsae"))
    with pytest.raises(ValueError, match="unknown recipe 'nonesuch'; known: cifar10-code-robust, cifar10-dense"):
        find_recipe("nonesuch")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"optimizer": "lion"}, "must be 'adamw' or 'sgd', got 'lion'"),
        ({"cutout": -1}, "cutout must not be negative"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        short(**changes)


def test_channels_must_agree() -> None:
    training, validation = (purify.load_dataset("digits", s) for s in ("train", "val"))  # type: ignore[arg-type]
    colour = purify.DSAEConfig(channels=3)
    with pytest.raises(ValueError, match="architecture.channels is 3, but data set digits has 1"):
        make_task(
            PurifierRecipe(name="x", dataset="digits", classifier="digits-shufflenet", architecture=colour), training, validation
        )
    three = purify.ClassifierConfig(channels=3)
    with pytest.raises(ValueError, match="architecture.channels is 3"):
        make_task(ClassifierRecipe(name="x", dataset="digits", architecture=three), training, validation)


def test_every_shipped_card_matches_its_recipe() -> None:
    """`purify train NAME` makes what is shipped."""
    for name in purify.list_checkpoints():
        recipe, found = find_recipe(name), dict(read_card(name).recipe)
        assert isinstance(recipe, (ClassifierRecipe, PurifierRecipe, DenoiserRecipe, RobustRecipe))
        found["architecture"] = type(recipe.architecture)(**found["architecture"])
        rebuilt = type(recipe)(**found)  # settings that are newer than the card have their defaults
        assert json.dumps(dataclasses.asdict(rebuilt)) == json.dumps(dataclasses.asdict(recipe)), name


def test_the_environment_is_not_needed(tmp_path: Path) -> None:
    """The command line works from another folder, without PURIFY_DATA."""
    clean = {k: v for k, v in os.environ.items() if k != "PURIFY_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", "purify.cli", "train"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "digits-dense, digits-dncnn" in done.stdout


@pytest.mark.usefixtures("quick_commands")
@pytest.mark.parametrize("network", ["linear", "dense", "dncnn", "magnet"])
def test_dense_denoisers_learn_and_come_back(network: str, tmp_path: Path) -> None:
    path = run(short(f"digits-{network}", epochs=6, batch_size=64, attack_steps=1), tmp_path)
    card = read_card(path)
    assert (card.kind, card.architecture["network"]) == ("denoiser", network)
    denoiser = load_denoiser(path)
    x, _ = purify.load_dataset("digits", "test").first(50).batch(slice(None))
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    with torch.no_grad():
        error = float((denoiser(noisy) - x).square().mean())
        odd = denoiser(torch.rand(2, 1, 9, 7))
    assert error < (0.2 if network == "magnet" else 0.05)  # the sigmoids of MagNet's learn slowly
    assert odd.shape == (2, 1, 9, 7)
    assert 0 <= float(odd.min()) <= float(odd.max()) <= 1
    with pytest.raises(purify.CheckpointError, match=r"is a denoiser, not a purifier.*load_denoiser"):
        purify.load(path)


def test_dense_denoisers_have_the_operations_of_the_dsae() -> None:
    for data, shape in (("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
        dsae = find_recipe(f"{data}-dsae")
        assert isinstance(dsae, PurifierRecipe)
        macs = count_macs(purify.DenoisingSparseAutoencoder(dsae.architecture), shape)
        for network in ("dense", "dncnn"):
            recipe = find_recipe(f"{data}-{network}")
            assert isinstance(recipe, DenoiserRecipe)
            assert count_macs(build_denoiser(recipe.architecture), shape) == pytest.approx(macs, rel=0.06)


def test_adversarial_training_makes_a_classifier_robust(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="blocks are four numbers for resnet18"):
        purify.build_classifier(purify.ClassifierConfig(model="resnet34", blocks=(1, 1, 1, 1)))
    sizes = {"architecture": purify.ClassifierConfig(channels=1, small_stem=True, max_pool=False, blocks=(1, 1, 1, 1))}
    path = run(short("digits-robust", epochs=1, batch_size=32, attack_steps=2, eps=0.1, **sizes), tmp_path)
    card = read_card(path)
    assert purify.load_classifier(path)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    x, y = purify.load_dataset("digits", "test").first(60).batch(slice(None))
    attack = PGD(ThreatModel("linf", 0.1), steps=5)
    stand = [float((~attack(model, x, y).success).float().mean()) for model in (purify.load_classifier(path), _bare())]
    assert stand[0] > stand[1] + 0.2
    assert card.figures["val_pgd"] > 0.3


def _bare() -> torch.nn.Module:
    """The digits' classifier, which nobody trained on attacks."""
    return purify.load_classifier("digits-shufflenet")


def test_another_classifier_in_the_place_of_the_recipes(tmp_path: Path) -> None:
    command = ["train", "digits-dsae", "--epochs", "1", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "dsae"), "--model", "digits-shufflenet"]) == 0
    assert read_card(tmp_path / "dsae" / "digits-dsae.safetensors").recipe["classifier"] == "digits-shufflenet"
    photographs = dataclasses.replace(find_recipe("imagenet-dsae"), dataset="digits")
    assert isinstance(photographs, PurifierRecipe)
    grey = dataclasses.replace(photographs, architecture=dataclasses.replace(photographs.architecture, channels=1))
    with pytest.raises(ValueError, match="give it with --model squeezenet1_0 --weights FILE"):
        run(grey, tmp_path / "photographs")
