"""S1 to S13: signs that an evaluation flatters its defence. Each check can be called by itself.

After Carlini et al. 2019 («On evaluating adversarial robustness», section 5), Athalye, Carlini & Wagner 2018 (section 3.1) and
the flags of AutoAttack (Croce & Hein 2020). A difference counts only if it is beyond chance on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from purify.attacks import FGSM, Attack, Square, every_path, exact, verdict
from purify.attacks.gradient import Model
from purify.attacks.objective import make_objective
from purify.eval.examination import Examination, freeze, in_float64, is_held
from purify.eval.fakes import GradientKiller, GradientScrambler, HardQuantiser
from purify.eval.intervals import wilson_interval
from purify.eval.judge import covering
from purify.eval.paired import PairedComparison

__all__ = ["CHECKS", "Check", "check_line", "run_check", "run_checks"]

Verdict = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """What one check found."""

    id: str
    title: str
    """What ought to be so."""
    verdict: Verdict
    words: str
    """The figures that decided."""


Answer = tuple[bool | None, str]
"""Whether it is as it ought to be (None: the check does not apply), and the figures."""


def _percent(share: Tensor) -> str:
    return f"{100 * float(share.mean()):.1f} %"


def _along(path: str) -> str:
    return "" if path == "exact" else f" (along {path})"


def _s1(e: Examination) -> Answer:
    path = e.strongest()
    if path is None:
        return None, "there is no gradient to attack along"
    single, iterative = e.under(FGSM(e.threat, early_stop=e.draws == 1), path), e.under(e.attack(), path)
    words = f"FGSM leaves {_percent(single)}, APGD {_percent(iterative)}{_along(path)}"
    return not PairedComparison.of(iterative, single).higher, words


def eps_grid(e: Examination) -> list[float]:
    """Half of the threat's eps, eps, twice, four times, and half of the way across the cube and all of it, in order."""
    full = covering(e.threat, e.images.shape[1:]).eps
    return sorted({eps for share in (0.5, 1, 2, 4) if (eps := share * e.threat.eps) < full / 2} | {full / 2, full})


def _s2(e: Examination) -> Answer:
    grid = eps_grid(e)
    shares = [e.worst(eps) for eps in grid]
    rises = [
        f"{_percent(shares[i])} at {grid[i]:.3g} and {_percent(shares[j])} at {grid[j]:.3g}"
        for i in range(len(grid))
        for j in range(i + 1, len(grid))
        if PairedComparison.of(shares[j], shares[i]).higher
    ]
    falling = ", ".join(f"{eps:.3g}: {_percent(share)}" for eps, share in zip(grid, shares, strict=True))
    return not rises, "; ".join(rises) if rises else falling


def _s3(e: Examination) -> Answer:
    full = covering(e.threat, e.images.shape[1:]).eps
    half, whole = e.worst(full / 2), e.worst(full)
    chance = 1 / e.classes
    low, _ = wilson_interval(float(half.sum()), len(half))
    low_whole, _ = wilson_interval(float(whole.sum()), len(whole))
    good = low <= chance and low_whole <= (0 if e.draws == 1 else chance)
    return good, f"{_percent(half)} half way across the cube (chance {100 * chance:.0f} %), {_percent(whole)} all the way"


def _s4(e: Examination) -> Answer:
    path = e.strongest()
    if path is None:
        return None, "there is no gradient to attack along"
    base = e.under(e.attack(), path)
    stronger = {
        "twice the steps": e.under(e.attack(steps=2 * e.steps), path),
        "another start": e.under(e.attack(), path, again=1),
    }
    if e.draws == 1:  # the least counts for each image; of two noisy shares the least would be too low
        stronger = {name: torch.minimum(base, share) for name, share in stronger.items()}
    else:
        stronger["twice the draws"] = e.under(e.attack(), path, draws=2 * e.draws)
    chance = 0.05 if e.draws == 1 else 0.05 / len(stronger)
    bad = [
        name
        for name, share in stronger.items()
        if float(base.mean() - share.mean()) > 0.01
        and (found := PairedComparison.of(base, share)).p < chance
        and found.first_only > found.second_only
    ]
    figures = ", ".join(f"{name}: {_percent(share)}" for name, share in stronger.items())
    return not bad, f"APGD {e.steps} steps leaves {_percent(base)}; {figures}{_along(path)}"


