"""Adversarial training of a purifier in front of frozen classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify.attacks import APGD, ThreatModel, exact
from purify.attacks.gradient import Model
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.checkpoint import Card
from purify.data import ImageSet
from purify.training.attack import training_attack
from purify.training.card import describe
from purify.training.features import LastFeatures, feature_error
from purify.training.frozen import frozen_classifier
from purify.training.loop import Task, autocast
from purify.training.recipes import RobustRecipe
from purify.training.validation import accuracy, attack_in_parts, part_size
from purify.training.warm_start import first_weights

__all__ = ["RobustTask", "Student"]


class Student(nn.Module):
    """The purifier, and a linear read-out of its code that learns beside it and is not kept.

    It reads the global units where there are any, otherwise the mean of each unit. That is small, in pixel units, and batch
    normalisation brings it to the scale at which a linear layer learns well.
    """

    def __init__(self, purifier: DenoisingSparseAutoencoder, classes: int) -> None:
        super().__init__()
        self.purifier = purifier
        read = purifier.config.global_units or purifier.config.units
        self.readout = nn.Sequential(nn.BatchNorm1d(read), nn.Linear(read, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Purified images, not yet clipped to [0, 1]."""
        return self.purifier.relaxed(images)

    def read(self, code: Tensor) -> Tensor:
        """Code (N, K + G, h, w) to logits (N, classes)."""
        purifier = self.purifier
        logits: Tensor = self.readout(purifier.global_code(code) if purifier.config.global_units else code.mean((2, 3)))
        return logits


