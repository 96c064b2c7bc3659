"""Attacks: inside the ball, equal to foolbox's, the best iterate returned, nothing else touched."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import purify
from purify.attacks import APGD, FGSM, FMN, PGD, Attack, FoolboxAttack, ThreatModel, bpda, exact
from purify.attacks.objective import make_objective
from purify.attacks.problem import Problem
from purify.attacks.result import margin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox

LINF, L2, L1 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.6), ThreatModel("l1", 3.0)


@pytest.fixture
def right(victim: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Test digits that the shipped classifier gets right."""
    x, y = digits
    with torch.no_grad():
        keep = victim(x).argmax(1) == y
    return x[keep], y[keep]


# ---- against foolbox


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_fgsm_is_foolboxes(threat: ThreatModel, victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    theirs = (foolbox.attacks.LinfFastGradientAttack if threat.norm == "linf" else foolbox.attacks.L2FastGradientAttack)()
    _, expected, _ = theirs(foolbox.PyTorchModel(victim, bounds=(0, 1)), x, y, epsilons=threat.eps)
    found = FGSM(threat)(victim, x, y)
    assert (found.adversarial - expected).abs().max() < 1e-6


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_pgd_is_foolboxes(threat: ThreatModel, victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    """Without a random start both are deterministic, and ours may only be stronger: it keeps the best iterate."""
    x, y = right
    steps, relative = 10, 0.25
    kind = foolbox.attacks.LinfPGD if threat.norm == "linf" else foolbox.attacks.L2PGD
    theirs = kind(rel_stepsize=relative, steps=steps, random_start=False)
    _, _, success = theirs(foolbox.PyTorchModel(victim, bounds=(0, 1)), x, y, epsilons=threat.eps)
    ours = PGD(threat, steps=steps, step_size=relative * threat.eps, random_start=False)(victim, x, y)
    assert (ours.success | ~success).float().mean() > 0.99
    assert abs(float(ours.success.float().mean() - success.float().mean())) < 0.03


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_pgd_with_random_start_agrees_within_noise(threat: ThreatModel, victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    kind = foolbox.attacks.LinfPGD if threat.norm == "linf" else foolbox.attacks.L2PGD
    torch.manual_seed(0)
    theirs = kind(rel_stepsize=2.5 / 20, steps=20)
    _, _, success = theirs(foolbox.PyTorchModel(victim, bounds=(0, 1)), x, y, epsilons=threat.eps)
    ours = PGD(threat, steps=20)(victim, x, y)
    assert abs(float(ours.success.float().mean() - success.float().mean())) < 0.05


# ---- behaviour

ATTACKS: list[Attack] = [
    FGSM(LINF),
    FGSM(L2, loss="margin"),
    PGD(LINF, steps=6),
    PGD(L2, steps=6, restarts=2, loss="dlr"),
    PGD(LINF, steps=6, early_stop=False, loss="margin"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@pytest.mark.parametrize("targeted", [False, True])
def test_results_are_true(attack: Attack, targeted: bool, toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    with torch.no_grad():
        y, second = toy(x).topk(2).indices.unbind(1)
    targets = second if targeted else None
    before = [p.clone() for p in toy.parameters()]
    result = attack(toy, x, y, targets=targets)
    with torch.no_grad():
        logits = toy(result.adversarial)
    attack.threat.verify(result.adversarial, x)
    said = logits.argmax(1)
    assert torch.equal(result.success, said != y if targets is None else said == targets)
    assert torch.allclose(result.margin, margin(logits, y))
    assert torch.allclose(result.distance, attack.threat.distance(result.adversarial, x))
    assert (result.queries >= 2).all()
    assert result.success.float().mean() > (0.02 if targeted else 0.2)
    assert all(torch.equal(a, b) for a, b in zip(before, toy.parameters(), strict=True))
    assert all(p.grad is None for p in toy.parameters())
    again = attack(toy, x, y, targets=targets)
    assert torch.equal(result.adversarial, again.adversarial)


def test_the_seed_decides(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    state = torch.get_rng_state()
    runs = [PGD(LINF, steps=3)(toy, x, y, generator=torch.Generator().manual_seed(s)).adversarial for s in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())  # nobody's global stream was touched


def test_misclassified_images_are_left_alone(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    with torch.no_grad():
        wrong = (toy(x).argmax(1) + 1) % 10
    for attack in (FGSM(LINF), PGD(LINF, steps=3)):
        result = attack(toy, x, wrong)
        assert result.success.all()
        assert torch.equal(result.adversarial, x)
        assert (result.distance == 0).all()


def test_broken_images_leave_the_batch(victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    sizes: list[int] = []

    def counting(images: Tensor) -> Tensor:
        sizes.append(len(images))
        logits: Tensor = victim(images)
        return logits

    result = PGD(LINF, steps=20)(counting, x, y, precision="float32")
    assert result.success.float().mean() > 0.5
    inside = sizes[1:-1]  # without the check of the clean images and the final scoring
    assert inside == sorted(inside, reverse=True)
    assert inside[-1] < inside[0]
    assert sum(sizes) == int(result.queries.sum())


def test_the_highest_loss_is_returned() -> None:
    """A wavy loss whose last iterate is worse than an earlier one."""

    def model(x: Tensor) -> Tensor:
        value = torch.sin(40 * x.sum((1, 2, 3)))
        return torch.stack([5 - value, value], 1)

    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        logits = model(x)
        seen.append((logits[:, 1] - logits[:, 0]).detach())
        return logits

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    result = PGD(ThreatModel("linf", 0.2), steps=9, loss="margin", random_start=False, step_size=0.045)(spy, x, y)
    assert not result.success
    iterates = torch.cat(seen[1:-1])
    assert -result.margin == pytest.approx(float(iterates.max()))
    assert float(iterates.max()) > float(iterates[-1]) + 0.1


def test_full_strength_goes_beyond_the_boundary(victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    early = PGD(LINF, steps=20)(victim, x, y)
    late = PGD(LINF, steps=20, early_stop=False)(victim, x, y)
    assert late.success.sum() >= early.success.sum()
    assert late.margin.median() < early.margin.median() - 0.5


def test_restarts_only_help(victim: nn.Module, right: tuple[Tensor, Tensor]) -> None:
    x, y = right
    threat = ThreatModel("linf", 0.05)
    rates = [PGD(threat, steps=4, restarts=n)(victim, x, y).success.float().mean() for n in (1, 6)]
    assert rates[1] >= rates[0]


def test_eps_zero_returns_the_images(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    for norm in ("linf", "l2", "l1"):
        threat = ThreatModel(norm, 0.0)  # type: ignore[arg-type]
        result = (APGD if norm == "l1" else PGD)(threat, steps=4)(toy, x, y)
        assert torch.equal(result.adversarial, x)
        assert (result.distance == 0).all()


# ---- gradient paths


def test_exact_agrees_with_finite_differences(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:2].double(), digits[1][:2]
    toy = toy.double()
    objective = make_objective("ce")
    step = exact(toy)(x, lambda z: objective(z, y, None))
    direction, h = torch.randn_like(x), 1e-5
    ends = [objective(toy(x + s * h * direction), y, None).detach() for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * h)
    assert torch.allclose((step.gradient * direction).flatten(1).sum(1), expected, rtol=1e-5)


def test_bpda_breaks_what_has_no_gradient(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits

    def quantise(images: Tensor) -> Tensor:
        return (images * 32).round() / 32

    def defended(images: Tensor) -> Tensor:
        logits: Tensor = toy(quantise(images))
        return logits

    with torch.no_grad():
        y = defended(x).argmax(1)
    masked = PGD(LINF, steps=10, random_start=False)(defended, x, y)
    honest = PGD(LINF, steps=10, random_start=False)(defended, x, y, gradient=bpda(quantise, toy))
    assert not masked.success.any()
    assert honest.success.float().mean() > 0.5


def test_bpda_scores_the_defence_itself(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits

    def stage(images: Tensor) -> Tensor:
        return (images * 4).round() / 4

    step = bpda(stage, toy, lambda images: images**2)(x, lambda z: z.sum(1))
    assert torch.equal(step.logits, toy(stage(x)))
    leaf = x.clone().requires_grad_()
    inner = stage(x).requires_grad_()
    (through,) = torch.autograd.grad(toy(inner).sum(), inner)
    (expected,) = torch.autograd.grad(leaf**2, leaf, through)
    assert torch.allclose(step.gradient, expected, atol=1e-5)


def test_a_cut_gradient_is_named(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(ValueError, match="no gradient reaches the images.*bpda"):
        PGD(LINF)(lambda images: toy(images.detach()), x, y)


# ---- bad input


def test_bad_input(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    attack = FGSM(LINF)
    with pytest.raises(ValueError, match="divided by 255"):
        attack(toy, x * 255, y)
    with pytest.raises(ValueError, match="0 … 9"):
        attack(toy, x, y + 5)
    with pytest.raises(ValueError, match="a target equals its label"):
        attack(toy, x, y, targets=y)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        attack(lambda images: toy(images) * float("nan"), x, y)
    with pytest.raises(ValueError, match="one class only"):
        attack(lambda images: images.flatten(1)[:, :1], x, torch.zeros_like(y))
    with pytest.raises(ValueError, match=r"logits \(120, classes\), got \(120, 1, 8, 8\)"):
        attack(lambda images: images, x, y)
    with pytest.raises(ValueError, match="the model gives probabilities.*give the logits"):
        attack(lambda images: toy(images).softmax(1), x, y)
    attack(lambda images: toy(images).log_softmax(1), x, y)
    with pytest.raises(ValueError, match="FGSM is made for linf and l2, got L1 3"):
        FGSM(L1)
    with pytest.raises(ValueError, match="at least one step"):
        PGD(LINF, steps=0)
    with pytest.raises(ValueError, match="step size above 0"):
        PGD(LINF, step_size=-1.0)


def test_a_model_in_training_mode_is_named(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(UserWarning, match="in training mode.*call model.eval"):
        FGSM(LINF)(toy.train(), *digits)


def test_labels_on_another_device(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="labels on cpu like the images, got labels on meta"):
        FGSM(LINF)(toy, digits[0], digits[1].to("meta"))


def test_problem_part() -> None:
    problem = Problem(torch.rand(4, 1, 2, 2), torch.arange(4), torch.arange(4) + 1)
    rows = problem.part(torch.tensor([2, 0]))
    assert rows.labels.tolist() == [2, 0]
    assert rows.targets is not None
    assert rows.targets.tolist() == [3, 1]


@pytest.mark.parametrize(
    "attack", [PGD(ThreatModel("l2", 0.3), steps=4), *(a(ThreatModel("linf", 0.3), steps=4) for a in (FMN, APGD))]
)
def test_a_gradient_that_is_no_number_is_no_obstacle(attack: Attack, toy: nn.Module) -> None:
    """The standard deviation of a flat picture has none, though the logits are finite."""

    def model(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return logits + images.flatten(1).var(1, unbiased=False).sqrt()[:, None]

    x = torch.cat([torch.full((1, 1, 8, 8), 0.5), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    assert bool(torch.isfinite(attack(model, x, model(x).argmax(1)).adversarial).all())


def test_rounding_is_taken_away_and_half_precision_is_refused(toy: nn.Module) -> None:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 1.00005
    wrong = (toy(x).argmax(1) + 1) % 10
    assert float(PGD(ThreatModel("linf", 0.1), steps=2)(toy, x, wrong).adversarial.max()) <= 1
    with pytest.raises(TypeError, match=r"in float32 or float64, got torch.bfloat16.*images.to\(torch.bfloat16\)"):
        PGD(ThreatModel("linf", 0.1))(toy, x.bfloat16(), wrong)


def test_a_layer_left_in_training_mode_is_named(toy: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), toy).eval()
    model[0].train()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"training mode \(batch statistics, dropout\) in 0"):
        PGD(ThreatModel("linf", 0.1), steps=1)(model, x, torch.zeros(2, dtype=torch.long))
    with pytest.warns(UserWarning, match="these layers are in training mode.*: purifier; call eval"):
        purify.wrap(toy, nn.BatchNorm2d(1))


@pytest.mark.filterwarnings("ignore:LinearSearchBlended")
def test_hopskipjump_without_a_start_leaves_the_image(toy: nn.Module) -> None:
    """No random image is of another class: there is nothing to walk from."""

    def certain(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return logits * 1e-3 + torch.tensor([5.0] + [0.0] * 9)

    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = FoolboxAttack(ThreatModel("linf", 0.1), name="hopskipjump", steps=1)(certain, x, torch.zeros(2, dtype=torch.long))
    assert not bool(found.success.any())
    assert torch.equal(found.adversarial, x)