def _more(e: Examination, standing: Tensor, name: str, share: Tensor) -> tuple[bool, str]:
    """Whether something breaks more of what stands than another start of the exact gradient does, beyond a few. Of a random
    defence, which few images lose in every draw: whether it leaves a smaller share of the draws than either start, beyond chance
    and by more than two points."""
    again = e.under(e.attack(), again=1) if e.has_gradient else e.clean()
    if e.draws > 1:
        found = PairedComparison.of(min(standing, again, key=lambda shares: float(shares.mean())), share)
        words = (
            f"{name} leaves {_percent(share)}, what it is compared with {_percent(standing)} (another start: {_percent(again)})"
        )
        return found.higher and found.difference > 0.02, words
    control = int(((standing > 0) & (again <= 0)).sum()) if e.has_gradient else 0
    broken = int(((standing > 0) & (share <= 0)).sum())
    words = f"{name} breaks {broken} of {int((standing > 0).sum())} that stood (another start: {control})"
    return broken - control > _few(standing), words


def _few(images: Tensor) -> int:
    """Of so many, how many may fall to chance."""
    return max(1, round(0.02 * len(images)))


def _s5(e: Examination) -> Answer:
    if e.threat.norm == "l1":
        return None, "Square has no L1 form here"
    # by the mean of the draws: behind noise one draw of a proposal says little of it, and the luckiest would be kept
    square = e.under(Square(e.threat, queries=e.queries, early_stop=e.draws == 1), "none", averaged=True)
    bad, words = _more(e, e.worst(), f"Square with {e.queries} queries", square)
    return not bad, words


def _s6(e: Examination) -> Answer:
    others = [path for path in e.paths if path != "exact"]
    if not others:
        return None, "there is one gradient path only"
    found = [_more(e, e.under(e.attack()), path, e.under(e.attack(), path)) for path in others]
    return not any(bad for bad, _ in found), "; ".join(words for _, words in found)


