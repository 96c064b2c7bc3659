"""Training: what would spoil a run unseen, or lose its work, is told in words or does not happen."""

from __future__ import annotations

import os
import signal
import socket
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.checkpoint import Card
from purify.data import ImageSet
from purify.training import distributed
from purify.training.catalogue import find_recipe
from purify.training.loop import Task, TrainingInterruptedError, train
from purify.training.recipes import Recipe
from purify.training.tasks import make_task

LINE = Recipe(name="line", dataset="digits", epochs=3, batch_size=32, ema_decay=0.9)


class Line(Task):
    """A weight for each of three pixels. At one step something happens: ``spoil`` or ``stop``."""

    def __init__(self, happens: str = "", at: int = 0) -> None:
        self.model = nn.Linear(3, 1)
        nn.init.constant_(self.model.weight, 0.5)
        self.happens, self.at, self.steps = happens, at, 0

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        self.steps += 1
        out = self.model(images[:, 0, 4, 2:5])
        loss = (out[:, 0] - labels).square().mean()
        if self.steps == self.at and self.happens == "spoil":
            loss = loss + (0 * out.sum()).sqrt()  # zero, of an infinite slope: the loss stays finite
        if self.steps == self.at and self.happens == "stop":
            signal.raise_signal(signal.SIGINT)
        return loss, {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"val_figure": 1.0}

    def card(self, model: nn.Module) -> Card:
        return Card(name="line", kind="purifier", architecture={}, image_shape=(1, 8, 8))


def digits(split: Any, count: int | None = None) -> ImageSet:
    return purify.load_dataset("digits", split).first(count)


def test_a_gradient_that_is_not_finite_stops_before_it_is_learnt_from(tmp_path: Path) -> None:
    """At the last step of an epoch, where the spoilt weights would be kept as that epoch's, or exported."""
    with pytest.raises(FloatingPointError, match="norm of the loss's gradient became nan in epoch 3, batch 2.*learning_rate"):
        train(Line("spoil", at=6), LINE, digits("train", 64), tmp_path, quiet=True)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["position"][0] == 2
    assert torch.isfinite(state["model"]["weight"]).all()
    assert not (tmp_path / "line.safetensors").exists()


def test_the_random_stream_of_a_gpu_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    train(Line(), LINE, digits("train", 64), tmp_path, quiet=True)
    make_task(find_recipe("digits-shufflenet"), digits("train", 8), digits("val", 8))
    assert seeded == []


def test_the_log_has_a_line_for_each_epoch_after_a_kill_before_it_was_written(tmp_path: Path) -> None:
    data = digits("train", 64)
    train(Line(), LINE, data, tmp_path, quiet=True)
    log = tmp_path / "log.jsonl"
    whole = log.read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 3
    log.write_text("".join(whole.splitlines(keepends=True)[:2]), encoding="utf-8")
    train(Line(), LINE, data, tmp_path, quiet=True)
    assert log.read_text(encoding="utf-8") == whole


def test_a_finished_run_does_not_say_that_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        train(Line(), LINE, digits("train", 64), tmp_path, quiet=True)
    assert "line: is finished already" in capsys.readouterr().out


def test_processes_wait_for_a_long_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one validates alone. Torch's own patience is half an hour, and then all of them end."""
    asked: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **options: asked.update(options))
    distributed.start()
    assert asked["timeout"] >= timedelta(days=1)


def _together(rank: int, port: int, folder: Path, happens: str) -> None:
    """One of two processes, with a folder of its own, as on a machine of its own."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    task = Line(happens, at=6)
    try:
        train(task, LINE, digits("train", 100), folder / str(rank), quiet=True)
    except TrainingInterruptedError:
        return
    torch.save((task.steps, task.model.state_dict()), folder / f"weights.{rank}.pt")


def test_a_run_of_several_processes_goes_on_from_the_first_ones_folder(tmp_path: Path, processes: ForkServerContext) -> None:
    """Stopped in the second epoch by a signal to one of them, it ends with the weights of a run that was not."""
    found = {}
    for name, turns in (("unbroken", [""]), ("broken", ["stop", ""])):
        for happens in turns:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            both = [
                processes.Process(target=_together, args=(rank, port, tmp_path / name, happens if rank else ""))
                for rank in range(2)
            ]
            for process in both:
                process.start()
            for process in both:
                process.join(120)
                process.kill()  # one that waits for the other would keep the tests from ending
            assert [process.exitcode for process in both] == [0, 0]
        found[name] = [torch.load(tmp_path / name / f"weights.{rank}.pt", weights_only=True) for rank in range(2)]
    assert [steps for steps, _ in found["unbroken"]] == [12, 12]
    assert [steps for steps, _ in found["broken"]] == [6, 6]
    weights = [of["weight"] for name in found for _, of in found[name]]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    assert not (tmp_path / "broken" / "1" / "state.pt").exists()


def test_one_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    """And what a killed one left half written is gone when the next begins."""
    data = digits("train", 64)

    class Meanwhile(Line):
        def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            assert not list(tmp_path.glob("*.partial"))
            with pytest.raises(ValueError, match="another training is writing to .*wait for it"):
                train(Line(), LINE, data, tmp_path, quiet=True)
            return super().loss(images, labels, generator)

    for name in ("state.7.partial", "log.7.partial"):
        (tmp_path / name).write_text("half", encoding="utf-8")
    finished = train(Meanwhile(), LINE, data, tmp_path, quiet=True)
    assert train(Line(), LINE, data, tmp_path, quiet=True) == finished  # free again
