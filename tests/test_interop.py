"""Other people's tools: each library, run for real, finds the robust accuracy that the native attack finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import accuracy
from torch import Tensor, nn

import purify
from purify.attacks import PGD, ThreatModel, bpda, exact
from purify.interop.borrowed import BorrowedAttack
from purify.interop.foolbox import to_foolbox
from purify.interop.torchattacks import TorchattacksAttack, to_torchattacks
from purify.interop.victim import Victim

N, STEPS = 60, 10
TOLERANCE = 1 / N
"""One image: the native attack keeps its best iterate, the libraries their last one."""
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """The first 60 test digits."""
    return purify.load_dataset("digits", "test").first(N).batch(slice(None))


@pytest.fixture(params=[ThreatModel("linf", 0.09), ThreatModel("l2", 0.5)], ids=str)
def threat(request: pytest.FixtureRequest) -> ThreatModel:
    return request.param


@pytest.fixture
def native(defended: nn.Module, batch: Batch, threat: ThreatModel) -> float:
    """Robust accuracy under the native PGD, which leaves some images standing and breaks others."""
    attack = PGD(threat, steps=STEPS, step_size=threat.eps / 4, random_start=False)
    robust = 1 - attack(defended, *batch).success.float().mean().item()
    assert 0.3 < robust < 0.7
    return robust


@pytest.fixture
def art() -> Any:
    """``purify.interop.art``, where ART is installed."""
    pytest.importorskip("art")
    import purify.interop.art

    return purify.interop.art


def one_hot(labels: Tensor) -> Any:
    return F.one_hot(labels, 10).float().numpy()


# ---- foolbox


def test_foolbox(defended: nn.Module, batch: Batch, threat: ThreatModel, native: float) -> None:
    import foolbox

    kind = foolbox.attacks.LinfPGD if threat.norm == "linf" else foolbox.attacks.L2PGD
    theirs = kind(abs_stepsize=threat.eps / 4, steps=STEPS, random_start=False)
    _, found, broken = theirs(to_foolbox(defended), *batch, epsilons=threat.eps)
    threat.verify(found, batch[0])
    assert 1 - broken.float().mean().item() == pytest.approx(native, abs=TOLERANCE)


# ---- ART


def preprocessed(art: Any, defended: purify.PurifiedClassifier, **options: Any) -> Any:
    """The bare classifier in ART, with the purifier as its preprocessing."""
    defence = art.PurifierPreprocessor(defended.purifier)
    return art.PyTorchClassifier(
        defended.classifier, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), preprocessing_defences=defence, **options
    )


def beside_numpy(art: Any, defended: purify.PurifiedClassifier) -> Any:
    """The same beside a preprocessing of ART's NumPy kind, where ART takes gradients through the other hook."""
    from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd

    return preprocessed(art, defended, preprocessing=StandardisationMeanStd(0.0, 1.0))


IN_ART: dict[str, Callable[[Any, purify.PurifiedClassifier], Any]] = {
    "wrapped": lambda art, defended: art.to_art(defended, (1, 8, 8)),
    "preprocessor": preprocessed,
    "preprocessor beside NumPy": beside_numpy,
}


@pytest.mark.parametrize("how", ["wrapped", "preprocessor"])
def test_art(art: Any, defended: purify.PurifiedClassifier, batch: Batch, threat: ThreatModel, native: float, how: str) -> None:
    from art.attacks.evasion import ProjectedGradientDescent

    images, labels = batch
    classifier = IN_ART[how](art, defended)
    assert np.allclose(classifier.predict(images.numpy()), defended(images).detach().numpy(), atol=1e-5)
    assert classifier.clip_values.tolist() == [0, 1]
    settings = {"eps": threat.eps, "eps_step": threat.eps / 4, "max_iter": STEPS, "batch_size": N, "verbose": False}
    theirs = ProjectedGradientDescent(classifier, norm=np.inf if threat.norm == "linf" else 2, **settings)
    found = torch.from_numpy(theirs.generate(images.numpy(), one_hot(labels)))
    threat.verify(found, images)
    assert accuracy(defended, found, labels) == pytest.approx(native, abs=TOLERANCE)


