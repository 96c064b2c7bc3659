"""The claim, put to the numbers: a sparse autoencoder is a selective filter. It may come out against it.

Claim: perturbations along directions of high natural variance pass and those along directions of low natural variance are
attenuated; the decision comes back, and the margin grows. Falsifier for an attacker who knows the purifier: the margin grows in
bands of low variance and not in those of high variance, where such an attacker goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purify.eval.paired import PairedComparison
from purify.eval.spectrum.bases import Band
from purify.eval.spectrum.measure import Ground, Measured

__all__ = ["FEWEST", "Ratio", "Verdict", "judge_claim", "paired_ratio"]

FEWEST = 6
"""Values that a 95 % interval of a median needs: of five, even the least and the largest enclose it with 1 − 2·2⁻⁵ < 0.95."""


@dataclass(frozen=True)
class Ratio:
    """Median over images of one quantity over another, with its 95 % bootstrap interval; NaN where there are too few for it."""

    median: float
    low: float
    high: float
    n: int

    @property
    def words(self) -> str:
        """The median with its interval; or why there is none."""
        if self.n >= FEWEST:
            return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.median:.2f} [{self.n} images: too few for an interval]" if self.n > 1 else f"– [{self.n} images]"

    def __str__(self) -> str:
        return f"× {self.words}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one purifier."""

    name: str
    oblivious: str
    """supported, partly or not supported; or not measurable."""
    adaptive: str
    sentences: list[str]
    """What decided it, with the figures."""

    def __str__(self) -> str:
        return f"{self.name}: oblivious attacks: {self.oblivious}; adaptive attacks: {self.adaptive}"


def paired_ratio(over: Tensor, under: Tensor) -> Ratio:
    """Image by image ``over`` / ``under`` (N,), leaving out pairs that are not both finite and positive."""
    kept = torch.isfinite(over) & torch.isfinite(under) & (over > 0) & (under > 0)
    values = (over[kept] / under[kept]).double().cpu().numpy()
    if len(values) < 2:
        return Ratio(float("nan"), float("nan"), float("nan"), len(values))
    low, high = _interval(values)
    return Ratio(float(np.median(values)), low, high, len(values))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile bootstrap of the median; NaN for fewer than ``FEWEST`` values."""
    if len(values) < FEWEST:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), [2.5, 97.5])
    return float(low), float(high)


def judge_claim(found: Measured, bare: Measured, ground: Ground) -> Verdict:
    """Each part of the claim as a yes or no beyond its 95 % interval, and what follows from them."""
    signs = [*_filter(found), *_oblivious(found, bare, ground)]
    *reasons, back, grown = (answer for answer, _ in signs)
    # The decision that comes back is the claim's point; what it is put down to are its reasons.
    partly = "partly" if back and any((*reasons, grown)) else "not supported"
    oblivious = "supported" if all((*reasons, back, grown)) else partly
    adaptive, more = _adaptive(found, bare, ground)
    return Verdict(
        name=found.subject.name, oblivious=oblivious, adaptive=adaptive, sentences=[*(words for _, words in signs), *more]
    )


def _filter(found: Measured) -> list[tuple[bool, str]]:
    """Gains follow natural variance?"""
    if not found.gains:
        return [(False, "Its gains cannot be measured: it passes no gradient.")]
    natural, chance = (curve.correlation for curve in found.gains)
    follows = natural.low > 0 and not natural.low <= (chance.value if chance.value == chance.value else 0.0)
    words = (
        f"Gain {'rises' if follows else 'does not rise'} with natural variance: Spearman {natural.value:+.2f} "
        f"[{natural.low:+.2f}, {natural.high:+.2f}] over principal components, {chance.value:+.2f} over random directions."
    )
    return [(follows, words)]


def _oblivious(found: Measured, bare: Measured, ground: Ground) -> list[tuple[bool, str]]:
    strong, *_, weak = ground.bands[1:4]
    passed = {band.name: _passed(found, ground, band, ground.oblivious) for band in (strong, weak)}
    selective = passed[weak.name].high < passed[strong.name].low
    words = (
        f"Of an oblivious perturbation, the part in the {ground.portion} of image space with low variance is multiplied in "
        f"energy by {passed[weak.name].words}, that in the {ground.portion} with high variance by {passed[strong.name].words}."
    )
    before, after = (bare.oblivious_margin > 0).double(), (found.oblivious_margin > 0).double()
    paired = PairedComparison.of(after, before)
    back = paired.higher
    grown = _difference(found.oblivious_margin, bare.oblivious_margin)
    return [
        (selective, words),
        (
            back,
            f"The decision {'comes' if back else 'does not come'} back from an oblivious attack: "
            f"{100 * before.mean():.0f} % → {100 * after.mean():.0f} % (exact McNemar p = {paired.p:.2g}).",
        ),
        (
            grown[1] > 0,
            f"The margin of obliviously attacked images changes by a median of {grown[0]:+.2f} logits [{grown[1]:+.2f}, "
            f"{grown[2]:+.2f}].",
        ),
    ]


def _difference(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Median of a − b over images, with its 95 % bootstrap interval."""
    values = (a - b).double().cpu().numpy()
    low, high = _interval(values)
    return float(np.median(values)), low, high