def _s7(e: Examination) -> Answer:
    stand = (e.worst() > 0.5).nonzero().flatten()[:8]
    if len(stand) == 0:
        return None, "no image stands"
    generator = torch.Generator(device=e.images.device).manual_seed(e.seed)
    wrong = torch.zeros(len(stand), dtype=torch.int64, device=stand.device)  # of the draws
    at_once = max(1, min(256, 4 * (e.batch_size or 64)) // len(stand))
    with torch.no_grad():
        for done in range(0, e.random_draws, at_once):
            count = min(at_once, e.random_draws - done)
            points = e.threat.random_point(e.images[stand].repeat(count, 1, 1, 1), generator)
            right, _ = verdict(e.model, points, e.labels[stand].repeat(count))
            wrong += (~right[0]).view(count, len(stand)).sum(0)
    broken = wrong > (0 if e.draws == 1 else 0.5 * e.random_draws)
    return not bool(broken.any()), f"{e.random_draws} random draws break {int(broken.sum())} of {len(stand)} images that stood"


def _s8(e: Examination) -> Answer:
    if not e.connected:
        return False, "no gradient arrives at the images: the model detaches, or has a step that is not differentiable"
    right = (e.clean() > 0).nonzero().flatten()
    if len(right) == 0:
        return None, "no image is classified rightly to begin with"
    found, worst = [], 0.0
    for loss in ("ce", "dlr" if e.classes >= 3 else "margin"):
        objective = make_objective(loss)
        gradients = []
        for rows in torch.split(right, e.batch_size or len(right)):
            step = exact(e.model)(e.images[rows], lambda logits, f=objective, y=e.labels[rows]: f(logits, y, None))  # type: ignore[misc]
            gradients.append(step.gradient.flatten(1))
        gradient = torch.cat(gradients)
        dead = float((~torch.isfinite(gradient).all(1) | (gradient == 0).all(1)).double().mean())
        worst = max(worst, dead)
        found.append(f"{loss.upper()}: {100 * dead:.1f} %")
    return worst <= 0.01, f"images whose gradient is zero or not finite: {', '.join(found)}"


def _s9(e: Examination) -> Answer:
    precise = in_float64(e.model, e.images[:1])
    if precise is None:
        return None, "the model cannot be copied to float64, or computed in it"
    if not e.connected:
        return None, "there is no gradient (S8)"
    model = freeze(precise, e.seed)
    if not is_held(model, e.images[:8].double()):
        return None, "its randomness cannot be held fixed (S10)"
    generator = torch.Generator(device=e.images.device).manual_seed(e.seed)
    # Away from the walls, and off the kinks on which flat parts of an image lie: there max-pooling has no one derivative.
    noise = torch.rand(e.images[:8].shape, generator=generator, dtype=torch.float64, device=generator.device)
    x = 0.05 + 0.85 * e.images[:8].double() + 0.05 * noise
    objective, labels = make_objective("margin"), e.labels[:8]

    def loss(logits: Tensor) -> Tensor:
        return objective(logits, labels, None)

    gradient = exact(model)(x, loss).gradient
    errors, h = [], 1e-5
    for direction in [gradient, *(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device) for _ in range(4))]:
        unit = direction / direction.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
        with torch.no_grad():
            measured = (loss(model(x + h * unit)) - loss(model(x - h * unit))) / (2 * h)
        expected = (gradient * unit).flatten(1).sum(1)
        size = torch.maximum(measured.abs(), expected.abs())
        if direction is gradient:
            scale = size
        errors.append(torch.where(size > 1e-9 * (1 + scale), (measured - expected).abs() / size.clamp_min(1e-30), 0.0))
    typical = float(torch.stack(errors).median())
    return typical < 0.05, f"median relative difference between autograd and central differences (float64): {typical:.1e}"


def _s10(e: Examination) -> Answer:
    if e.draws == 1:
        return None, "the model is not random"
    attack = e.attack()
    plain = e.under(attack, draws=1, verdicts=1)  # one draw for each, so that right or wrong is compared with right or wrong
    model, generator = freeze(e.model, e.seed), torch.Generator(device=e.images.device).manual_seed(e.seed)
    if not is_held(model, e.images[:8]):
        return False, "its randomness comes from elsewhere than torch, NumPy and random, and cannot be held fixed"
    held = torch.cat([_adversarial_right(attack, model, e, rows, generator) for rows in e.batches()]).double()
    good = not PairedComparison.of(held, plain).higher and not PairedComparison.of(plain, held).higher
    return good, f"one attack without averaging leaves {_percent(plain)}, with the randomness held fixed {_percent(held)}"


def _adversarial_right(attack: Attack, model: Model, e: Examination, rows: slice, generator: torch.Generator) -> Tensor:
    """bool (n,): which images the model still classifies rightly after the attack on it, all in float32."""
    images, labels = e.images[rows], e.labels[rows]
    attacked = attack(model, images, labels, generator=generator, precision="float32").adversarial
    return verdict(model, attacked, labels)[0][0]


def _s11(e: Examination) -> Answer:
    if e.bare is None:
        return None, "there is no undefended model to compare with"
    full = covering(e.threat, e.images.shape[1:]).eps
    near, far = e.under(e.attack(), bare=True), e.under(e.attack(full / 2), bare=True)
    low, _ = wilson_interval(float(far.sum()), len(far))
    chance = 1 / e.classes
    return low <= chance, f"undefended: {_percent(near)} at {e.threat}, {_percent(far)} half way across the cube"


def _s12(e: Examination) -> Answer:
    e.worst()
    return e.farthest <= 1 + 1e-4, f"the farthest adversarial image is at {e.farthest:.4f} of its eps; none left [0, 1]"


