"""What is trained: a classifier, and in front of a frozen one a purifier, or a dense denoiser to compare it with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify.attacks import FGSM, PGD, ThreatModel
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.checkpoint import Card
from purify.data import ImageSet
from purify.denoisers import Denoiser, build_denoiser
from purify.normalization import NormalizedClassifier
from purify.training.attack import training_attack
from purify.training.card import describe
from purify.training.features import LastFeatures, feature_error
from purify.training.frozen import frozen_classifier
from purify.training.loop import Task, autocast
from purify.training.recipes import (
    ClassifierRecipe,
    DenoiserRecipe,
    DenoisingRecipe,
    PurifierRecipe,
    Recipe,
    RobustClassifierRecipe,
    RobustRecipe,
)
from purify.training.robust_task import RobustTask
from purify.training.validation import VALIDATED, accuracy, attack_in_parts, part_size
from purify.training.warm_start import first_classifier, first_weights

__all__ = ["ClassifierTask", "DenoiserTask", "DenoisingTask", "PurifierTask", "RobustClassifierTask", "make_task"]


def make_task(recipe: Recipe, training: ImageSet, validation: ImageSet, classifier: nn.Module | None = None) -> Task:
    """The task that a recipe describes, with freshly drawn weights (from the recipe's seed).

    ``classifier`` ([0, 1] images to logits, in eval mode) takes the place of the checkpoints that a purifier's recipe names.

    Raises:
        ValueError: a split without images, or a recipe that does not fit the data set or the classifier.
    """
    judged = not isinstance(recipe, ClassifierRecipe) or recipe.held_out
    for part in (training, validation) if judged else (training,):
        if not len(part):
            raise ValueError(f"recipe {recipe.name}: data set {part.name} has no {part.split} images; give it more images")
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(recipe.seed).get_state())  # a GPU's own stream is left alone
        if isinstance(recipe, RobustClassifierRecipe):
            return RobustClassifierTask(recipe, training, validation)
        if isinstance(recipe, ClassifierRecipe):
            return ClassifierTask(recipe, training, validation)
        if isinstance(recipe, PurifierRecipe):
            return PurifierTask(recipe, training, validation, classifier)
        if isinstance(recipe, DenoiserRecipe):
            return DenoiserTask(recipe, training, validation, classifier)
        if isinstance(recipe, RobustRecipe):
            return RobustTask(recipe, training, validation, classifier)
    raise TypeError(f"no task for a {type(recipe).__name__}")


class ClassifierTask(Task):
    """Cross-entropy on augmented images."""

    def __init__(self, recipe: ClassifierRecipe, training: ImageSet, validation: ImageSet) -> None:
        self.recipe, self.validation, self.shape = recipe, validation, training.image_shape
        _check_shape(recipe.name, "architecture.channels", recipe.architecture.channels, training)
        if recipe.architecture.classes != len(training.classes):
            raise ValueError(
                f"recipe {recipe.name}: architecture.classes is {recipe.architecture.classes}, but data set {training.name} has "
                f"{len(training.classes)} classes"
            )
        self.model: NormalizedClassifier = first_classifier(recipe)

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy with label smoothing."""
        with autocast(images.device):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        return loss, {"accuracy": float((logits.argmax(1) == labels).float().mean())}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy on the whole validation split, unless it was learnt from."""
        if not self.recipe.held_out:
            return {}
        right, size = 0, min(VALIDATED, part_size(self.validation.pixels))
        with torch.no_grad():
            for start in range(0, len(self.validation), size):
                images, labels = self.validation.batch(slice(start, start + size))
                right += int((model(images).argmax(1) == labels).sum())
        return {"val_accuracy": right / len(self.validation)}

    def card(self, model: nn.Module) -> Card:
        """Architecture, normalisation and cost."""
        return describe(model, self.recipe, "classifier", self.shape)


class RobustClassifierTask(ClassifierTask):
    """Cross-entropy on images that are attacked at each step (:func:`purify.training.attack.training_attack`)."""

    def __init__(self, recipe: RobustClassifierRecipe, training: ImageSet, validation: ImageSet) -> None:
        super().__init__(recipe, training, validation)
        self.robust = recipe
        self.attacked, self.labels = validation.first(VALIDATED).batch(slice(None))

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy on attacked images; the attack sees the network as it classifies, the step as it learns."""
        eps = self.robust.eps * (min(1.0, self.share_done / self.robust.growing) if self.robust.growing else 1.0)
        self.model.eval()
        with autocast(images.device):
            threat = ThreatModel("linf", eps)
            attacked = training_attack(self.model, images, labels, threat, self.robust.attack_steps, generator)
        self.model.train()
        return super().loss(attacked, labels, generator)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy, and accuracy under PGD with 20 steps on the first images, unless they were learnt from."""
        if not self.robust.held_out:
            return {}
        _, broken = attack_in_parts(PGD(ThreatModel("linf", self.robust.eps), steps=20), model, self.attacked, self.labels)
        return {**super().validate(model), "val_pgd": float((~broken).float().mean())}


class DenoisingTask(Task):
    """What all denoisers share: noisy and attacked images, the frozen classifier, pixel error and agreement."""

    def __init__(
        self,
        recipe: DenoisingRecipe,
        channels: int,
        training: ImageSet,
        validation: ImageSet,
        classifier: nn.Module | None = None,
    ) -> None:
        self.denoising, self.shape = recipe, training.image_shape
        self.changes_at = recipe.pixels_first
        _check_shape(recipe.name, "architecture.channels", channels, training)
        self.classifier = (
            frozen_classifier(recipe.classifier, recipe.name, training)
            if classifier is None
            else classifier.requires_grad_(False)
        )
        self.classifiers = [self.classifier]
        self.features = LastFeatures(self.classifier) if recipe.feature_weight else None
        self.clean, self.labels = validation.first(VALIDATED).batch(slice(None))
        self.attacked: Tensor | None = None

    def disagreement(self, images: Tensor, purified: Tensor) -> Tensor:
        """w_a · KL( f(x) ‖ f(x̂) ) + w_f · ‖φ(x̂) − φ(x)‖² / ‖φ(x)‖², means over images; 0 while pictures alone are learnt."""
        recipe = self.denoising
        if not self.with_classifier or not (recipe.agreement_weight or recipe.feature_weight):
            return torch.zeros(())
        with torch.no_grad():
            before = F.log_softmax(self.classifier(images).float(), 1)
            seen_before = self.features.caught if self.features else None
        after = F.log_softmax(self.classifier(purified).float(), 1)
        total = recipe.agreement_weight * F.kl_div(after, before, log_target=True, reduction="batchmean")
        if self.features and seen_before is not None:
            total = total + recipe.feature_weight * feature_error(self.features.caught, seen_before)
        return total

    @property
    def with_classifier(self) -> bool:
        """Whether the present step attacks and asks the classifier."""
        return self.share_done >= self.denoising.pixels_first

    def disturb(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """A part of the batch attacked on the bare classifier, the rest with noise."""
        recipe = self.denoising
        count = round(recipe.attacked * len(images)) if self.with_classifier else 0
        low, high = recipe.eps
        eps = low + (high - low) * float(torch.rand((), generator=generator))
        parts = []
        if count:
            threat = ThreatModel("linf", eps)
            if float(torch.rand((), generator=generator)) < 0.25:
                attack: FGSM | PGD = FGSM(threat, early_stop=False)
            else:
                attack = PGD(threat, steps=recipe.attack_steps, early_stop=False)
            parts.append(attack(self.classifier, images[:count], labels[:count], generator=generator).adversarial)
        rest = images[count:]
        sigma = recipe.noise * torch.rand(len(rest), 1, 1, 1, generator=generator)
        parts.append((rest + sigma * torch.randn(rest.shape, generator=generator)).clamp(0, 1))
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy behind the denoiser, and accuracy under an oblivious PGD at the largest eps."""
        if self.attacked is None:
            attack = PGD(ThreatModel("linf", self.denoising.eps[1]), steps=20, early_stop=False)
            self.attacked, _ = attack_in_parts(attack, self.classifier, self.clean, self.labels)

        def defended(images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(model(images))
            return logits

        return {
            "val_clean": accuracy(defended, self.clean, self.labels),
            "val_clean_undefended": accuracy(self.classifier, self.clean, self.labels),
            "val_oblivious_pgd": accuracy(defended, self.attacked, self.labels),
            "val_oblivious_undefended": accuracy(self.classifier, self.attacked, self.labels),
        }


class PurifierTask(DenoisingTask):
    """Denoise: pixel error, L1 norm of the code, and what the frozen classifier makes of the picture before and after.

    loss = w_p · ( ½‖x̂ − x‖² + λ Σ z ) / (C·H·W) + w_a · KL( f(x) ‖ f(x̂) ) + w_f · ‖φ(x̂) − φ(x)‖² / ‖φ(x)‖²,
    x̂ = P(x'), x' noisy or attacked, φ the last features of f.
    """

    def __init__(
        self, recipe: PurifierRecipe, training: ImageSet, validation: ImageSet, classifier: nn.Module | None = None
    ) -> None:
        super().__init__(recipe, recipe.architecture.channels, training, validation, classifier)
        self.recipe = recipe
        self.model: DenoisingSparseAutoencoder = first_weights(recipe)
        self.fired = torch.zeros(recipe.architecture.units, dtype=torch.bool)
        self.seen = training.batch(slice(0, 64))[0]  # images for reviving units

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss above, on a batch partly noisy and partly attacked."""
        recipe = self.recipe
        with autocast(images.device):
            code = self.model.encode(self.disturb(images, labels, generator))
            purified = self.model.synthesise(code, size=(images.shape[-2], images.shape[-1]))  # unclipped: gradients at 0 and 1
            disagreement = self.disagreement(images, purified)
        self.fired |= (code[:, : len(self.fired)] > 0).any(dim=3).any(dim=2).any(dim=0)
        squares = 0.5 * (purified.float() - images).square().sum()
        lasso = (squares + recipe.l1 * code.float().sum()) / images.numel()
        l0 = float((code > 0).sum() / len(code))
        shown = {"lasso": lasso.item(), "L0": l0, "disagreement": disagreement.item()}
        return recipe.pixel_weight * lasso + disagreement, shown

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """As for every denoiser, and the code's statistics."""
        assert isinstance(model, DenoisingSparseAutoencoder)
        statistics = model.statistics(self.clean, part_size(self.clean))
        return {
            **super().validate(model),
            "val_l0": statistics.l0,
            "val_density": statistics.density,
            "val_explained_variance": statistics.explained_variance,
            "val_dead_units": statistics.dead_units,
        }

    def end_epoch(self, share_done: float, optimizer: torch.optim.Optimizer, averaged: nn.Module | None) -> dict[str, float]:
        """Revive the units that never fired in this epoch."""
        dead = (~self.fired).nonzero().flatten()
        self.fired.zero_()
        if len(dead) and share_done <= self.recipe.revive_until:
            generator = torch.Generator().manual_seed(self.recipe.seed + int(1e6 * share_done))
            self.model.revive(dead, self.seen, generator)
            copies = [self.model] if averaged is None else [self.model, averaged.module]
            for name, row in self.model.unit_rows():
                for copy in copies[1:]:
                    dict(copy.named_parameters())[name].data[dead] = row.data[dead]  # type: ignore[union-attr]
                for moment in optimizer.state.get(row, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == row.shape:
                        moment[dead] = 0
        return {"dead": float(len(dead))}

    def state(self) -> dict[str, Tensor]:
        """Which units fired so far in this epoch."""
        return {"fired": self.fired}

    def card(self, model: nn.Module) -> Card:
        """Architecture and cost."""
        return describe(model, self.recipe, "purifier", self.shape)


class DenoiserTask(DenoisingTask):
    """A dense denoiser: pixel error, and what the frozen classifier makes of the picture before and after.

    loss = w_p · ½‖x̂ − x‖² / (C·H·W) + w_a · KL( f(x) ‖ f(x̂) ) + w_f · ‖φ(x̂) − φ(x)‖² / ‖φ(x)‖².
    """

    def __init__(
        self, recipe: DenoiserRecipe, training: ImageSet, validation: ImageSet, classifier: nn.Module | None = None
    ) -> None:
        super().__init__(recipe, recipe.architecture.channels, training, validation, classifier)
        self.recipe = recipe
        self.model: Denoiser = build_denoiser(recipe.architecture)

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss above, on a batch partly noisy and partly attacked."""
        recipe = self.recipe
        with autocast(images.device):
            purified = self.model.relaxed(self.disturb(images, labels, generator))
            disagreement = self.disagreement(images, purified)
        pixels = 0.5 * (purified.float() - images).square().mean()
        return recipe.pixel_weight * pixels + disagreement, {"pixels": pixels.item(), "disagreement": disagreement.item()}

    def card(self, model: nn.Module) -> Card:
        """Architecture and cost."""
        return describe(model, self.recipe, "denoiser", self.shape)


def _check_shape(recipe: str, field: str, channels: int, training: ImageSet) -> None:
    if channels != training.image_shape[0]:
        raise ValueError(
            f"recipe {recipe}: {field} is {channels}, but data set {training.name} has {training.image_shape[0]} channels"
        )
