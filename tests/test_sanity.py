"""The checks: each planted fake is flagged, an honestly robust model is not, and the figures are what they say."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, quick_classifier
from torch import Tensor, nn

import purify
from purify.attacks import APGD, PGD, ThreatModel
from purify.eval.evaluate import gradient_paths
from purify.eval.examination import Examination, freeze
from purify.eval.fakes import FAKES, ExtremeTemperature, RandomResize
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
    """A small honest network: PGD-5 at 0.2 on the training digits, about 10 s."""
    images, labels = purify.load_dataset("digits", "train").batch(slice(None))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU()
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(25):
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


def test_the_line_above_a_table() -> None:
    line = check_line(list(_checks("no defence")))
    assert "FAILED" not in line
    assert line.startswith("passed: S1, S2")
    assert check_line([]) == "not run"
