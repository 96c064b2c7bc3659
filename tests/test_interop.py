"""Other people's tools: each library, run for real, finds the robust accuracy that the native attack finds."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor, nn

import purify
from purify.attacks import APGD, PGD, TargetedAPGD, ThreatModel, bpda, exact
from purify.checkpoint import CheckpointError
from purify.interop.borrowed import BorrowedAttack
from purify.interop.foolbox import to_foolbox
from purify.interop.torchattacks import TorchattacksAttack, to_torchattacks
from purify.interop.victim import Victim

N, STEPS = 60, 10
TOLERANCE = 1 / N
"""One image: the native attack keeps its best iterate, the libraries their last one."""
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def defended() -> purify.PurifiedClassifier:
    return purify.wrap(purify.load_classifier("digits-shufflenet"), "digits-dsae")


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


def need_library(name: str) -> None:
    """Skip unless it is installed; robustbench cannot be imported to find out."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


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
    images, labels = batch[0][:6], batch[1][:6]
    result = TorchattacksAttack(ThreatModel("linf", 0.01), Liar)(defended, images, labels)
    assert torch.equal(result.adversarial[0], images[0])
    assert torch.allclose(result.adversarial[1:], (images[1:] + 0.01).clamp(max=1))
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


# ---- RobustBench


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard version with fewer steps, classes and queries: in full it takes minutes for the images that stand."""
    need_library("robustbench")
    from pyautoattack import AutoAttack

    choose = AutoAttack._set_version

    def shorter(self: Any, version: str) -> None:
        choose(self, version)
        assert self.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
        self.apgd.n_iter = self.apgd_targeted.n_iter = 20
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 3
        self.fab.n_iter, self.square.n_queries = 5, 50

    monkeypatch.setattr(AutoAttack, "_set_version", shorter)


def test_robustbench(defended: nn.Module, batch: Batch, short_autoattack: None) -> None:
    """Its benchmark against native APGD of the same settings; their random starts may differ by two images of 40."""
    from purify.interop.robustbench import benchmark

    threat, images, labels = ThreatModel("linf", 0.08), batch[0][:40], batch[1][:40]
    before = torch.get_rng_state()
    theirs = benchmark(defended, threat, batch, n_examples=40, batch_size=40)
    assert torch.equal(torch.get_rng_state(), before)
    attacks = (APGD(threat, steps=20), TargetedAPGD(threat, steps=20, classes=3))
    broken = torch.stack([attack(defended, images, labels).success for attack in attacks]).any(0)
    assert theirs.clean == pytest.approx(accuracy(defended, images, labels))
    assert 0.5 < theirs.robust < 0.9
    assert theirs.robust == pytest.approx(1 - broken.float().mean().item(), abs=2.01 / 40)
    stand_ins = [name for name in ("autoattack", "pkg_resources") if find_spec(name) is None]
    assert not any(name in sys.modules for name in stand_ins)


def test_what_robustbench_asks_of_a_defence(defended: purify.PurifiedClassifier, batch: Batch) -> None:
    """Deterministic, with gradients that are not zero: of the loss, for every image."""
    images, labels = batch
    assert torch.equal(defended(images), defended(images))
    step = exact(defended)(images, lambda logits: F.cross_entropy(logits, labels, reduction="none"))
    assert bool((step.gradient.flatten(1).norm(dim=1) > 0).all())


@pytest.mark.parametrize(
    ("norm", "labels", "says"),
    [("l1", [1, 2], "L∞ and L2 only, got L1 0.1"), ("linf", [1], "expected 2 labels"), ("linf", [1.0, 2.0], "integer")],
)
def test_robustbench_refuses(norm: Any, labels: list[Any], says: str, toy: nn.Module) -> None:
    from purify.interop.robustbench import benchmark

    with pytest.raises((ValueError, TypeError), match=says):
        benchmark(toy, ThreatModel(norm, 0.1), (torch.rand(2, 1, 8, 8), torch.tensor(labels)))


# ---- Hugging Face Hub


@pytest.fixture
def hub_purifier() -> Any:
    """A small purifier of unusual architecture."""
    pytest.importorskip("huggingface_hub")
    from purify.interop.hub import HubPurifier

    return HubPurifier(purify.DSAEConfig(units=8, width=4, depth=1, encoder="tied", code="top-k", density=0.2)).eval()


def test_hub_round_trip(purifier: purify.DenoisingSparseAutoencoder, batch: Batch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from purify.interop.hub import HubPurifier

    HubPurifier.of(purifier).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = HubPurifier.from_pretrained(tmp_path)
    assert isinstance(again, purify.DenoisingSparseAutoencoder)
    assert not again.training
    assert again.config == purifier.config
    assert isinstance(again.config, purify.DSAEConfig)
    assert torch.equal(again(batch[0]), purifier(batch[0]))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "HubPurifier.from_pretrained" in card


def test_hub_keeps_every_setting(hub_purifier: Any, tmp_path: Path) -> None:
    from purify.interop.hub import HubPurifier

    for number, one in enumerate((hub_purifier, HubPurifier())):
        one.save_pretrained(tmp_path / str(number))
        assert HubPurifier.from_pretrained(tmp_path / str(number)).config == one.config
    assert HubPurifier.of(hub_purifier.train()).training


def test_push_to_hub(hub_purifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded is what can be loaded; the Hub itself is a folder here."""
    import huggingface_hub.hub_mixin

    class Folder:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            return str(shutil.copytree(folder_path, tmp_path / repo_id))

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Folder)
    where = hub_purifier.push_to_hub("somebody/digits")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(type(hub_purifier).from_pretrained(where)(x), hub_purifier(x))


def test_hub_refuses(hub_purifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.hub_mixin
    from huggingface_hub.errors import EntryNotFoundError

    from purify.interop.hub import HubPurifier

    def refuses(says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            HubPurifier.from_pretrained(tmp_path)

    refuses("no config.json")
    hub_purifier.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"layers": 3}), encoding="utf-8")
    refuses("not a purifier's.*layers.*expected some of channels, units")
    config.write_text(json.dumps(settings | {"units": 16}), encoding="utf-8")
    refuses("damaged or not those of its config.json")
    config.write_text(json.dumps(settings), encoding="utf-8")
    weights.write_bytes(weights.read_bytes()[:100])
    refuses("damaged or not those of its config.json")
    weights.rename(tmp_path / "pytorch_model.bin")
    refuses("no model.safetensors; a pickle is never loaded")

    def download(filename: str, **_: Any) -> str:
        if filename == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        HubPurifier.from_pretrained("somebody/digits")


# ---- the page


PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
NEEDS = {
    "foolbox": "foolbox",
    "ART": "art",
    "torchattacks": "torchattacks",
    "RobustBench": "robustbench",
    "Hugging Face Hub": "huggingface_hub",
}


def code(text: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("section", [s for s in SECTIONS if "```python" in s], ids=lambda s: s.splitlines()[0])
def test_the_page_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example, after the page's first lines; what a comment calls a figure is what comes out."""
    need_library(NEEDS[section.splitlines()[0]])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code(FIRST), names)
    exec(code(section), names)
    claims = re.findall(r"^(.+?)  # → (.+)$", code(FIRST) + code(section), flags=re.MULTILINE)
    assert len(claims) >= 2
    for expression, value in claims:
        assert str(eval(expression, names)) == value, expression


def test_every_library_has_an_example() -> None:
    assert {s.splitlines()[0] for s in SECTIONS if "```python" in s} == set(NEEDS)