@pytest.mark.parametrize("how", IN_ART)
def test_arts_gradient_is_the_true_one(art: Any, defended: purify.PurifiedClassifier, batch: Batch, how: str) -> None:
    """ART's gradients of the loss and of a class are autograd's through purifier and classifier."""
    images, labels = batch[0][:8], batch[1][:8]

    def gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        logits = model(x)
        (loss,) = torch.autograd.grad(F.cross_entropy(logits, labels), x, retain_graph=True)
        return loss, torch.autograd.grad(logits[:, 3].sum(), x)[0]

    loss, third = gradients(defended, images)
    identity, _ = gradients(defended.undefended, defended.purify(images).detach())
    assert (identity - loss).abs().max() > 0.5 * loss.abs().max()  # the hook's default, straight through, would be seen
    classifier = IN_ART[how](art, defended)
    defended.purifier.zero_grad()
    assert np.allclose(classifier.loss_gradient(images.numpy(), one_hot(labels)), loss, atol=1e-6)
    assert np.allclose(classifier.class_gradient(images.numpy(), label=3)[:, 0], third, atol=1e-5)
    if how != "wrapped":  # ART clears the gradients of its own model only: those of a purifier would pile up
        assert all(parameter.grad is None for parameter in defended.purifier.parameters())


def test_art_with_a_surrogate(art: Any, defended: purify.PurifiedClassifier, batch: Batch) -> None:
    """A purifier without a gradient: the surrogate's, at the purifier's own values, as our BPDA has it."""

    class Quantise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 8).round() / 8

    images, labels = batch[0][:8], batch[1][:8]
    victim, quantise = defended.classifier, Quantise()
    assert not exact(lambda x: victim(quantise(x)))(images, lambda logits: logits.sum(1)).gradient.any()
    defence = art.PurifierPreprocessor(quantise, surrogate=nn.Identity())
    classifier = art.PyTorchClassifier(victim, nn.CrossEntropyLoss(), (1, 8, 8), 10, preprocessing_defences=defence)
    step = bpda(quantise, victim)(images, lambda logits: F.cross_entropy(logits, labels, reduction="none") / len(labels))
    assert step.gradient.abs().max() > 0
    assert np.allclose(classifier.loss_gradient(images.numpy(), one_hot(labels)), step.gradient, atol=1e-6)
    assert np.allclose(defence(images.numpy())[0], quantise(images))


def test_art_wants_the_shape_of_one_image(art: Any, defended: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"shape \(C, H, W\) of one image, got \(2, 1, 8, 8\)"):
        art.to_art(defended, (2, 1, 8, 8))


# ---- torchattacks


