"""The training loop: one for classifiers and purifiers, resumable at any moment with the same result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from purify.checkpoint import Card, read_card, save
from purify.data import ImageSet
from purify.fingerprint import fingerprint_images, fingerprint_model
from purify.progress_bar import progress_bar
from purify.training import distributed
from purify.training.augmentation import augment
from purify.training.interrupts import interrupts
from purify.training.recipes import Recipe
from purify.training.run_folder import held
from purify.versions import library_versions

__all__ = ["Task", "TrainingInterruptedError", "autocast", "train"]


_LOOKED_AT = 1000
"""Images by which a run tells its own training images from others."""


class TrainingInterruptedError(KeyboardInterrupt):
    """Stopped by SIGINT after the state was saved."""


class Task(ABC):
    """What is trained, by which loss, and how it is judged."""

    model: nn.Module
    """The module whose parameters are trained."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar) of a batch (N, C, H, W) in [0, 1], and what the progress bar shows beside it."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of ``model`` on the validation split."""

    @abstractmethod
    def card(self, model: nn.Module) -> Card:
        """The card of what is kept, but for what the loop adds."""

    def kept(self, model: nn.Module) -> nn.Module:
        """The part of ``model`` that the checkpoint holds; the rest served the training only."""
        return model

    classifiers: Sequence[nn.Module] = ()
    """Those in front of which something is trained; they stay as they are."""
    criterion: str | None = None
    """Name of the validated figure by which the best epoch's weights are kept and saved; None: the last epoch's."""

    share_done: float = 0.0
    """How far the run is, 0 … 1; set before each step."""
    changes_at: float = 0.0
    """Share of the run after which the loss becomes another: the optimiser then forgets the old one's gradients, and the learning
    rate rises and falls again. 0: it does not."""

    def end_epoch(self, share_done: float, optimizer: torch.optim.Optimizer, averaged: nn.Module | None) -> dict[str, float]:
        """Called after each epoch's last step; returns what happened."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that must survive a restart beside the weights; they are put back in place."""
        return {}


def train(task: Task, recipe: Recipe, data: ImageSet, folder: str | Path, *, quiet: bool = False) -> Path:
    """Train until the recipe's last epoch; saves after each, and continues from what ``folder`` holds.

    All randomness of a step comes from the recipe's seed and the step's number, so a run that was interrupted (SIGINT: state
    saved at once; kill −9: state of the last finished epoch) and started again ends with the same weights.

    Args:
        task: model and loss.
        recipe: all settings.
        data: the training split.
        folder: for ``state.pt``, ``log.jsonl``, and at the end ``<recipe.name>.safetensors`` and its card.
        quiet: no progress bar, and no line an epoch.

    Under ``torchrun`` each process takes its share of every batch, and the first one validates and writes.

    Returns:
        The path of the safetensors file.

    Raises:
        ValueError: ``folder`` holds a run with other settings (the message shows the difference), pictures, classifiers or
            weights of a warm start; or another run is writing there.
        FloatingPointError: the loss or its gradient is not finite; the last finished epoch is kept.
        TrainingInterruptedError: SIGINT.
    """
    folder = Path(folder)
    distributed.start()
    with held(folder):
        return _train(_Run(task, recipe, folder, quiet, begun_with(task, recipe, data)), data)


def _train(run: _Run, data: ImageSet) -> Path:
    task, recipe = run.task, run.recipe
    run.resume()
    steps = _steps(len(data), recipe.batch_size)
    with interrupts() as interrupted, torch.random.fork_rng(devices=[]):
        while run.epoch < recipe.epochs:
            started, first = time.perf_counter(), run.batch
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed * 100_003 + run.epoch))
            bar = progress_bar(
                total=len(data),
                label=f"{recipe.name} {run.epoch + 1}/{recipe.epochs}",
                unit="image",
                initial=run.batch * recipe.batch_size,
                quiet=run.quiet or not distributed.is_first(),
            )
            task.model.train()
            while run.batch < steps:
                chosen = order[run.batch * recipe.batch_size : (run.batch + 1) * recipe.batch_size]
                mine = chosen[distributed.rank() :: distributed.world_size()]
                progress = (run.epoch + run.batch / steps) / recipe.epochs
                shown = run.step(*data.batch(mine), share=len(mine) / len(chosen), progress=progress)
                run.batch += 1
                bar.update(len(chosen))
                done = min(run.batch * recipe.batch_size, len(data))
                rate = (time.perf_counter() - started) / max(done - first * recipe.batch_size, 1)
                left = rate * ((recipe.epochs - run.epoch) * len(data) - done)
                bar.set_postfix({**{k: f"{v:.4g}" for k, v in shown.items()}, "all": tqdm.format_interval(left)}, refresh=False)
                if distributed.anywhere(interrupted()):
                    run.seconds += time.perf_counter() - started
                    run.save()
                    raise TrainingInterruptedError(
                        f"stopped in epoch {run.epoch + 1} after {run.batch} of {steps} batches; "
                        f"saved in {run.folder}; the same command goes on from here"
                    )
            bar.close()
            run.finish_epoch(time.perf_counter() - started, max(len(data) - first * recipe.batch_size, 0))
    return run.export()


