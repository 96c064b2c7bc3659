"""Suites, gradient paths and planted fakes: what is attacked along every path falls as if it were undefended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from purify.attacks import (
    APGD,
    PGD,
    AutoAttack,
    Entry,
    RandomSearch,
    Square,
    Suite,
    ThreatModel,
    check_deterministic,
    eot,
    every_path,
    exact,
    make_suite,
    run_suite,
)
from purify.attacks.suite import SUITES

LINF = ThreatModel("linf", 0.1)
SMALL = ThreatModel("linf", 0.04)
"""Breaks some of the toy's images."""


@pytest.fixture
def batch(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Twenty-four digits with the labels that the toy gives them."""
    x = digits[0][:24]
    with torch.no_grad():
        return x, toy(x).argmax(1)


@pytest.mark.parametrize("name", SUITES)
def test_suites_can_be_printed_and_extended(name: str) -> None:
    suite = make_suite(name, LINF)
    assert str(suite).startswith(f"{name}: ")
    assert all(entry.name in str(suite) and str(entry.attack) in str(suite) for entry in suite.entries)
    longer = suite.with_entries(Entry("noise", RandomSearch(LINF), along="once"))
    assert [entry.name for entry in longer.entries] == [entry.name for entry in suite.entries] + ["noise"]
    assert "autoattack" not in str(suite).lower()


def test_settings_are_autoattacks_where_they_overlap() -> None:
    ce, targeted, _, square = (entry.attack for entry in make_suite("standard", LINF).entries)
    assert (ce.steps, ce.restarts, ce.loss) == (100, 1, "ce")  # type: ignore[attr-defined]
    assert (targeted.steps, targeted.classes, targeted.loss) == (100, 9, "dlr")  # type: ignore[attr-defined]
    assert (square.queries, square.covered) == (5000, 0.8)  # type: ignore[attr-defined]
    ce, targeted = (entry.attack for entry in make_suite("standard", ThreatModel("l1", 12)).entries)
    assert (ce.restarts, targeted.classes) == (5, 5)  # type: ignore[attr-defined]
    assert make_suite("random", LINF).draws == 20


def test_bad_suites() -> None:
    with pytest.raises(ValueError, match="unknown suite 'hard'; known: fast, standard, random, adaptive"):
        make_suite("hard", LINF)
    with pytest.raises(ValueError, match="'standard' is for deterministic models"):
        make_suite("standard", LINF, draws=20)
    with pytest.raises(ValueError, match="at least one draw, got 0"):
        make_suite("random", LINF, draws=0)


def test_standard_agrees_with_pyautoattack(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    ours = run_suite(make_suite("standard", SMALL), toy, x, y)
    theirs = AutoAttack(SMALL)(toy, x, y)
    assert 0.1 < float(ours.robust.mean()) < 0.9
    assert abs(float(ours.robust.sum()) - float((~theirs.success).sum())) <= 1


def test_a_result_is_true(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    seen: list[tuple[str, int, int]] = []
    *gradients, _ = make_suite("standard", SMALL).entries
    suite = Suite("short", "", (*gradients, Entry("Square", Square(SMALL, queries=60), along="once")))
    result = run_suite(suite, toy, x, y, batch_size=16, progress=lambda *now: seen.append(now))
    SMALL.verify(result.adversarial, x)
    with torch.no_grad():
        wrong = toy(result.adversarial).argmax(1) != y
    assert torch.equal(wrong, result.robust == 0)
    assert torch.equal(wrong, result.margin <= 0)
    assert [bool(name) for name in result.broken_by] == wrong.tolist()
    assert [stage.name for stage in result.stages] == [entry.name for entry in suite.entries]
    standing = len(x)
    for stage in result.stages:
        assert stage.attacked == standing
        standing -= stage.broken
    assert standing == int(result.robust.sum())
    assert f"robust accuracy {100 * float(result.robust.mean()):.1f} %" in str(result)
    assert {name for name, _, _ in seen} == set(result.broken_by) - {""} | {
        stage.name for stage in result.stages if stage.attacked
    }
    again = run_suite(suite, toy, x, y, batch_size=16)
    assert torch.equal(again.adversarial, result.adversarial)


def test_survivors_are_gathered_into_full_batches(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    sizes: list[int] = []

    class Noting(RandomSearch):
        def __call__(self, model: Callable[[Tensor], Tensor], images: Tensor, *rest: object, **more: object) -> object:  # type: ignore[override]
            sizes.append(len(images))
            return super().__call__(model, images, *rest, **more)  # type: ignore[arg-type]

    suite = make_suite("fast", SMALL).with_entries(Entry("noting", Noting(SMALL, draws=2)))
    result = run_suite(suite, toy, x, y, batch_size=8)
    assert sizes[:-1] == [8] * (len(sizes) - 1)
    assert sum(sizes) == result.stages[1].attacked < 40


def test_few_classes_get_the_margin_in_place_of_dlr(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch

    def binary(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return logits[:, :2] - centre

    with torch.no_grad():
        centre = toy(x)[:, :2].median(0).values
        y = binary(x).argmax(1)
    short = dataclasses.replace(make_suite("standard", SMALL), entries=make_suite("standard", SMALL).entries[:2])
    assert run_suite(short, binary, x, y).robust.mean() < 0.9
    assert run_suite(make_suite("random", SMALL, draws=2), binary, x, y).robust.mean() < 0.9
    with pytest.raises(ValueError, match="at least 4 classes, got 2"):
        short.entries[1].attack(binary, x, y)


# ---- planted fakes


def quantise(images: Tensor) -> Tensor:
    return (images * 8).round() / 8


@pytest.mark.parametrize("fake", ["detach", "quantise"])
def test_planted_fakes_fall(fake: str, toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    stage: Callable[[Tensor], Tensor] = quantise if fake == "quantise" else Tensor.detach
    x, _ = batch

    def defended(images: Tensor) -> Tensor:
        logits: Tensor = toy(stage(images))
        return logits

    with torch.no_grad():
        y = defended(x).argmax(1)
    paths = every_path(defended, stage=stage, rest=toy, probe=x[:2])
    assert "exact" not in paths
    fallen = run_suite(make_suite("adaptive", LINF), defended, x, y, paths=paths).robust
    bare = run_suite(make_suite("standard", LINF), toy, x, y).robust
    assert float(fallen.mean()) <= float(bare.mean()) + 0.02


def test_extreme_softmax_temperature_falls_to_standard(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Logits a million times as large: cross-entropy's gradient is exactly zero, that of DLR is not."""
    x, y = batch

    def sharp(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return 1e6 * logits

    masked = run_suite(make_suite("fast", SMALL), sharp, x, y).robust
    fallen = run_suite(make_suite("standard", SMALL), sharp, x, y).robust
    bare = run_suite(make_suite("standard", SMALL), toy, x, y).robust
    assert float(masked.mean()) > float(bare.mean()) + 0.1
    assert float(fallen.mean()) <= float(bare.mean()) + 0.02


# ---- random defences


def test_random_defences_need_draws(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    noisy, _ = noisy_logits(toy, batch[0])
    with pytest.raises(ValueError, match="other logits for the same images at each pass"):
        run_suite(make_suite("fast", SMALL), noisy, *batch)


def test_one_coin_for_all_images_of_a_pass_is_noticed(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Two passes would agree half of the time."""
    generator = torch.Generator().manual_seed(0)

    def coin(images: Tensor) -> Tensor:
        logits: Tensor = toy(images.flip(-1) if torch.rand((), generator=generator) < 0.5 else images)
        return logits

    for _ in range(4):
        with pytest.raises(ValueError, match="other logits for the same images at each pass"):
            check_deterministic(coin, batch[0][:4])


def test_a_model_that_is_random_of_attacked_images_alone_is_refused(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Noise where an image is not of 8 bits, as attacked ones are not; and noise under a shift that hides it from a relative
    tolerance."""

    def suspicious(images: Tensor) -> Tensor:
        plain = ((images * 255 - (images * 255).round()).abs() < 1e-3).flatten(1).all(1)
        noise = torch.where(plain[:, None, None, None], 0.0, 0.2 * torch.randn_like(images))
        logits: Tensor = toy((images + noise).clamp(0, 1))
        return logits

    def shifted(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return logits + torch.randn_like(logits) + 1e4

    assert torch.equal(suspicious(batch[0]), toy(batch[0]))
    for model in (suspicious, shifted):
        with pytest.raises(ValueError, match="other logits for the same images at each pass"):
            check_deterministic(model, batch[0][:4])
    check_deterministic(lambda images: toy(images) + 100.0, batch[0][:4])


def test_a_model_that_looks_at_its_whole_batch_is_refused(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Noise from a fixed seed, the same at each pass and other for an image in another batch; a stretch over the batch."""

    def fixed_noise(images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        logits: Tensor = toy((images + 0.5 * noise).clamp(0, 1))
        return logits

    def stretched(images: Tensor) -> Tensor:
        logits: Tensor = toy((images - images.amin()) / (images.amax() - images.amin()) * images.mean())
        return logits

    for model in (fixed_noise, stretched):
        with pytest.raises(ValueError, match="depends on the others in its batch"):
            run_suite(make_suite("fast", SMALL), model, *batch)


@pytest.mark.parametrize("label", [0, 1])
def test_no_answer_is_a_break_whatever_the_label(label: int) -> None:
    """A model that gives NaN on a part of the ball; the largest of nothing but NaN is the class 0."""

    def model(images: Tensor) -> Tensor:
        grey = images.mean((1, 2, 3))
        sign = 1.0 if label == 0 else -1.0
        logits = torch.stack([sign * (5 - grey), sign * (grey - 5)], 1)
        return torch.where((grey > 0.55)[:, None], torch.nan, logits)

    images, labels = torch.full((3, 1, 2, 2), 0.5), torch.full((3,), label)
    result = PGD(ThreatModel("linf", 0.1), steps=5)(model, images, labels)
    assert result.success.all()
    assert run_suite(make_suite("fast", ThreatModel("linf", 0.1)), model, images, labels).robust.tolist() == [0, 0, 0]


def test_one_unlucky_draw_of_the_clean_image_ends_no_attack() -> None:
    """Behind noise an image that is wrong in the first draw, and hardly ever, is attacked like the others."""
    generator = torch.Generator().manual_seed(0)

    def noisy(images: Tensor) -> Tensor:
        margin = 4 * images.mean((1, 2, 3)) - 1  # 1.0 clean, 0.6 at the edge of the ball
        margin = margin + torch.randn(margin.shape, generator=generator)
        return torch.stack([margin, torch.zeros_like(margin)], 1)

    images, labels = torch.full((200, 1, 2, 2), 0.5), torch.zeros(200, dtype=torch.long)
    attack = APGD(ThreatModel("linf", 0.1), steps=10, early_stop=False)
    result = attack(noisy, images, labels, gradient=eot(exact(noisy), 20))
    assert float((result.distance > 0.09).float().mean()) > 0.98


def test_a_random_defence_is_scored_by_expectation(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0]
    with torch.no_grad():
        y = toy(x).argmax(1)
    noisy, _ = noisy_logits(toy, x)
    entry = Entry("APGD-CE", APGD(SMALL, steps=8, early_stop=False))
    suite = dataclasses.replace(make_suite("random", SMALL), entries=(entry,))
    result = run_suite(suite, noisy, x, y)
    with torch.no_grad():
        draws = [(noisy(result.adversarial).argmax(1) == y).float().mean() for _ in range(300)]
    assert abs(float(result.robust.mean()) - float(torch.stack(draws).mean())) < 0.02
    assert result.robust.mean() < torch.stack([(noisy(x).argmax(1) == y).float().mean() for _ in range(50)]).mean() - 0.05


def noisy_logits(toy: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
    """The toy with noise on its logits as large as the logits are, and that size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scale = float(toy(x).std())

    def noisy(images: Tensor) -> Tensor:
        logits: Tensor = toy(images)
        return logits + scale * torch.randn(logits.shape, generator=generator)

    return noisy, scale


def test_costly_attacks_follow_the_fruitful_paths() -> None:
    entry = Entry("x", RandomSearch(LINF), along="fruitful paths")
    names = ["exact", "straight through", "transfer"]
    assert entry.choose_paths(names, {}, 100) == names
    assert entry.choose_paths(names, {"transfer": 1}, 100) == ["exact", "transfer"]
    assert entry.choose_paths(names, {"exact": 50, "transfer": 1}, 200) == ["exact"]
    assert dataclasses.replace(entry, along="every path").choose_paths(names, {"transfer": 1}, 100) == names
    assert dataclasses.replace(entry, along="once").choose_paths(names, {}, 100) == ["exact"]


def test_a_compiled_model_is_a_model(toy: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    compiled = torch.compile(toy, dynamic=True, backend="aot_eager")
    plain, found = (run_suite(make_suite("fast", SMALL), model, x, y) for model in (toy, compiled))
    assert (plain.robust - found.robust).abs().sum() <= 1


def test_two_entries_of_one_name_are_refused() -> None:
    """A store knows a stage by its name: the second would count as done."""
    with pytest.raises(ValueError, match="two entries of the suite are called FMN: give each a name of its own"):
        make_suite("standard", LINF).with_entries(Entry("FMN", RandomSearch(LINF)))
