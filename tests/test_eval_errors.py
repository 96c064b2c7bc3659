"""Bad input to the judge: what is refused, and images of which a model says nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_eval import FEW, THREAT
from torch import Tensor, nn

import purify
from purify.attacks import ThreatModel
from purify.eval import Settings, evaluate


def test_bad_input(quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(ValueError, match="empty batch"):
        evaluate(quick_victim, x[:0], y[:0], THREAT)
    with pytest.raises(ValueError, match="no images"):
        evaluate(quick_victim, purify.load_dataset("digits", "test").first(0), None, THREAT)
    with pytest.raises(ValueError, match="without labels"):
        evaluate(quick_victim, x, None, THREAT)
    with pytest.raises(ValueError, match="outside|0 … 9"):
        evaluate(quick_victim, x, y + 1, THREAT, quiet=True)
    with pytest.raises(ValueError, match="check_images must be at least 0"):
        Settings(check_images=-1)


def test_one_image_of_two_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1.0, -1, -1, -1]]))  # type: ignore[operator]
    settings = Settings(check_steps=5, norm_images=1, pictures=1, random_draws=100)
    found = evaluate(model, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), THREAT, settings=settings, quiet=True)
    assert (found.clean.right, found.adaptive.n) == (1, 1)


class _SilentOnSome(nn.Module):
    """NaN for images that are bright on the left."""

    def __init__(self, model: nn.Module, above: float) -> None:
        super().__init__()
        self.model, self.above = model, above
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        bright = images[:, :, :, :3].mean((1, 2, 3)) > self.above
        return torch.where(bright[:, None], logits * float("nan"), logits)


@pytest.mark.usefixtures("short_attacks")
def test_an_image_with_nan_is_an_error_and_never_robust(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:40]
    with torch.no_grad():
        y = toy(x).argmax(1)
    brightness = x[:, :, :, :3].mean((1, 2, 3))
    model = _SilentOnSome(toy, float(brightness.sort().values[-3]))
    found = evaluate(
        model,
        x,
        y,
        ThreatModel("linf", 0.01),
        settings=dataclasses.replace(FEW, check_images=8, check_steps=5, random_draws=200),
        quiet=True,
    )
    silent = (brightness > model.above).nonzero().flatten().tolist()
    assert len(silent) == 2
    assert set(silent) <= set(found.errors)
    assert all(found.per_image["worst_share"][image] == 0 for image in found.errors)
    assert all("NaN" in words for words in found.errors.values())
    assert f"errors: {len(found.errors)} images" in found.head()


def test_what_a_model_says_outside_the_ball_is_no_error(toy: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """NaN far from the image, where only the search for the smallest norm comes: no figure depends on that search."""
    x = digits[0][:6]
    with torch.no_grad():
        y = toy(x).argmax(1)

    class Fragile(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            nearest = torch.cdist(images.flatten(1), x.flatten(1), p=float("inf")).amin(1)
            logits: Tensor = toy(images)
            return torch.where(nearest[:, None] > 0.2, torch.nan, logits)

    settings = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=0)
    shares = []
    for norms in (0, 6):
        asked = dataclasses.replace(settings, norm_images=norms)
        found = evaluate(Fragile().eval(), x, y, ThreatModel("linf", 0.01), settings=asked, quiet=True)
        assert found.errors == {}
        shares.append(found.adaptive.share)
    assert shares[0] == shares[1] > 0


def test_an_evaluation_has_no_l1(digits: tuple[Tensor, Tensor], quick_victim: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"an evaluation is in L∞ or L2 .*; for L1 use run_suite"):
        evaluate(quick_victim, *digits, ThreatModel("l1", 2.0), quiet=True)


def test_an_image_to_which_the_bare_classifier_says_nothing(digits: tuple[Tensor, Tensor], quick_victim: nn.Module) -> None:
    """The purifier mends it, no oblivious attack can be made of it: named, and wrong in every attacked column."""

    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = quick_victim(x)
            return logits + 0 * (x - x.mean((1, 2, 3), keepdim=True)).flatten(1).sum(1, keepdim=True).div(
                x.amax((1, 2, 3))[:, None]
            )

    class Lighter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.01).clamp(0, 1)

    x = digits[0][:6].clone()
    x[2] = 0.0
    defended = purify.wrap(Contrast().eval(), Lighter().eval())
    with torch.no_grad():
        y = defended(x).argmax(1)
    few = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=2)
    found = evaluate(defended, x, y, ThreatModel("linf", 1e-6), settings=few, quiet=True)
    assert list(found.errors) == [2]
    assert found.adaptive.right == found.worst_case.right == 5
