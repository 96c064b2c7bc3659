"""The judge: cost, one evaluation checked by hand, and what reaches the attacks."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import purify
from purify.attacks import FMN, PGD, Attack, AttackResult, AutoAttack, Entry, Suite, ThreatModel, make_suite, run_suite
from purify.cost import count_macs, count_parameters, milliseconds_per_image
from purify.eval import Report, Settings, evaluate
from purify.eval.baselines import (
    JPEG,
    MedianFilter,
)
from purify.eval.evaluate import gradient_paths
from purify.eval.fakes import RandomResize
from purify.eval.report import COLUMNS

THREAT = ThreatModel("linf", 0.15)


# ---- cost


def test_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    assert count_macs(model, (3, 6, 6)) == 36 * 8 * 27 + 8 * 36 * 5
    assert count_parameters(model) == 8 * 27 + 8 + 8 * 36 * 5 + 5
    assert count_macs(MedianFilter(), (3, 6, 6)) == 0
    small, large = milliseconds_per_image([model, nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1)] * 200)], torch.rand(4, 3, 6, 6))
    assert 0 < small < large


# ---- one evaluation

FEW = Settings(suite="fast", oblivious_steps=15, norm_images=20, check_images=0, pictures=0)


@pytest.fixture(scope="module")
def report(quick_victim: nn.Module) -> Report:
    digits = purify.load_dataset("digits", "test").first(150)
    defended = purify.wrap(quick_victim, "digits-dsae")
    settings = Settings(
        suite="fast", oblivious_steps=20, norm_images=30, check_images=16, check_steps=10, pictures=12, batch_size=150
    )
    return evaluate(defended, digits, None, THREAT, settings=settings, quiet=True)


def test_evaluation_by_hand(report: Report, quick_victim: nn.Module, purifier: nn.Module) -> None:
    """The figures follow from the models by a shorter way."""
    x, y = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    with torch.no_grad():
        assert report.undefended_clean.right == int((quick_victim(x).argmax(1) == y).sum())
        assert report.clean.right == int((quick_victim(purifier(x)).argmax(1) == y).sum())
    attack = PGD(THREAT, steps=20, early_stop=False)
    attacked = attack(quick_victim, x, y, generator=torch.Generator().manual_seed(1009)).adversarial
    with torch.no_grad():
        assert report.undefended["PGD"].right == int((quick_victim(attacked).argmax(1) == y).sum())
        assert report.oblivious["PGD"].right == int((quick_victim(purifier(attacked)).argmax(1) == y).sum())
    lost = report.undefended_clean.right - report.undefended["PGD"].right
    assert report.recovered["PGD"].share == pytest.approx((report.oblivious["PGD"].right - report.undefended["PGD"].right) / lost)


def test_figures_follow_from_the_rows_of_each_image(report: Report) -> None:
    rows = report.per_image
    assert report.clean.right == int((rows["clean_margin"] > 0).sum())
    assert report.adaptive.right == int((rows["adaptive_margin"] > 0).sum())
    assert report.adaptive.right == report.adaptive.n - sum(report.broken_by.values())
    worst = (rows["adaptive_margin"] > 0) & (rows["oblivious_PGD_margin"] > 0) & (rows["oblivious_FGSM_margin"] > 0)
    assert report.worst_case.right == int(worst.sum()) <= report.adaptive.right
    assert (rows["adaptive_margin"] <= rows["clean_margin"]).all()
    assert report.margins["adaptive"].median == pytest.approx(float(np.median(rows["adaptive_margin"])))
    norms = rows["smallest_norm"][:30]
    assert report.norms is not None
    assert report.norms.n == int(torch.isfinite(norms).sum())
    assert report.norms.median == pytest.approx(float(np.median(norms[torch.isfinite(norms)])), abs=1e-6)
    assert torch.isnan(rows["smallest_norm"][30:]).all()


def test_smallest_norm_without_an_exact_gradient_is_the_least_over_all_paths(
    toy: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:6]
    defended = purify.wrap(toy, JPEG(75))
    with torch.no_grad():
        y = defended(x).argmax(1)
    settings = dataclasses.replace(FEW, norm_images=6)
    found = evaluate(defended, x, y, THREAT, settings=settings, quiet=True).per_image["smallest_norm"]
    paths = gradient_paths(defended, x[:2])
    assert list(paths) == ["smooth rounding", "straight through", "transfer"]
    each = []
    for path in paths.values():
        result = FMN(ThreatModel("linf", 1.0))(
            defended, x, y, generator=torch.Generator().manual_seed(0), gradient=path, precision="float32"
        )
        each.append(torch.where(result.success, result.distance, torch.inf))
    torch.testing.assert_close(found, torch.stack(each).amin(0).double(), atol=1e-6, rtol=0)
    assert not torch.allclose(each[0], found.float())  # the first path alone finds less


class _HalfQuantiser(nn.Module):
    """Rounds all rows but the first: some gradient arrives, most does not."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images[:, :, :1], (images[:, :, 1:] * 4).round() / 4], 2)


