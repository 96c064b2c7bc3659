"""The stronger attacks: against their papers' claims, against foolbox, against each other."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purify.attacks import (
    APGD,
    FMN,
    MIFGSM,
    PGD,
    SPSA,
    Attack,
    AutoAttack,
    FoolboxAttack,
    RandomSearch,
    Square,
    TargetedAPGD,
    ThreatModel,
    eot,
    exact,
    transfer,
)
from purify.attacks.apgd import checkpoints
from purify.attacks.result import margin

LINF, L2, L1 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.6), ThreatModel("l1", 3.0)


@pytest.fixture
def right(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = digits
    with torch.no_grad():
        keep = quick_victim(x).argmax(1) == y
    return x[keep][:60], y[keep][:60]


ATTACKS: list[Attack] = [
    APGD(LINF, steps=20),
    APGD(L2, steps=20, loss="dlr", restarts=2),
    TargetedAPGD(LINF, steps=10, classes=3),
    TargetedAPGD(L2, steps=10, classes=3),
    APGD(L1, steps=30),
    TargetedAPGD(L1, steps=30, classes=3),
    MIFGSM(LINF),
    MIFGSM(L2),
    FMN(LINF, steps=40),
    FMN(L2, steps=40),
    Square(LINF, queries=300),
    Square(L2, queries=300),
    SPSA(LINF, steps=10, samples=16),
    SPSA(L2, steps=10, samples=16),
    RandomSearch(LINF, draws=20),
    RandomSearch(L2, draws=20),
    RandomSearch(L1, draws=20),
    FoolboxAttack(LINF, name="deepfool"),
    FoolboxAttack(L2, name="ddn", steps=20),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_results_are_true(attack: Attack, quick_victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    state = torch.get_rng_state()
    result = attack(quick_victim, x, y)
    with torch.no_grad():
        logits = quick_victim(result.adversarial)
    attack.threat.verify(result.adversarial, x)
    assert torch.equal(result.success, logits.argmax(1) != y)
    assert torch.allclose(result.margin, margin(logits, y), atol=1e-5)
    assert torch.equal(result.adversarial, attack(quick_victim, x, y).adversarial)
    assert torch.equal(state, torch.get_rng_state())
    assert (result.queries >= 2).all()
    if not isinstance(attack, RandomSearch):
        floor = RandomSearch(attack.threat, draws=20)(quick_victim, x, y)
        assert result.success.sum() > floor.success.sum()


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_apgd_reaches_a_higher_loss_than_pgd(threat: ThreatModel, quick_victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    small = ThreatModel(threat.norm, threat.eps / 4)
    losses = []
    for attack in (APGD(small, steps=50, early_stop=False), PGD(small, steps=50, early_stop=False)):
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(quick_victim(attack(quick_victim, x, y).adversarial), y, reduction="none"))
    assert float((losses[0] >= losses[1] - 1e-3).float().mean()) > 0.9


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_apgd_breaks_what_pyautoattacks_breaks(
    threat: ThreatModel, targeted: bool, quick_victim: nn.Module, right: tuple[Tensor, Tensor]
) -> None:
    """Both from random starts, in a smaller ball, so that neither breaks nothing or everything."""
    from pyautoattack import autopgd_base

    x, y = right
    smaller = ThreatModel(threat.norm, 0.65 * threat.eps)
    shared = {"norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm], "eps": smaller.eps, "seed": 0, "device": "cpu"}
    shared |= {"logger": logging.getLogger("quiet"), "use_largereps": threat.norm == "l1"}
    if targeted:
        theirs = autopgd_base.APGDAttack_targeted(quick_victim, n_iter=50, n_target_classes=3, **shared)
        ours: Attack = TargetedAPGD(smaller, steps=50, classes=3)
    else:
        theirs, ours = autopgd_base.APGDAttack(quick_victim, n_iter=50, **shared), APGD(smaller, steps=50)
    with torch.no_grad():
        expected = int((quick_victim(theirs.perturb(x, y)).argmax(1) != y).sum())
    found = int(ours(quick_victim, x, y).success.sum())
    print(found, expected)
    assert 5 < expected < 55
    assert abs(found - expected) <= 3


@pytest.mark.parametrize(
    "attack", [AutoAttack(LINF, attacks=("fab-t",)), FoolboxAttack(LINF, name="deepfool")], ids=["fab", "deepfool"]
)
def test_other_peoples_attacks_leave_no_gradient_in_the_weights(attack: Attack, digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = digits[0][:2]
    with torch.no_grad():
        y = model(x).argmax(1)
    before = attack(model.requires_grad_(False), x, y)
    found = attack(model.requires_grad_(True), x, y)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(found.adversarial, before.adversarial)
    assert (found.distance > 0).all()


def test_pyautoattack_behind_the_same_call(
    toy: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = digits
    x = x[:20]
    with torch.no_grad():
        y = toy(x).argmax(1)
    state = torch.get_rng_state()
    attack = AutoAttack(ThreatModel("linf", 0.05), attacks=("apgd-ce",))
    result = attack(toy, x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(result.adversarial, attack(toy, x, y).adversarial)
    assert (result.queries > 100).all()
    with pytest.raises(ValueError, match="untargeted only"):
        attack(toy, x, y, targets=(y + 1) % 10)
    with pytest.raises(ValueError, match="unknown version 'best'"):
        AutoAttack(LINF, version="best")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"purify-defense\[autoattack\]"):
        attack(toy, x, y)


def test_checkpoints_of_the_paper() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert all(0 < c <= 7 for c in checkpoints(7))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_finds_norms_like_foolboxes(norm: Any, quick_victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    import foolbox

    x, y = right
    ours = FMN(ThreatModel(norm, 1.0 if norm == "linf" else 8.0), steps=100)(quick_victim, x, y)
    theirs = (foolbox.attacks.LInfFMNAttack if norm == "linf" else foolbox.attacks.L2FMNAttack)(steps=100)
    torch.manual_seed(0)
    _, found, success = theirs(foolbox.PyTorchModel(quick_victim, bounds=(0, 1)), x, y, epsilons=None)
    quick_victim.zero_grad()  # foolbox leaves gradients in its weights
    assert ours.success.all()
    distance = ThreatModel(norm, 1.0).distance(found, x)[success]
    assert float(ours.distance.median()) <= 1.1 * float(distance.median())


def test_fmn_agrees_with_the_ball(quick_victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    free = FMN(ThreatModel("linf", 1.0))(quick_victim, x, y)
    inside = FMN(ThreatModel("linf", 0.05), stop_inside=True)(quick_victim, x, y)
    assert (inside.distance <= 0.05 + 1e-6).all()
    assert torch.equal(inside.success, free.distance <= 0.05)


def test_transfer_and_eot(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    with torch.no_grad():
        y = toy(x).argmax(1)

    def masked(images: Tensor) -> Tensor:
        logits: Tensor = toy(images.detach())
        return logits

    found = PGD(LINF, steps=10)(masked, x, y, gradient=transfer(masked, toy))
    assert torch.equal(found.success, PGD(LINF, steps=10)(toy, x, y).success)
    generator = torch.Generator().manual_seed(0)

    def noisy(images: Tensor) -> Tensor:
        logits: Tensor = toy(images + 0.1 * torch.randn(images.shape, generator=generator))
        return logits

    def objective(z: Tensor) -> Tensor:
        return z.sum(1)

    spread = [torch.stack([eot(exact(noisy), n)(x, objective).gradient for _ in range(20)]).std(0).mean() for n in (1, 16)]
    assert spread[1] < 0.4 * spread[0]
    with pytest.raises(ValueError, match="at least one draw"):
        eot(exact(noisy), 0)