def _passed(found: Measured, ground: Ground, band: Band, attacked: Tensor) -> Ratio:
    """Energy of a perturbation in a band after purification over that before, image by image."""
    purify = found.subject.purifier or (lambda images: images)
    with torch.no_grad():
        left = purify(attacked) - purify(ground.images)
    after, before = (band.project(part).flatten(1).square().sum(1) for part in (left, attacked - ground.images))
    return paired_ratio(after, before)


def _adaptive(found: Measured, bare: Measured, ground: Ground) -> tuple[str, list[str]]:
    if not found.norms:
        return "not measurable", ["Its margins inside bands cannot be measured: it passes no gradient."]
    everything, strong, _, weak = ground.bands[:4]
    ratios = {band.name: paired_ratio(found.norms[band.name], bare.norms[band.name]) for band in (everything, strong, weak)}
    grows = {name: ratio.low > 1 for name, ratio in ratios.items()}
    shares = {
        claim: _share(attacked - ground.images, strong)
        for claim, attacked in (("oblivious", ground.oblivious), ("adaptive", found.adaptive))
    }
    before, after = (bare.adaptive_margin > 0).double(), (found.adaptive_margin > 0).double()
    paired = PairedComparison.of(after, before)
    words = [
        "Smallest perturbation that breaks an image, over that of the bare classifier on the same images: "
        f"{ratios[everything.name]} in all of image space, {ratios[strong.name]} inside the {ground.portion} with high variance, "
        f"{ratios[weak.name]} inside that with low.",
        f"Of the perturbation's energy {100 * shares['adaptive']:.0f} % lies in the {ground.portion} with high variance when "
        f"the attack is adaptive, {100 * shares['oblivious']:.0f} % when it is oblivious; {100 * after.mean():.0f} % of the "
        f"images stand against the adaptive one, {100 * before.mean():.0f} % without a purifier (exact McNemar "
        f"p = {paired.p:.2g}). It is PGD of {ground.settings.attack_steps} steps along the exact gradient alone, weaker than the "
        "suite of `purify evaluate`: an upper bound.",
    ]
    if all(grows.values()) and paired.higher:
        verdict = "supported"
    elif grows[weak.name] or grows[everything.name] or paired.higher:
        verdict = "partly"
    else:
        verdict = "not supported"
    if grows[weak.name] and not grows[strong.name]:
        words.append("The falsifier holds: the margin grows where natural variance is low, and not where it is high.")
    return verdict, words


def _share(change: Tensor, band: Band) -> float:
    return float(band.project(change).square().sum() / change.square().sum().clamp_min(1e-30))