class RobustTask(Task):
    """Attack purifier and classifier together, and learn from what that gives.

    loss = w_l · CE( f(P(x')), y ) + w_a · KL( f(x) ‖ f(P(x')) ) + w_f · ‖φ(P(x')) − φ(x)‖² / ‖φ(x)‖²
         + w_c · CE( r(z̄), y ) + w_p · ( ½‖P(x') − x‖² + λ Σ z ) / (C·H·W),
    x' attacked through P and f, φ the last features of f, z̄ the code's mean over its positions and r linear after a batch
    normalisation. A part of the batches is attacked through z and r alone (``code_attacked``); without a classifier all are.
    At the beginning the decoder may learn alone (``decoder_first``); the encoder's batch statistics go on even then.

    Forward, the purified images are clipped to [0, 1] as ever; backward, the clip is the identity, so that neither the attack nor
    the training meets the clip's zero gradients.
    """

    def __init__(
        self, recipe: RobustRecipe, training: ImageSet, validation: ImageSet, classifier: nn.Module | None = None
    ) -> None:
        self.recipe, self.shape, self.changes_at = recipe, training.image_shape, recipe.decoder_first
        self.criterion = None if recipe.keep_last else "val_apgd"
        if recipe.architecture.channels != self.shape[0]:
            raise ValueError(
                f"recipe {recipe.name}: architecture.channels is {recipe.architecture.channels}, but data set {training.name} "
                f"has {self.shape[0]} channels"
            )
        if classifier is None:
            self.classifiers = [frozen_classifier(name, recipe.name, training) for name in recipe.classifiers]
        else:
            self.classifiers = [classifier.requires_grad_(False)]
        self.features = [LastFeatures(c) for c in self.classifiers] if recipe.feature_weight else []
        purifier = first_weights(recipe)
        self.model: Student = Student(purifier, len(training.classes))
        self.images, self.labels = validation.first(recipe.validated).batch(slice(None))

    @property
    def threat(self) -> ThreatModel:
        """The ball of the present step."""
        grown = min(1.0, self.share_done / self.recipe.growing) if self.recipe.growing else 1.0
        return ThreatModel(self.recipe.norm, self.recipe.eps * grown)

    @property
    def steps(self) -> int:
        """Of the present step's attack."""
        return self.recipe.final_steps if self.share_done >= 1 - self.recipe.final else self.recipe.attack_steps

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss above, on a batch of attacked images."""
        recipe, purifier = self.recipe, self.model.purifier
        which = int(torch.randint(max(len(self.classifiers), 1), (), generator=generator))
        attacked_model = self._pipelines(self.model)[which]
        for parameter in purifier.encoder_parameters() if recipe.decoder_first else ():
            parameter.requires_grad_(self.share_done >= recipe.decoder_first)
        if recipe.code_attacked and float(torch.rand((), generator=generator)) < recipe.code_attacked:
            attacked_model = self._read_code(self.model)
        with autocast(images.device):
            attacked = training_attack(attacked_model, images, labels, self.threat, self.steps, generator)
            code = purifier.encode(attacked.to(memory_format=torch.channels_last))
            rebuilt = purifier.synthesise(code, size=(images.shape[-2], images.shape[-1]))
        total, shown = self._through_classifier(which, images, rebuilt, labels) if self.classifiers else (torch.zeros(()), {})
        if recipe.code_weight:
            logits = self.model.read(code.float())
            total = total + recipe.code_weight * F.cross_entropy(logits, labels)
            shown["code"] = float((logits.argmax(1) == labels).float().mean())
        if recipe.pixel_weight:
            squares = 0.5 * (rebuilt.float() - images).square().sum()
            total = total + recipe.pixel_weight * (squares + recipe.l1 * code.float().sum()) / images.numel()
        return total, shown

    def _through_classifier(self, which: int, images: Tensor, rebuilt: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The terms that a classifier decides."""
        recipe, classifier = self.recipe, self.classifiers[which]
        with autocast(images.device):
            logits = classifier(_soft_clip(rebuilt)).float()
            after = self.features[which].caught if self.features else torch.empty(0)
            teacher = torch.empty(0)
            if recipe.agreement_weight or recipe.feature_weight:
                with torch.no_grad():
                    teacher = classifier(images).float()
        total = recipe.label_weight * F.cross_entropy(logits, labels)
        if recipe.agreement_weight:
            agreement = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")
            total = total + recipe.agreement_weight * agreement
        if recipe.feature_weight:
            total = total + recipe.feature_weight * feature_error(after, self.features[which].caught)
        return total, {"robust": float((logits.argmax(1) == labels).float().mean())}

    def _pipelines(self, student: Student, *, exact_clip: bool = False) -> list[Model]:
        """What is attacked: purifier and each classifier; without any, the read-out of the code."""
        if not self.classifiers:
            return [self._read_code(student)]
        clip = _clip if exact_clip else _soft_clip
        return [lambda x, f=f: f(clip(student(x))) for f in self.classifiers]  # type: ignore[misc]

    @staticmethod
    def _read_code(student: Student) -> Model:
        """Images to the logits of the read-out."""
        return lambda x: student.read(student.purifier.encode(x).to(x.dtype))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy and that under APGD-CE on the whole pipeline (the lowest of several classifiers); the code's figures."""
        assert isinstance(model, Student)
        threat = ThreatModel(self.recipe.norm, self.recipe.validation_eps or self.recipe.eps)
        attack = APGD(threat, steps=self.recipe.validation_steps)
        clean, robust = [], []
        for defended, soft in zip(self._pipelines(model, exact_clip=True), self._pipelines(model), strict=True):
            _, broken = attack_in_parts(attack, defended, self.images, self.labels, exact(soft))
            clean.append(accuracy(defended, self.images, self.labels))
            robust.append(float((~broken).float().mean()))
        statistics = model.purifier.statistics(self.images, part_size(self.images))
        return {
            "val_clean": min(clean),
            "val_apgd": min(robust),
            "val_l0": statistics.l0,
            "val_density": statistics.density,
            "val_explained_variance": statistics.explained_variance,
            "val_dead_units": statistics.dead_units,
        }

    def kept(self, model: nn.Module) -> nn.Module:
        """The purifier without the read-out."""
        assert isinstance(model, Student)
        return model.purifier

    def card(self, model: nn.Module) -> Card:
        """Architecture and cost."""
        return describe(model, self.recipe, "purifier", self.shape)


def _clip(images: Tensor) -> Tensor:
    return images.clamp(0, 1)


def _soft_clip(images: Tensor) -> Tensor:
    """Clipped to [0, 1]; backward the identity."""
    return images + (images.clamp(0, 1) - images).detach()