def _s13(e: Examination) -> Answer:
    bare = e.bare if e.bare is not None else e.model
    found, breakable = {}, True
    for stage in (GradientKiller(), HardQuantiser(), GradientScrambler()):
        fake = _Fake(stage, bare)
        planted = Examination(
            model=fake,
            images=e.images[:24],
            labels=e.labels[:24],
            threat=e.threat,
            paths=every_path(fake, stage=stage, rest=bare, probe=e.images[:2]),
            bare=bare,
            draws=e.draws,
            steps=min(e.steps, 20),
            batch_size=e.batch_size,
            seed=e.seed,
        )
        lost = planted.clean() - planted.under(planted.attack(), "straight through")
        breakable &= int((lost > 0.5).sum()) > 2
        found[type(stage).__name__] = _what_caught(planted)
    if not breakable:
        return None, "the same attack does not break the classifier itself: a fake before it would hide nothing"
    words = ", ".join(
        f"{name}: {'hides nothing here' if caught is None else ' and '.join(caught) or 'NOT caught'}"
        for name, caught in found.items()
    )
    good = all(caught is None or "S6" in caught for caught in found.values())  # the killer, without any gradient, always counts
    return good, f"planted in front of the same classifier, {words}"


def _what_caught(planted: Examination) -> list[str] | None:
    """The checks that fail for a planted fake. None: S6 does not, and there is nothing that it could have seen, since the attack
    along the fake's own gradient leaves no more images standing from both of two starts than chance may."""
    caught = [name for name in ("S6", "S8") if run_check(name, planted).verdict == "fail"]
    if "S6" in caught:
        return caught
    standing = torch.minimum(planted.under(planted.attack()), planted.under(planted.attack(), again=1))
    return None if float(standing.sum()) <= _few(standing) else caught


class _Fake(nn.Module):
    def __init__(self, stage: nn.Module, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stage, self.rest = stage, rest
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.stage(images))


CHECKS: dict[str, tuple[str, Callable[[Examination], Answer]]] = {
    "S1": ("iterative attacks are at least as strong as FGSM", _s1),
    "S2": ("accuracy does not rise with eps", _s2),
    "S3": ("a ball of half the cube leaves chance, the whole cube nothing", _s3),
    "S4": ("more steps, starts or draws change nothing", _s4),
    "S5": ("an attack without gradients breaks no more", _s5),
    "S6": ("transfer and BPDA break no more than the exact gradient", _s6),
    "S7": ("random draws break nothing that stood", _s7),
    "S8": ("gradients are neither zero nor infinite", _s8),
    "S9": ("autograd agrees with finite differences", _s9),
    "S10": ("fixed randomness changes nothing", _s10),
    "S11": ("the same attack breaks the undefended model", _s11),
    "S12": ("every adversarial image is inside its ball and [0, 1]", _s12),
    "S13": ("a planted fake defence is caught", _s13),
}
"""What ought to be so, and how it is found out."""


def run_check(name: str, examination: Examination) -> Check:
    """One check by its id.

    Raises:
        ValueError: unknown id.
    """
    if name not in CHECKS:
        raise ValueError(f"unknown check {name!r}; known: {', '.join(CHECKS)}")
    title, find = CHECKS[name]
    good, words = find(examination)
    return Check(name, title, "not applicable" if good is None else "pass" if good else "fail", words)


def run_checks(examination: Examination, names: Iterable[str] = tuple(CHECKS)) -> list[Check]:
    """Several checks, by default all; they share what each has measured."""
    return [run_check(name, examination) for name in names]


def check_line(checks: list[Check]) -> str:
    """One line for the head of a table.

    >>> check_line([Check("S1", "", "pass", ""), Check("S6", "", "fail", ""), Check("S10", "", "not applicable", "")])
    'FAILED: S6; passed: S1; not applicable: S10'
    """
    if not checks:
        return "not run"
    named = {word: [c.id for c in checks if c.verdict == verdict] for word, verdict in _LINE.items()}
    return "; ".join(f"{word}: {', '.join(ids)}" for word, ids in named.items() if ids)


_LINE: dict[str, Verdict] = {"FAILED": "fail", "passed": "pass", "not applicable": "not applicable"}
