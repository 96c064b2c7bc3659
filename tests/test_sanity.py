"""The checks: each planted fake is flagged, an honestly robust model is not, and the figures are what they say."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, quick_classifier
from torch import Tensor, nn

import purify
from purify.attacks import APGD, PGD, Square, ThreatModel, exact
from purify.eval.baselines import make_baseline
from purify.eval.curves import accuracy_against_eps
from purify.eval.evaluate import gradient_paths
from purify.eval.examination import Examination, freeze, is_held
from purify.eval.fakes import FAKES, ExtremeTemperature, GradientScrambler, RandomResize
from purify.eval.sanity import CHECKS, Check, check_line, run_check, run_checks

THREAT = ThreatModel("linf", 0.15)
MODELS = [
    *(name for name in FAKES if name != "random resize"),
    "softmax temperature 10⁻⁶",
    "adversarially trained",
    "no defence",
    "digits-dsae",
]


@cache
def _trained_adversarially() -> nn.Module:
    """A small honest network: PGD-5 at 0.2 on the training digits, a few seconds."""
    images, labels = purify.load_dataset("digits", "train").batch(slice(None))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU()
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(15):
        attack = PGD(ThreatModel("linf", 0.2 * min(1, (epoch + 1) / 10)), steps=5, early_stop=False)
        for rows in torch.randperm(len(labels), generator=generator).split(128):
            attacked = attack(model, images[rows], labels[rows], generator=generator).adversarial
            optimizer.zero_grad()
            F.cross_entropy(model(attacked), labels[rows]).backward()
            optimizer.step()
    return model


def _examination(name: str) -> Examination:
    victim = quick_classifier()
    if name in FAKES:
        model: nn.Module = purify.wrap(victim, FAKES[name]().eval())
    else:
        model = {
            "softmax temperature 10⁻⁶": lambda: purify.wrap(ExtremeTemperature(victim).eval(), nn.Identity()),
            "adversarially trained": _trained_adversarially,
            "no defence": lambda: victim,
            "digits-dsae": lambda: purify.wrap(victim, "digits-dsae"),
        }[name]()
    images, labels = purify.load_dataset("digits", "test").first(48).batch(slice(None))
    return Examination(
        model=model,
        images=images,
        labels=labels,
        threat=THREAT,
        paths=gradient_paths(model, images[:2]),
        bare=model.undefended if isinstance(model, purify.PurifiedClassifier) else None,
        draws=4 if name == "random resize" else 1,
        steps=20,
        queries=300,
        random_draws=1000,
    )


@cache
def _checks(name: str) -> tuple[Check, ...]:
    return tuple(run_checks(_examination(name)))


@pytest.mark.parametrize("name", MODELS)
def test_fakes_are_flagged_and_honest_models_are_not(name: str) -> None:
    """The table of ``docs/checks.md`` says which check sees which model; it is held against a new run."""
    failed = [check.id for check in _checks(name) if check.verdict == "fail"]
    fake = name in FAKES or name.startswith("softmax")
    assert bool(failed) == fake, [check for check in _checks(name) if check.verdict == "fail"]
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    marks = [cell.strip() for cell in row.strip("|").split("|")][1:]
    documented = [check for check, mark in zip(CHECKS, marks, strict=True) if mark == "✗"]
    assert failed == documented, [(c.id, c.verdict, c.words) for c in _checks(name)]


def test_a_random_fake_is_flagged() -> None:
    """By the noise of its gradient; how far plain attacks come, and so what the other checks say, is up to chance."""
    assert run_check("S10", _examination("random resize")).verdict == "fail"


def test_the_honest_model_is_robust_at_all() -> None:
    images, labels = purify.load_dataset("digits", "test").first(100).batch(slice(None))
    stand = ~APGD(ThreatModel("linf", 0.2), steps=50)(_trained_adversarially(), images, labels).success
    assert float(stand.float().mean()) > 0.4


def test_every_check_has_a_page() -> None:
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (S\d+): .*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert list(parts) == list(CHECKS)
    for name, part in parts.items():
        assert CHECKS[name][0] in page
        for word in ("**Sees**", "**Fails**", "**Do**"):
            assert word in part, (name, word)


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(ValueError, match="unknown check 'S14'; known: S1, S2"):
        run_check("S14", _examination("no defence"))


def test_finite_differences_see_a_wrong_gradient() -> None:
    """S9 by itself: a stage whose backward pass is not the derivative of its forward pass."""

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() + (0.3 * x - 0.3 * x.detach())

    examination = _examination("no defence")
    examination.model = purify.wrap(quick_classifier(), Wrong().eval())
    check = run_check("S9", examination)
    assert check.verdict == "fail"
    assert "7.0e-01" in check.words


def test_frozen_randomness_is_the_same_at_every_pass() -> None:
    model = purify.wrap(quick_classifier(), RandomResize().eval())
    x, _ = purify.load_dataset("digits", "test").first(4).batch(slice(None))
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        held = freeze(model)
        assert torch.equal(held(x), held(x))
        before = torch.rand(1, generator=torch.Generator().manual_seed(0))
        state = torch.get_rng_state()
        held(x)
        assert torch.equal(state, torch.get_rng_state())
        assert before.numel() == 1


class _Shaken(nn.Module):
    """Shifts every image by a random amount, drawn from a generator of NumPy."""

    def __init__(self, *, hidden: bool) -> None:
        super().__init__()
        generator = np.random.default_rng(0)
        self.generator = None if hidden else generator
        self.draw = lambda: int(generator.integers(-2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.roll(self.draw(), -1)


def test_randomness_of_numpy_is_held_too_and_what_cannot_be_held_is_said() -> None:
    x, _ = purify.load_dataset("digits", "test").first(4).batch(slice(None))
    open_one, hidden = (purify.wrap(quick_classifier(), _Shaken(hidden=hidden).eval()) for hidden in (False, True))
    assert is_held(freeze(open_one), x)
    assert not is_held(freeze(hidden), x)
    examination = _examination("random resize")
    examination.model = hidden
    for name, verdict in (("S10", "fail"), ("S9", "not applicable")):
        check = run_check(name, examination)
        assert check.verdict == verdict
        assert "cannot be held fixed" in check.words


class _Scrambler(nn.Module):
    """The identity, with a backward pass that turns the gradient's signs over in a pattern."""

    def forward(self, images: Tensor) -> Tensor:
        pattern = torch.randint(2, images.shape[1:], generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        return (images * pattern) + (images - images * pattern).detach()


class _NoisyLogits(nn.Module):
    """Another classifier with noise on its logits."""

    def __init__(self, rest: nn.Module, size: float) -> None:
        super().__init__()
        self.rest, self.size, self.generator = rest, size, torch.Generator().manual_seed(0)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.rest(images)
        return logits + self.size * torch.randn(logits.shape, generator=self.generator)


def test_masked_gradients_behind_noise_are_seen() -> None:
    """Hardly any image is wrong in every draw, so that a count of those would see nothing."""
    model = purify.wrap(_NoisyLogits(quick_classifier(), 2.0), _Scrambler().eval())
    examination = _examination("random resize")
    examination.model, examination.draws, examination.steps = model, 6, 8
    examination.paths = gradient_paths(model, examination.images[:2])
    check = run_check("S6", examination)
    assert check.verdict == "fail", check.words
    examination.model = purify.wrap(_NoisyLogits(quick_classifier(), 2.0), nn.Identity())
    examination.paths, examination._done = gradient_paths(examination.model, examination.images[:2]), {}
    check = run_check("S6", examination)
    assert check.verdict != "fail", check.words


def test_noise_does_not_hide_a_masked_gradient_from_square() -> None:
    """Scrambled gradients behind noise in the logits: asked for the mean of the draws, Square finds what gradients do not."""
    examination = _examination("no defence")
    model = purify.wrap(_NoisyLogits(quick_classifier(), 3.0), GradientScrambler().eval())
    examination.model, examination.draws, examination.steps, examination.queries = model, 8, 8, 1000
    examination.images, examination.labels = examination.images[:32], examination.labels[:32]
    examination.paths = {"exact": exact(model)}
    check = run_check("S5", examination)
    assert check.verdict == "fail", check.words
    lucky = examination.under(Square(examination.threat, queries=1000, early_stop=False), "none")
    averaged = examination.under(Square(examination.threat, queries=1000, early_stop=False), "none", averaged=True)
    assert averaged.mean() < lucky.mean() - 0.1


def test_iterative_checks_follow_the_strongest_path() -> None:
    """A quantiser has a gradient, which is zero: an attack along it shows nothing."""
    for name in ("hard quantiser", "no defence"):
        examination = _examination(name)
        assert examination.connected
        path = examination.strongest()
        assert path is not None
        assert (path == "exact") == (name == "no defence")
        left = float(examination.under(examination.attack(), path).mean())
        assert left < 0.5
        assert f"{100 * left:.1f} %" in run_check("S4", examination).words


def test_planted_fakes_before_a_classifier_that_nothing_moves() -> None:
    """S8 alone would see the planted zero gradients there too; that says nothing about the comparisons."""
    examination = _examination("no defence")
    examination.labels = torch.zeros_like(examination.labels)
    examination.model = lambda images: torch.eye(10)[0] * 50 + 1e-3 * images.flatten(1)[:, :10]
    assert run_check("S13", examination).verdict == "not applicable"


def test_a_planted_fake_that_hides_nothing_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large ball even a scrambled gradient breaks every image: there is nothing that S6 could see. Where a fake does hide
    something, and S6 is blind to it, that still fails."""
    wide = _examination("no defence")
    wide.threat = ThreatModel("linf", 0.5)
    check = run_check("S13", wide)
    assert check.verdict == "pass"
    assert check.words.endswith("GradientKiller: S6 and S8, HardQuantiser: S6 and S8, GradientScrambler: hides nothing here")
    monkeypatch.setattr("purify.eval.sanity._more", lambda *_: (False, "blind"))
    check = run_check("S13", wide)
    assert check.verdict == "fail"
    assert "GradientKiller: S8, HardQuantiser: S8, " in check.words
    assert check.words.endswith("GradientScrambler: hides nothing here")
    assert run_check("S13", _examination("no defence")).words.endswith("GradientScrambler: NOT caught")


def test_without_an_exact_gradient_the_best_stand_in_is_examined() -> None:
    """JPEG has no gradient of use: what counts there is whether the attack along its stand-in has converged."""
    examination, model = _examination("no defence"), purify.wrap(quick_classifier(), make_baseline("jpeg").eval())
    examination.model, examination.paths = model, gradient_paths(model, examination.images[:2])
    examination.has_gradient = False
    for name in ("S1", "S4"):
        check = run_check(name, examination)
        assert check.verdict == "pass"
        assert re.search(r"APGD (20 steps leaves )?\d\.\d %.*\(along (smooth rounding|straight through)\)", check.words), check
    examination.paths = {}
    assert run_check("S4", examination).verdict == "not applicable"


def test_an_answer_that_is_no_number_breaks_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    examination = _examination("no defence")
    examination.labels = torch.zeros_like(examination.labels)  # argmax of ten times NaN
    monkeypatch.setattr(Examination, "worst", lambda self: torch.ones(len(self.images)))
    examination.model = lambda images: images.new_full((len(images), 10), float("nan"))
    check = run_check("S7", examination)
    assert (check.verdict, check.words) == ("fail", "1000 random draws break 8 of 8 images that stood")


def test_the_line_above_a_table() -> None:
    line = check_line(list(_checks("no defence")))
    assert "FAILED" not in line
    assert line.startswith("passed: S1, S2")
    assert check_line([]) == "not run"


class _Coin(nn.Module):
    """Right with the same chance whatever the image shows: a random defence that hides nothing, and that no attack can touch."""

    def __init__(self, chance: float, seed: int) -> None:
        super().__init__()
        self.chance, self.generator = chance, torch.Generator().manual_seed(seed)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        right = torch.rand(len(images), generator=self.generator) < self.chance
        sign = torch.where(right, 1.0, -1.0)
        return torch.stack([sign, -sign], 1) + 1e-3 * images.flatten(1).sum(1, keepdim=True) * torch.tensor([[1.0, -1.0]])


def _coin(chance: float, seed: int, **settings: Any) -> Examination:
    model, images = _Coin(chance, seed), torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    labels, paths = torch.zeros(64, dtype=torch.long), {"exact": exact(model), "the same": exact(model)}
    shared: dict[str, Any] = {"threat": THREAT, "paths": paths, "draws": 20, "steps": 2, "random_draws": 1000, "seed": seed}
    return Examination(model=model, images=images, labels=labels, **shared, **settings)


def test_noise_alone_fails_no_check() -> None:
    """Of several noisy shares of an image the lowest is no finding."""
    failed = dict.fromkeys(("S4", "S6", "S7", "S10"), 0)
    for seed in range(8):
        for name in failed:
            failed[name] += run_check(name, _coin(0.75, seed)).verdict == "fail"
    assert failed["S7"] == 0
    assert failed["S4"] <= 1  # these are tests at 5 %
    assert failed["S6"] <= 1
    assert failed["S10"] <= 2


def test_the_curve_of_noise_is_flat() -> None:
    shares = [accuracy.share for accuracy in accuracy_against_eps(_coin(0.8, 0)).adaptive]
    assert len(shares) == 6
    assert all(abs(share - 0.8) < 0.05 for share in shares), shares


def test_no_more_images_at_once_than_asked() -> None:
    seen = []

    def model(images: Tensor) -> Tensor:
        if images.requires_grad:
            seen.append(len(images))
        return quick_classifier()(images)

    images, labels = purify.load_dataset("digits", "test").first(20).batch(slice(None))
    e = Examination(
        model=model, images=images, labels=labels, threat=THREAT, paths={"exact": exact(model)}, steps=2, batch_size=6
    )
    for name in ("S1", "S2", "S8"):
        run_check(name, e)
    assert max(seen) == 6


def test_a_model_that_does_not_compute_in_float64_is_spared() -> None:
    """Its own float32 values are no part of its state, so that ``.double()`` leaves them."""

    class Held(nn.Module):
        eye = torch.eye(64)

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) @ self.eye).view_as(x)

    examination = _examination("no defence")
    examination.model = purify.wrap(quick_classifier(), Held().eval())
    assert run_check("S9", examination).verdict == "not applicable"