def begun_with(task: Task, recipe: Recipe, data: ImageSet) -> dict[str, str]:
    """What a run depends on beside its recipe: digests of training images, frozen classifiers and the weights of a warm start."""
    warm_start = getattr(recipe, "warm_start", "")
    return {
        "training images": f"{len(data)} {fingerprint_images(data, at_most=_LOOKED_AT)}",
        "classifiers": " ".join(map(fingerprint_model, task.classifiers)),
        **({"weights of the warm start": read_card(warm_start).sha256} if warm_start else {}),
    }


def _steps(images: int, batch_size: int) -> int:
    """Batches of an epoch. A last one that would give some process a single image, of which no batch statistics can be taken, is
    left out (other images, each epoch)."""
    rest, enough = images % batch_size, 2 * distributed.world_size()
    return math.ceil(images / batch_size) - (images > batch_size >= enough and 0 < rest < enough)


class _Run:
    """The state of one training: weights, average, optimiser, position, history."""

    def __init__(self, task: Task, recipe: Recipe, folder: Path, quiet: bool, begun_with: dict[str, str]) -> None:
        self.task, self.recipe, self.folder, self.quiet, self.begun_with = task, recipe, folder, quiet, begun_with
        self.epoch = self.batch = self.total_steps = 0
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.best: tuple[int, float, dict[str, Tensor]] | None = None  # epoch, figure and weights, where the task has a criterion
        task.model.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(task.model, recipe)
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay:
            self.averaged = AveragedModel(task.model, avg_fn=self._average, use_buffers=True)

    def _average(self, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        decay = min(self.recipe.ema_decay, (1 + float(count)) / (10 + float(count)))  # short memory at first
        return torch.lerp(average, value, 1 - decay) if average.is_floating_point() else value

    @property
    def present_model(self) -> nn.Module:
        """The averaged weights where there are some."""
        return self.task.model if self.averaged is None else self.averaged.module

    def step(self, images: Tensor, labels: Tensor, share: float, progress: float) -> dict[str, float]:
        """One optimiser step on this process's ``share`` of a batch; returns what the progress bar shows."""
        seed = self.recipe.seed * 1_000_003 + self.total_steps + 500_000_003 * distributed.rank()
        generator = torch.Generator().manual_seed(seed)
        torch.set_rng_state(generator.get_state())  # dropout; the caller has forked it from the user's stream, a GPU has its own
        before, changes = self.task.share_done, self.task.changes_at
        if before < changes <= progress:
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            within = progress / changes if progress < changes else (progress - changes) / (1 - changes)
            group["lr"] = self.recipe.learning_rate * _schedule(within)
        self.task.share_done = progress
        shown: dict[str, float] = {}
        loss = torch.zeros(())
        if len(images):  # the last batch of an epoch may be too small to go round
            images = augment(images, self.recipe, generator).to(memory_format=torch.channels_last)
            loss, shown = self.task.loss(images, labels, generator)
        if distributed.anywhere(not bool(torch.isfinite(loss))):
            raise self._diverged("loss", loss)
        self.optimizer.zero_grad(set_to_none=True)
        if len(images):
            (share * loss).backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.task.model)
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
        if not bool(torch.isfinite(norm)):  # clipping would make NaN of every weight, and an epoch that ends here be kept
            raise self._diverged("norm of the loss's gradient", norm)
        self.optimizer.step()
        distributed.share_buffers(self.task.model)
        if self.averaged is not None:
            self.averaged.update_parameters(self.task.model)
        self.total_steps += 1
        return {"loss": loss.item(), **shown}

    def _diverged(self, what: str, value: Tensor) -> FloatingPointError:
        return FloatingPointError(
            f"the {what} became {value.item()} in epoch {self.epoch + 1}, batch {self.batch + 1}; {self.folder} keeps the last "
            "finished epoch. A smaller learning_rate usually helps"
        )

    def finish_epoch(self, seconds: float, images: int) -> None:
        """Validate, log and save."""
        self.seconds += seconds
        self.epoch, self.batch = self.epoch + 1, 0
        distributed.same_everywhere(self.task.state().values())
        happened = self.task.end_epoch(self.epoch / self.recipe.epochs, self.optimizer, self.averaged)
        model = self.present_model.eval()
        figures = {"epoch": self.epoch, "seconds": round(seconds, 1), "images_per_second": round(images / seconds), **happened}
        every = max(1, self.recipe.epochs // 20)  # validating a very short epoch would cost more than the epoch
        if distributed.is_first() and (self.epoch % every == 0 or self.epoch == self.recipe.epochs):
            figures |= self.task.validate(model)
            if not self.quiet:
                tqdm.write(f"{self.recipe.name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            reached = figures.get(self.task.criterion or "")
            if reached is not None and (self.best is None or reached >= self.best[1]):
                self.best = self.epoch, reached, {k: v.clone() for k, v in model.state_dict().items()}
        self.history.append(figures)
        self.save()
        self._write_log()

    def _write_log(self) -> None:
        """One line an epoch, whatever was there: of a run that was killed here, the last line may be missing."""
        if distributed.is_first():
            partial = self.folder / f"log.{os.getpid()}.partial"
            partial.write_text("".join(json.dumps(figures) + "\n" for figures in self.history), encoding="utf-8")
            partial.replace(self.folder / "log.jsonl")

    def save(self) -> None:
        """Write ``state.pt`` atomically; the first process does, and all wait for it."""
        distributed.same_everywhere(self.task.state().values())
        if distributed.is_first():
            self._write()
        distributed.wait()

    def _write(self) -> None:
        state = {
            "recipe": json.dumps(dataclasses.asdict(self.recipe), sort_keys=True),
            "begun_with": self.begun_with,
            "position": (self.epoch, self.batch, self.total_steps),
            "seconds": self.seconds,
            "share_done": self.task.share_done,
            "history": self.history,
            "model": self.task.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state(),
            "best": self.best,
        }
        partial = self.folder / f"state.{os.getpid()}.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def resume(self) -> None:
        """Continue from the first process's ``state.pt``, if it is there and of the same recipe."""
        path = self.folder / "state.pt"
        state = distributed.from_first(_read_state(path) if distributed.is_first() and path.exists() else None)
        if state is None:
            return
        before = json.loads(state["recipe"])
        now = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        if before != now:
            changed = [f"{k}: {before.get(k)} there, {now.get(k)} here" for k in {**before, **now} if before.get(k) != now.get(k)]
            raise ValueError(f"{self.folder} holds a run with other settings ({'; '.join(changed)}); give another --out")
        if others := [name for name, digest in state.get("begun_with", {}).items() if self.begun_with[name] != digest]:
            raise ValueError(f"{self.folder} holds a run with other {' and other '.join(others)}; give another folder (--out)")
        self.epoch, self.batch, self.total_steps = state["position"]
        self.task.share_done = state.get("share_done", 0.0)
        self.seconds, self.history, self.best = state["seconds"], state["history"], state.get("best")
        self.task.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in self.task.state().items():
            tensor.copy_(state["task"][name])
        self._write_log()
        finished = self.epoch >= self.recipe.epochs
        where = "is finished already" if finished else f"goes on from epoch {self.epoch + 1}, batch {self.batch + 1}"
        if distributed.is_first():
            tqdm.write(f"{self.recipe.name}: {where} ({path})")

    def export(self) -> Path:
        """Write the averaged weights, of the best epoch where the task has a criterion, and the card."""
        path = self.folder / f"{self.recipe.name}.safetensors"
        if distributed.is_first():
            self._export(path)
        distributed.wait()
        return path

    def _export(self, path: Path) -> None:
        model, epoch = self.present_model.eval(), self.epoch
        if self.best is not None:
            epoch = self.best[0]
            model.load_state_dict(self.best[2])
        measured = {k: v for k, v in self.history[epoch - 1].items() if k not in ("seconds", "images_per_second")}
        if self.best is None:
            measured.pop("epoch")
        kept = self.task.kept(model)
        described = self.task.card(kept)
        card = dataclasses.replace(
            described,
            recipe=dataclasses.asdict(self.recipe),
            seed=self.recipe.seed,
            versions=library_versions(),
            wall_seconds=round(self.seconds, 1),
            figures={**described.figures, **measured},
        )
        save(kept, card, path)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        json.loads(state["recipe"])
    except Exception as error:  # torch.load raises nearly anything on files that are not its own
        raise ValueError(f"{path} is damaged, or not of a training of purify's; remove it, or give another --out") from error
    return state


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the processor multiplies in it, otherwise a context that does nothing."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def _schedule(progress: float) -> float:
    """Linear warm-up over the first tenth, then half a cosine to 0."""
    if progress < 0.1:
        return 0.05 + 0.95 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay what has several dimensions (matrices, kernels, the offset of the picture), not biases, norms and thresholds."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trained if p.ndim > 1 and "threshold" not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if p.ndim <= 1 or "threshold" in name], "weight_decay": 0.0},
    ]