def test_smallest_norm_follows_the_path_that_breaks(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """A gradient that is mostly masked: the least is that of the straight-through path, and never above what broke an image."""
    x = digits[0][:24]
    defended = purify.wrap(toy, _HalfQuantiser().eval())
    with torch.no_grad():
        y = defended(x).argmax(1)
    settings = Settings(suite="adaptive", oblivious_steps=5, norm_images=16, check_images=0, pictures=0)
    threat = ThreatModel("linf", 0.1)
    found = evaluate(defended, x, y, threat, settings=settings, quiet=True)
    norms, broken = found.per_image["smallest_norm"], found.per_image["worst_share"] <= 0
    assert broken[:16].any()
    assert not broken[:16].all()
    assert bool((norms[:16][broken[:16]] <= 0.1 + 1e-6).all())
    assert bool(norms[16:].isnan().all())  # where it was not looked for
    along = [name for name in found.seconds if name.startswith("FMN, any norm")]
    assert "FMN, any norm, exact" in along
    assert "FMN, any norm, straight through" in along
    alone = evaluate(toy, x, y, threat, settings=settings, quiet=True)
    assert [name for name in alone.seconds if name.startswith("FMN, any norm")] == ["FMN, any norm, exact"]


def test_suites_and_the_judge_agree(report: Report, quick_victim: nn.Module) -> None:
    """``run_suite``, which keeps nothing, breaks as many images, within the noise of other random starts."""
    x, y = purify.load_dataset("digits", "test").first(150).batch(slice(None))
    defended = purify.wrap(quick_victim, "digits-dsae")
    found = run_suite(make_suite("fast", THREAT), defended, x, y, paths=gradient_paths(defended, x[:2]))
    assert abs(float(found.robust.sum()) - report.adaptive.right) <= 5


def test_the_judge_and_pyautoattack_agree(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """On the same images, within one of them."""
    x, threat = digits[0][:16], ThreatModel("linf", 0.04)
    with torch.no_grad():
        y = toy(x).argmax(1)
    settings = Settings(suite="standard", norm_images=0, check_images=0, pictures=0)
    found = evaluate(toy, x, y, threat, settings=settings, quiet=True)
    theirs = AutoAttack(threat, attacks=("apgd-ce", "apgd-t", "fab-t"))(toy, x, y)
    assert abs(found.adaptive.right - int((~theirs.success).sum())) <= 1
    assert 0.1 < found.adaptive.share < 0.9  # or the comparison would say nothing


def test_claims_are_kept_apart(report: Report) -> None:
    assert report.clean.claim == "clean"
    assert {a.claim for a in report.oblivious.values()} == {"oblivious"}
    assert (report.adaptive.claim, report.worst_case.claim) == ("adaptive", "worst case")
    assert "PGD-20, exact" in report.broken_by
    assert "PGD-20, without the clip" in report.broken_by
    assert [c for c in COLUMNS if "GD" in c or "GSM" in c] == ["FGSM, oblivious", "PGD, oblivious", "recovered from PGD"]


def test_the_curve_falls_to_nothing(report: Report) -> None:
    assert report.curve is not None
    shares = [accuracy.share for accuracy in report.curve.adaptive]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    assert report.curve.eps[0] == 0
    assert report.curve.eps[-1] == 1


def test_written_files(report: Report, tmp_path: Path) -> None:
    figures = json.loads(report.to_json(tmp_path / "new" / "r.json").read_text(encoding="utf-8"))
    assert figures["adaptive"]["n"] == 150
    assert figures["threat"] == {"norm": "linf", "eps": 0.15}
    assert "torch" in figures["configuration"]["versions"]
    with report.to_csv(tmp_path / "r.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["adaptive_margin"]) > 0 for row in rows) == report.adaptive.right
    assert sum(float(row["oblivious_PGD_margin"]) > 0 for row in rows) == report.oblivious["PGD"].right
    lines = report.table().splitlines()[4:]
    assert len({line.count("|") for line in lines}) == 1
    assert str(report.adaptive) in lines[2]


def test_bare_classifier(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    found = evaluate(quick_victim, x, y, THREAT, settings=FEW, quiet=True, name="none")
    assert found.recovered == {}
    assert found.purifier_macs == 0
    assert found.clean.right == found.undefended_clean.right
    assert found.oblivious["PGD"].right == found.undefended["PGD"].right
    assert found.code is None


def test_a_report_comes_back_from_its_json(report: Report) -> None:
    plain = json.loads(json.dumps(report.to_dict()))
    again = Report.from_dict(plain)
    time = COLUMNS.index("ms")  # quotients of rounded times may differ in their last digit
    assert again.cells()[:time] + again.cells()[time + 1 :] == report.cells()[:time] + report.cells()[time + 1 :]
    assert json.loads(json.dumps(again.to_dict())) == plain
    older = {key: value for key, value in plain.items() if key != "undefended_milliseconds"}  # tables from before it was measured
    assert "×" in again.cells()[time]
    assert "×" not in Report.from_dict(older).cells()[time]


def test_a_purifier_without_gradient_is_attacked_through_stand_ins(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, defended = digits[0][:60], purify.wrap(toy, JPEG())
    with torch.no_grad():
        y = defended(x).argmax(1)
    settings = dataclasses.replace(FEW, norm_images=0)
    found = evaluate(defended, x, y, THREAT, settings=settings, quiet=True)
    assert list(found.broken_by) == ["clean", "PGD-20, smooth rounding", "PGD-20, straight through", "PGD-20, transfer"]
    assert found.adaptive.share < 0.3


def test_a_random_defence_is_judged_by_its_expectation(digits: tuple[Tensor, Tensor], toy: nn.Module) -> None:
    x = digits[0][:20]
    with torch.no_grad():
        y = toy(x).argmax(1)
    defended = purify.wrap(toy, RandomResize().eval())
    with pytest.raises(ValueError, match="other logits for the same images"):
        evaluate(defended, x, y, THREAT, settings=FEW, quiet=True)
    settings = Settings(suite="fast", draws=6, norm_images=0, check_images=0, pictures=0)
    found = evaluate(defended, x, y, ThreatModel("linf", 0.05), settings=settings, quiet=True)
    assert found.adaptive.share < found.clean.share
    assert float(found.per_image["adaptive_share"].sum()) == pytest.approx(found.adaptive.right)
    assert set((6 * found.per_image["adaptive_share"]).round(decimals=6).tolist()) <= set(map(float, range(7)))


def test_same_seed_same_report(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    first, second, other = (
        evaluate(toy, x, y, ThreatModel("linf", 0.06), settings=dataclasses.replace(FEW, seed=seed), quiet=True)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.per_image["adaptive_margin"], second.per_image["adaptive_margin"])
    assert not torch.equal(first.per_image["adaptive_margin"], other.per_image["adaptive_margin"])


def test_two_defences_on_the_same_images(report: Report, quick_victim: nn.Module) -> None:
    digits = purify.load_dataset("digits", "test").first(150)
    bare = evaluate(quick_victim, digits, None, THREAT, settings=FEW, quiet=True, name="none")
    compared = report.versus(bare)
    gap = report.per_image["worst_share"] - bare.per_image["worst_share"]
    assert (compared.first_only, compared.second_only) == (int((gap > 0).sum()), int((gap < 0).sum()))
    assert compared.higher == (compared.p < 0.05)
    few = evaluate(quick_victim, digits.first(10), None, THREAT, settings=FEW, quiet=True)
    with pytest.raises(ValueError, match="not comparable: images"):
        report.versus(few)
    weaker = Suite("weak", "two steps", (Entry("PGD-2", PGD(THREAT, steps=2)),))
    easy = evaluate(quick_victim, digits, None, THREAT, settings=FEW, suite=weaker, quiet=True)
    with pytest.raises(ValueError, match="not comparable: suite weak"):
        easy.versus(bare)
    with pytest.raises(ValueError, match="digits-dsae has no rows for each image"):
        bare.versus(dataclasses.replace(Report.from_dict(report.to_dict()), name="digits-dsae"))


def test_the_least_of_noisy_shares_is_no_figure(digits: tuple[Tensor, Tensor]) -> None:
    """A defence that is right by chance, whatever the image: every column of it is that chance."""
    generator = torch.Generator().manual_seed(0)

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            right = torch.rand(len(x), generator=generator) < 0.8
            return torch.stack([right.float(), 1 - right.float()], 1) + 1e-3 * x.flatten(1).sum(1, keepdim=True)

    x = digits[0][:60]
    few = Settings(suite="random", draws=20, oblivious_steps=2, norm_images=20, check_images=0, pictures=0)
    quick = Suite("random", "", (Entry("PGD-2", PGD(ThreatModel("linf", 0.1), steps=2, early_stop=False)),), 20)
    y = torch.zeros(60, dtype=torch.long)
    found = evaluate(
        purify.wrap(Coin().eval(), nn.Identity()), x, y, ThreatModel("linf", 0.1), settings=few, suite=quick, quiet=True
    )
    for accuracy in (found.clean, found.adaptive, found.worst_case, found.oblivious["PGD"]):
        assert abs(accuracy.share - 0.8) < 0.05
    assert found.norms is None  # right in most draws of every image that was found


@pytest.mark.usefixtures("short_attacks")
def test_settings_reach_every_attack(
    digits: tuple[Tensor, Tensor], quick_victim: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of checks, curve and pictures too."""
    seen = []

    def attack(self: Attack, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> AttackResult:
        seen.append((len(images), options.get("precision", "auto")))
        return original(self, model, images, labels, **options)

    original = Attack.__call__
    monkeypatch.setattr(Attack, "__call__", attack)
    few = Settings(
        batch_size=5,
        precision="float32",
        oblivious_steps=2,
        norm_images=8,
        check_images=8,
        check_steps=2,
        random_draws=9,
        pictures=8,
    )
    evaluate(purify.wrap(quick_victim, "digits-dsae"), digits[0][:12], digits[1][:12], THREAT, settings=few, quiet=True)
    assert max(count for count, _ in seen) == 5
    assert {precision for _, precision in seen} == {"float32"}