def test_torchattacks(defended: nn.Module, batch: Batch, threat: ThreatModel, native: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    kind = torchattacks.PGD if threat.norm == "linf" else torchattacks.PGDL2
    theirs = kind(to_torchattacks(defended), eps=threat.eps, alpha=threat.eps / 4, steps=STEPS, random_start=False)
    found = theirs(*batch)
    threat.verify(found, batch[0])
    assert accuracy(defended, found, batch[1]) == pytest.approx(native, abs=TOLERANCE)


def test_attacks_that_look_outside_of_0_1(defended: nn.Module, batch: Batch) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    settings = {"alpha": 0.1, "steps": 4}
    with pytest.raises(ValueError, match="expected images"):
        torchattacks.NIFGSM(defended, eps=0.3, **settings)(*batch)
    found = torchattacks.NIFGSM(to_torchattacks(defended), eps=0.3, **settings)(*batch)
    assert accuracy(defended, found, batch[1]) < 0.2
    attack = TorchattacksAttack(ThreatModel("linf", 0.3), torchattacks.NIFGSM, settings)
    assert attack(defended, *batch).success.float().mean() > 0.8
    with pytest.raises(ValueError, match="expected images"):  # the user's own model still checks
        defended(batch[0] * 255)


# ---- their attacks behind our call


def pgd_of(library: str, threat: ThreatModel, random_start: bool = False) -> BorrowedAttack:
    linf = threat.norm == "linf"
    if library == "torchattacks":
        theirs = pytest.importorskip("torchattacks")
        settings = {"alpha": threat.eps / 4, "steps": STEPS, "random_start": random_start}
        return TorchattacksAttack(threat, theirs.PGD if linf else theirs.PGDL2, settings)
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent

    from purify.interop.art import ARTAttack

    settings = {"eps_step": threat.eps / 4, "max_iter": STEPS, "batch_size": N, "num_random_init": int(random_start)}
    return ARTAttack(threat, ProjectedGradientDescent, settings)


@pytest.mark.parametrize("library", ["art", "torchattacks"])
def test_borrowed_attack(defended: nn.Module, batch: Batch, threat: ThreatModel, native: float, library: str) -> None:
    images, labels = batch
    result = pgd_of(library, threat)(defended, images, labels)
    assert 1 - result.success.float().mean().item() == pytest.approx(native, abs=TOLERANCE)
    assert torch.equal(result.success, defended(result.adversarial).argmax(1) != labels)
    assert bool((result.distance <= threat.eps + 1e-5).all())
    right = defended(images).argmax(1) == labels
    assert int(result.queries[right].min()) >= STEPS + 2  # two passes are the call's own


@pytest.mark.parametrize("library", ["art", "torchattacks"])
def test_images_that_are_wrong_from_the_start(defended: nn.Module, batch: Batch, library: str) -> None:
    images, labels = batch[0][:4], (batch[1][:4] + torch.tensor([1, 0, 1, 1])) % 10
    result = pgd_of(library, ThreatModel("linf", 0.3))(defended, images, labels)
    assert result.success.all()
    assert torch.equal(result.adversarial[[0, 2, 3]], images[[0, 2, 3]])
    assert result.queries[[0, 2, 3]].tolist() == [2, 2, 2]
    assert pgd_of(library, ThreatModel("linf", 0.3))(defended, images[2:], labels[2:]).success.all()  # nothing to attack


@pytest.mark.parametrize("library", ["art", "torchattacks"])
def test_nothing_else_is_touched(batch: Batch, library: str) -> None:
    """Neither parameters nor modes nor anybody's random state; the generator alone decides what is drawn."""
    model = purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")
    attack = pgd_of(library, ThreatModel("linf", 0.09), random_start=True)

    def run(seed: int) -> Tensor:
        return attack(model, *batch, generator=torch.Generator().manual_seed(seed)).adversarial

    def state() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

    before, modes = state(), [part.training for part in model.modules()]
    first, again, other = run(1), run(1), run(2)
    assert state() == before
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert model.validate


def test_minimum_norm_attack(art: Any, defended: nn.Module, batch: Batch) -> None:
    """DeepFool knows no ball: its breaks inside it count, the rest come back projected."""
    from art.attacks.evasion import DeepFool

    images, labels = batch[0][:12], batch[1][:12]
    attack = art.ARTAttack(ThreatModel("l2", 0.5), DeepFool, {"max_iter": 10, "nb_grads": 3, "batch_size": 12})
    result = attack(defended, images, labels)
    assert 0 < int(result.success.sum()) < 12
    assert bool((result.distance <= 0.5 + 1e-5).all())


class Liar:
    """An attack that leaves the ball, and divides by nothing for the first image."""

    def __init__(self, model: nn.Module, eps: float) -> None:
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model(images)
        found = images + 3
        found[0] = float("nan")
        return found


def test_what_a_library_hands_back_is_not_believed(defended: nn.Module, batch: Batch) -> None:
    images = batch[0][:6]
    labels = defended(images).argmax(1)
    result = TorchattacksAttack(ThreatModel("linf", 0.001), Liar)(defended, images, labels)
    assert torch.equal(result.adversarial[0], images[0])
    assert torch.allclose(result.adversarial[1:], (images[1:] + 0.001).clamp(max=1))
    assert not result.success.any()
    assert result.queries.tolist() == [3] * 6


def test_what_cannot_be_borrowed(defended: nn.Module, batch: Batch) -> None:
    threat = ThreatModel("linf", 0.1)
    with pytest.raises(ValueError, match=r"leave eps out of the settings: set by the threat model \(L∞ 0.1\)"):
        TorchattacksAttack(threat, Liar, {"eps": 0.2})
    with pytest.raises(ValueError, match="Liar is offered untargeted only"):
        TorchattacksAttack(threat, Liar)(defended, *batch, targets=(batch[1] + 1) % 10)


def test_victim_of_any_callable() -> None:
    layer = nn.Linear(4, 3)
    victim = Victim(lambda x: layer(x.flatten(1)), torch.device("cpu"))
    x = torch.rand(5, 1, 2, 2, requires_grad=True)
    victim(x).square().sum().backward()
    (truth,) = torch.autograd.grad(layer(x.flatten(1)).square().sum(), x)
    assert torch.allclose(x.grad, truth)  # type: ignore[arg-type]
    assert layer.weight.grad is None
    assert victim.passed == 5
    assert not victim(x.detach()).requires_grad


@pytest.mark.parametrize("cut", [lambda x: x.detach().flatten(1), lambda x: layer_after(x.detach())], ids=["all", "half"])
def test_victim_without_a_gradient(cut: Callable[[Tensor], Tensor]) -> None:
    logits = Victim(cut, torch.device("cpu"))(torch.rand(2, 1, 2, 2, requires_grad=True))
    with pytest.raises(ValueError, match="no gradient reaches the images"):
        logits.sum().backward()


def layer_after(x: Tensor) -> Tensor:
    """A classifier whose parameters have a gradient where its images have none."""
    return nn.Linear(4, 3)(x.flatten(1))
