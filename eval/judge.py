"""The judge's rounds: every stage of an evaluation, batch by batch into the store, from where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from purify.attacks import FGSM, FMN, PGD, Attack, GradientPath, Suite, ThreatModel, eot, verdict
from purify.attacks.gradient import Model
from purify.attacks.precision import Precision
from purify.attacks.result import AttackResult
from purify.attacks.suite import suited
from purify.data import ImageSource
from purify.eval.progress import Progress
from purify.eval.shared import SharedAttacks
from purify.eval.store import RunStore, StageRecord, Trial
from purify.images import check_images, check_labels

__all__ = ["Judge", "covering"]

_log = logging.getLogger("purify.eval")

Answer = tuple[Tensor, Tensor]
"""bool (draws, n): right; (draws, n): margins."""


def covering(threat: ThreatModel, shape: Sequence[int], share: float = 1.0) -> ThreatModel:
    """The ball of the same norm that reaches ``share`` of the way from one corner of [0, 1]^(C·H·W) to the opposite one."""
    pixels = float(torch.Size(shape).numel())
    return ThreatModel(threat.norm, share * {"linf": 1.0, "l2": pixels**0.5, "l1": pixels}[threat.norm])


@dataclasses.dataclass(kw_only=True)
class Judge:
    """Puts one defence through the stages of an evaluation. Each method is a round: it does what the store lacks."""

    model: Model
    """The defence, by which everything is scored."""
    bare: Model
    """The classifier without it, on which oblivious attacks are made."""
    source: ImageSource
    threat: ThreatModel
    store: RunStore
    draws: int
    """Of a random defence, for each verdict."""
    batch_size: int
    bare_batch_size: int
    """Of the attacks on the bare classifier."""
    bfloat16: bool
    """Gradient steps under autocast."""
    precision: Precision
    """Of the attacks on the bare classifier."""
    seed: int
    pictures: int
    """For so many images, the first ones, the worst attacked image is kept (of a random defence for all, for its verdict)."""
    progress: Progress
    classes: int
    device: torch.device
    """Where the model is."""
    shared: SharedAttacks
    """Oblivious attacks, which all defences in front of one classifier share."""

    def clean(self) -> None:
        """Bare classifier and defence on the untouched images. Images of which the defence says NaN are noted as errors."""
        bare, own = self.store.stage("undefended, clean", "undefended"), self.store.stage("clean", "clean")
        for first, rows in self._batches(torch.arange(len(self.source)), own.name):
            if self.store.has_batch(own, 0, first):
                continue
            started = time.perf_counter()
            images, labels = self.load(rows)
            check_images(images)
            check_labels(labels, images, classes=self.classes)
            answers = self._answers(self.model, images, labels), self._answers(self.bare, images, labels, draws=1)
            self.store.add_images(dict(zip(rows.tolist(), labels.tolist(), strict=True)))
            self._write(bare, 0, first, rows, answers[1], seconds=0.0)
            self._write(own, 0, first, rows, answers[0], seconds=time.perf_counter() - started)

    def oblivious(self, steps: int) -> None:
        """FGSM and PGD on the bare classifier at full strength (no stop at the first break: an example that only just crosses
        the boundary is easily brought back), put to both."""
        attacks: dict[str, Attack] = {
            "FGSM": FGSM(self.threat, early_stop=False),
            "PGD": PGD(self.threat, steps=steps, early_stop=False),
        }
        for number, (name, attack) in enumerate(attacks.items()):
            bare = self.store.stage(f"undefended, {name}", "undefended", str(attack))
            own = self.store.stage(f"oblivious, {name}", "oblivious", str(attack))
            for first, rows in self._batches(self._sound(), own.name, self.bare_batch_size):
                if self.store.has_batch(own, 0, first):
                    continue
                started = time.perf_counter()
                result, labels = self._oblivious_attack(attack, number, first, rows)
                answers = [self._answers(m, result.adversarial, labels, d) for m, d in ((self.model, None), (self.bare, 1))]
                distance, queries = result.distance, result.queries
                self._write(bare, 0, first, rows, answers[1], distance, queries, seconds=0.0)
                self._write(own, 0, first, rows, answers[0], distance, queries, seconds=time.perf_counter() - started)

    def adaptive(self, suite: Suite, paths: Mapping[str, GradientPath]) -> None:
        """Every attack of the suite along every path, each on what the ones before left standing."""
        broken = dict.fromkeys(paths, 0)
        for entry in suite.entries:
            restarts = int(getattr(entry.attack, "restarts", 1))
            attack = dataclasses.replace(entry.attack, restarts=1) if restarts > 1 else entry.attack  # type: ignore[call-arg]
            attack = suited(attack, self.classes, self.batch_size)
            for path in entry.choose_paths(list(paths), broken, len(self.source)):
                alone = entry.along == "once"
                stage = self.store.stage(
                    entry.name if alone else f"{entry.name}, {path}", "adaptive", str(attack), "" if alone else path
                )
                for restart in range(restarts):
                    self._round(stage, restart, attack, paths[path])
                broken[path] += 0 if alone else len(self.store.fallen(stage))

    def _round(self, stage: StageRecord, restart: int, attack: Attack, path: GradientPath) -> None:
        """One restart of one attack along one path, on all that stand."""
        standing = self._standing(stage, restart)
        for first, rows in self._batches(standing, f"{stage.name} {restart + 1}" if restart else stage.name):
            if not self.store.has_batch(stage, restart, first):
                self._attack(stage, restart, first, rows, attack, path)
            fallen = self.store.fallen(stage, before=restart + 1) - self.store.fallen(stage, before=restart)
            self.progress.robust(len(standing) - len(fallen), len(self.source))

    def verdict(self) -> None:
        """For random defences: the worst image of each once more, by fresh draws. The lowest of several noisy shares would be
        too low."""
        if self.draws == 1:
            return
        stage = self.store.stage("verdict", "verdict")
        for first, rows in self._batches(self._sound(), stage.name):
            if self.store.has_batch(stage, 0, first):
                continue
            started = time.perf_counter()
            images, labels = self.load(rows)
            kept = self.store.pictures(self._shape(), rows.tolist())
            worst = torch.stack([kept.get(i, image.cpu()) for i, image in zip(rows.tolist(), images, strict=True)]).to(images)
            distance = self.threat.distance(worst, images)
            self._write(
                stage, 0, first, rows, self._answers(self.model, worst, labels), distance, seconds=time.perf_counter() - started
            )

    def smallest_norms(self, paths: Mapping[str, GradientPath], images: int) -> None:
        """FMN with the largest ball, on the first ``images`` images: how far each is from its nearest adversarial.

        Along the exact gradient, and along every path along which some attack broke what those before it had left; where there is
        no exact gradient, along all. The nearest counts, that of the other attacks included (:class:`purify.eval.report.Report`).
        """
        attack = FMN(covering(self.threat, self._shape()))
        useful = {stage.path for stage in self.store.stages() if stage.claim == "adaptive" and self.store.fallen(stage)}
        chosen = {name: path for name, path in paths.items() if name == "exact" or name in useful or "exact" not in paths}
        sound = self._sound()
        for name, path in chosen.items():
            stage = self.store.stage(f"FMN, any norm, {name}", "norm", str(attack), name)
            for first, rows in self._batches(sound[sound < images], stage.name):
                if not self.store.has_batch(stage, 0, first):
                    self._attack(stage, 0, first, rows, attack, path, keep=False)

    # ---- one batch

    def _oblivious_attack(self, attack: Attack, number: int, first: int, rows: Tensor) -> tuple[AttackResult, Tensor]:
        """The attack on the bare classifier, made now or for an earlier defence from the same seed, and the labels."""
        images, labels = self.load(rows)
        generator = self._generator(number, first, images.device)
        key = (str(attack), self.seed, first, tuple(rows.tolist()))
        return self.shared.get(
            key, lambda: attack(self.bare, images, labels, generator=generator, precision=self.precision)
        ), labels

    def _attack(
        self,
        stage: StageRecord,
        restart: int,
        first: int,
        rows: Tensor,
        attack: Attack,
        path: GradientPath,
        *,
        keep: bool = True,
    ) -> None:
        started = time.perf_counter()
        images, labels = self.load(rows)
        result = attack(
            self.model,
            images,
            labels,
            generator=self._generator(100 * stage.id + restart, first, images.device),
            gradient=path if self.draws == 1 else eot(path, self.draws),
            precision="bfloat16" if self.bfloat16 else "float32",
        )
        answer = self._answers(self.model, result.adversarial, labels)
        share, margin = answer[0].double().mean(0), answer[1].double().mean(0)
        pictures = {
            image: (float(share[i]), float(margin[i]), result.adversarial[i])
            for i, image in enumerate(rows.tolist())
            if keep and (self.draws > 1 or image < self.pictures)
        }
        self._write(
            stage,
            restart,
            first,
            rows,
            answer,
            result.distance,
            result.queries,
            seconds=time.perf_counter() - started,
            pictures=pictures,
        )
        _log.info("%s, restart %d: %d of %d stand", stage.name, restart, int((share > 0).sum()), len(rows))

    def _write(
        self,
        stage: StageRecord,
        restart: int,
        first: int,
        rows: Tensor,
        answer: Answer,
        distance: Tensor | None = None,
        queries: Tensor | None = None,
        *,
        seconds: float,
        pictures: Mapping[int, tuple[float, float, Tensor]] | None = None,
    ) -> None:
        if self.store.has_batch(stage, restart, first):
            return
        right, margins = answer[0].cpu(), answer[1].cpu()
        far = torch.zeros(len(rows)) if distance is None else distance.cpu()
        asked = torch.zeros(len(rows), dtype=torch.int64) if queries is None else queries.cpu()
        trials = [
            Trial(int(rows[i]), restart, draw, bool(right[draw, i]), float(margins[draw, i]), float(far[i]), int(asked[i]))
            for i in range(len(rows))
            for draw in range(len(right))
        ]
        silent = (~torch.isfinite(margins)).any(0).nonzero().flatten()
        # the search for the smallest norm leaves the ball: what the model says there is no error under this threat
        errors = {} if stage.claim == "norm" else {int(rows[i]): f"NaN or infinite logits ({stage.name})" for i in silent}
        self.store.add_batch(stage, restart, first, trials, seconds=seconds, pictures=pictures, errors=errors)

    def _answers(self, model: Model, images: Tensor, labels: Tensor, draws: int | None = None) -> Answer:
        """What the model says of each image in each draw; never right where its margin is no number."""
        right, margins = verdict(model, images, labels, self.draws if draws is None else draws)
        return right & torch.isfinite(margins), margins

    # ---- which images

    def _sound(self) -> Tensor:
        """Numbers of the images of which the models, untouched, said something."""
        silent = self.store.silent(self.store.stage("clean", "clean")) | self.store.silent(
            self.store.stage("undefended, clean", "undefended")
        )
        return torch.tensor([i for i in range(len(self.source)) if i not in silent], dtype=torch.int64)

    def _standing(self, stage: StageRecord, restart: int) -> Tensor:
        """Numbers of the images that nothing before this restart of this stage has broken: from the store alone, so that a run
        that was stopped finds the same ones again."""
        fallen: set[int] = set()
        for earlier in self.store.stages():
            if earlier.claim == "clean" or (earlier.claim == "adaptive" and earlier.id < stage.id):
                fallen |= self.store.fallen(earlier)
        fallen |= self.store.fallen(stage, before=restart)
        return torch.tensor([i for i in self._sound().tolist() if i not in fallen], dtype=torch.int64)

    def _batches(self, rows: Tensor, name: str, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        size = size or self.batch_size
        pieces = [(start, rows[start : start + size]) for start in range(0, len(rows), size)]
        return self.progress.batches(pieces, len(rows), name)

    def load(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels, where the model is."""
        images, labels = self.source.batch(rows)
        return images.to(self.device), labels.to(self.device)

    def _generator(self, number: int, first: int, device: torch.device) -> torch.Generator:
        return torch.Generator(device=device).manual_seed((self.seed * 1_000_003 + number * 1009 + first) % 2**63)

    def _shape(self) -> tuple[int, int, int]:
        images, _ = self.source.batch(torch.arange(1))
        return images.shape[1], images.shape[2], images.shape[3]
