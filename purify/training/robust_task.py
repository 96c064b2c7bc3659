"""Adversarial training of a purifier in front of frozen classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify.attacks import PGD, ThreatModel, exact
from purify.autoencoder import DenoisingSparseAutoencoder
from purify.checkpoint import Card, load, load_classifier, read_card
from purify.data import ImageSet
from purify.training.attack import training_attack
from purify.training.card import describe
from purify.training.loop import Task, autocast
from purify.training.recipes import RobustRecipe

__all__ = ["LastFeatures", "RobustTask"]

_VALIDATED = 300
"""Images of the validation split that are attacked after each epoch."""


class LastFeatures:
    """What a classifier hands to its last linear layer: the features (N, F), caught as they pass."""

    def __init__(self, classifier: nn.Module) -> None:
        last = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not last:
            raise ValueError("feature_weight needs a classifier that ends in a linear layer; this one has none")
        self.caught = torch.empty(0)
        last[-1].register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.caught = inputs[0]


class RobustTask(Task):
    """Attack purifier and classifier together, and learn from what that gives.

    loss = w_l · CE( f(P(x')), y ) + w_a · KL( f(x) ‖ f(P(x')) ) + w_f · ‖φ(P(x')) − φ(x)‖² / ‖φ(x)‖²
         + w_p · ( ½‖P(x') − x‖² + λ Σ z ) / (C·H·W),  x' attacked through P and f, φ the last features of f.

    Forward, the purified images are clipped to [0, 1] as ever; backward, the clip is the identity, so that neither the attack nor
    the training meets the clip's zero gradients.
    """

    criterion = "val_pgd"

    def __init__(self, recipe: RobustRecipe, training: ImageSet, validation: ImageSet) -> None:
        self.recipe, self.shape = recipe, training.image_shape
        if recipe.architecture.channels != self.shape[0]:
            raise ValueError(
                f"recipe {recipe.name}: architecture.channels is {recipe.architecture.channels}, but data set {training.name} "
                f"has {self.shape[0]} channels"
            )
        self.classifiers = [_frozen(name, recipe, training) for name in recipe.classifiers]
        self.features = [LastFeatures(c) for c in self.classifiers] if recipe.feature_weight else []
        self.model: DenoisingSparseAutoencoder = DenoisingSparseAutoencoder(recipe.architecture)
        if recipe.warm_start:
            before = load(recipe.warm_start)
            if before.config != recipe.architecture:
                raise ValueError(
                    f"recipe {recipe.name}: warm_start {recipe.warm_start} has another architecture: {before.config}, not "
                    f"{recipe.architecture}"
                )
            self.model.load_state_dict(before.state_dict())
        self.images, self.labels = validation.first(_VALIDATED).batch(slice(None))

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
        recipe = self.recipe
        which = int(torch.randint(len(self.classifiers), (), generator=generator))
        classifier = self.classifiers[which]
        with autocast(images.device):
            attacked = training_attack(
                lambda x: classifier(_soft_clip(self.model.relaxed(x))), images, labels, self.threat, self.steps, generator
            )
            code = self.model.encode(attacked.to(memory_format=torch.channels_last))
            rebuilt = self.model.synthesise(code, size=(images.shape[-2], images.shape[-1]))
            logits = classifier(_soft_clip(rebuilt)).float()
            after = self.features[which].caught if self.features else torch.empty(0)
            teacher = torch.empty(0)
            if recipe.agreement_weight or recipe.feature_weight:
                with torch.no_grad():
                    teacher = classifier(images).float()
        total = recipe.label_weight * F.cross_entropy(logits, labels)
        shown = {"robust": float((logits.argmax(1) == labels).float().mean())}
        if recipe.agreement_weight:
            agreement = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")
            total = total + recipe.agreement_weight * agreement
        if recipe.feature_weight:
            before = self.features[which].caught.float()
            total = total + recipe.feature_weight * (after.float() - before).square().sum() / before.square().sum()
        if recipe.pixel_weight:
            squares = 0.5 * (rebuilt.float() - images).square().sum()
            total = total + recipe.pixel_weight * (squares + recipe.l1 * code.float().sum()) / images.numel()
        return total, shown

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy and accuracy under PGD on the whole pipeline (the lowest of several classifiers); the code's figures."""
        assert isinstance(model, DenoisingSparseAutoencoder)
        threat = ThreatModel(self.recipe.norm, self.recipe.eps)
        clean, robust = [], []
        for classifier in self.classifiers:

            def defended(x: Tensor, classifier: nn.Module = classifier) -> Tensor:
                logits: Tensor = classifier(model(x))
                return logits

            def soft(x: Tensor, classifier: nn.Module = classifier) -> Tensor:
                logits: Tensor = classifier(_soft_clip(model.relaxed(x)))
                return logits

            attack = PGD(threat, steps=self.recipe.validation_steps)
            result = attack(defended, self.images, self.labels, gradient=exact(soft))
            clean.append(float((defended(self.images).argmax(1) == self.labels).float().mean()))
            robust.append(float((~result.success).float().mean()))
        statistics = model.statistics(self.images)
        return {
            "val_clean": min(clean),
            "val_pgd": min(robust),
            "val_l0": statistics.l0,
            "val_density": statistics.density,
            "val_explained_variance": statistics.explained_variance,
            "val_dead_units": statistics.dead_units,
        }

    def card(self, model: nn.Module) -> Card:
        """Architecture and cost."""
        return describe(model, self.recipe, "purifier", self.shape)


def _soft_clip(images: Tensor) -> Tensor:
    """Clipped to [0, 1]; backward the identity."""
    return images + (images.clamp(0, 1) - images).detach()


def _frozen(name: str, recipe: RobustRecipe, training: ImageSet) -> nn.Module:
    """The classifier, whose weights and batch statistics no training changes."""
    expected = read_card(name)
    if expected.image_shape[0] != training.image_shape[0]:
        raise ValueError(
            f"recipe {recipe.name}: classifier {name} takes {expected.image_shape[0]} channels, data set {training.name} has "
            f"{training.image_shape[0]}"
        )
    known, there = expected.architecture.get("classes"), len(training.classes)
    if known not in (None, there):
        raise ValueError(f"recipe {recipe.name}: classifier {name} knows {known} classes, data set {training.name} has {there}")
    return load_classifier(name).requires_grad_(False)
