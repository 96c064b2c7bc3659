"""All that an audit measures of one subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from purify.attacks import PGD, ThreatModel, eot
from purify.attacks.precision import steps_in_bfloat16
from purify.attacks.result import margin
from purify.eval.evaluate import gradient_paths
from purify.eval.spectrum.band_attacks import BandCurve, band_accuracy, margin_slopes, smallest_norms
from purify.eval.spectrum.bases import COMPLETED, Band, Basis, CosineBasis, bands, pca_basis, random_basis
from purify.eval.spectrum.energy import EnergySpectrum, energy_spectrum
from purify.eval.spectrum.fourier import FourierMap, fourier_map
from purify.eval.spectrum.gains import GainCurve
from purify.eval.spectrum.jacobian import (
    JacobianSummary,
    dense_jacobian,
    directional_gains,
    leading_spectrum,
    spectrum_of,
)
from purify.eval.spectrum.subjects import Subject

__all__ = ["AuditSettings", "Ground", "Measured", "measure"]

_DENSE = 1024  # pixel values up to which the whole Jacobian is taken


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How much is measured: more images make narrower intervals."""

    images: int = 48
    """The first so many test images are attacked."""
    jacobians: int = 5
    """The first so many of them have their Jacobian taken, clean and attacked."""
    natural: int = 5000
    """Training images whose principal components are the directions of natural variance."""
    directions: int = 128
    """Principal components of images with more than 4,096 values."""
    attack_steps: int = 40
    """Of PGD, oblivious and adaptive."""
    norm_steps: int = 30
    """Of the search for the smallest norm in each band."""
    band_images: int = 24
    """Of them for PGD inside bands."""
    band_steps: int = 8
    """Of PGD inside bands, at each radius."""
    fourier_images: int = 32
    """Of them for the Fourier map."""
    frequencies: int = 11
    """Of the Fourier map in each quadrant, at most."""
    seed: int = 0

    @classmethod
    def suited(cls, values: int, **changes: Any) -> AuditSettings:
        """The defaults for images of so many pixel values, and for large ones (above 4,096) smaller samples: a few minutes on two
        cores either way.

        Args:
            values: C·H·W.
            changes: settings of your own; None leaves the default.
        """
        large = {
            "images": 16,
            "jacobians": 2,
            "natural": 400,
            "attack_steps": 20,
            "norm_steps": 20,
            "band_images": 12,
            "band_steps": 6,
            "fourier_images": 12,
            "frequencies": 7,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**(large if values > COMPLETED else {}), **given})

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self) if one.name != "seed"):
            least = 2 if name == "frequencies" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all subjects of an audit share."""

    images: Tensor
    """(N, C, H, W), attacked."""
    labels: Tensor
    threat: ThreatModel
    classifier: nn.Module
    """Bare."""
    oblivious: Tensor
    """The images, attacked on the bare classifier."""
    natural: Basis
    """Principal components."""
    cosines: CosineBasis
    chance: Basis
    """Random directions."""
    chance_variances: Tensor
    """(k,), natural variance along them."""
    settings: AuditSettings
    bfloat16: bool

    @classmethod
    def of(
        cls, classifier: nn.Module, natural: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel, settings: AuditSettings
    ) -> Ground:
        """From natural images apart from those that are attacked."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        small = images[0].numel() <= COMPLETED
        basis = pca_basis(natural, None if small else settings.directions)
        chance = random_basis(shape, min(images[0].numel(), 1024) if small else 64, settings.seed)
        attack = PGD(threat, steps=settings.attack_steps, early_stop=False)
        generator = torch.Generator(device=images.device).manual_seed(settings.seed)
        return cls(
            images=images,
            labels=labels,
            threat=threat,
            classifier=classifier,
            oblivious=attack(classifier, images, labels, generator=generator).adversarial,
            natural=basis,
            cosines=CosineBasis(shape),
            chance=chance,
            chance_variances=chance.analyse(natural.to(images)).double().var(0).cpu(),
            settings=settings,
            bfloat16=steps_in_bfloat16("auto", classifier, images),
        )

    @property
    def bands(self) -> list[Band]:
        """All of image space, then thirds of the principal components, then thirds of the cosines."""
        everything = Band("all", self.cosines, 0, len(self.cosines))
        return [everything, *bands(self.natural), *bands(self.cosines)]

    @property
    def portion(self) -> str:
        """What a band of the principal components is called in words."""
        return "third" if len(self.natural) == self.natural.dimension else "band"

    @property
    def frequency_bands(self) -> list[Band]:
        """All, and thirds of the cosines."""
        return [self.bands[0], *bands(self.cosines)]

    @property
    def length(self) -> float:
        """Euclidean length of the threat model's largest perturbation (of the radius itself for L2)."""
        return self.threat.eps * (self.images[0].numel() ** 0.5 if self.threat.norm == "linf" else 1.0)


@dataclass(kw_only=True)
class Measured:
    """What was found of one subject. Figures that need the purifier's gradient are empty where it has none."""

    subject: Subject
    notes: list[str] = field(default_factory=list)
    clean_margin: Tensor
    """(N,)."""
    oblivious_margin: Tensor
    adaptive_margin: Tensor
    gains: list[GainCurve] = field(default_factory=list)
    """Along principal components, and along random directions."""
    energies: list[EnergySpectrum] = field(default_factory=list)
    """Oblivious and adaptive, by principal components and by cosines."""
    jacobians: dict[str, list[JacobianSummary]] = field(default_factory=dict)
    """clean and attacked: one an image."""
    fourier: FourierMap | None = None
    norms: dict[str, Tensor] = field(default_factory=dict)
    """Smallest norm (N,) by band; NaN for images that are wrong as they are."""
    curves: list[BandCurve] = field(default_factory=list)
    clean_slope: Tensor | None = None
    """(N,), length of the margin's gradient at the clean images."""
    adaptive: Tensor
    """The images, attacked through the purifier."""


def measure(subject: Subject, ground: Ground, tick: Callable[[str], None]) -> Measured:
    """Everything about one subject; ``tick`` is told what comes next."""
    tick("attacks")
    adaptive = _attack(subject, ground)
    with torch.no_grad():
        margins = [margin(subject.model(x), ground.labels) for x in (ground.images, ground.oblivious, adaptive)]
    found = Measured(
        subject=subject,
        clean_margin=margins[0],
        oblivious_margin=margins[1],
        adaptive_margin=margins[2],
        adaptive=adaptive,
    )
    if subject.draws > 1:
        found.notes.append(f"{subject.name} is random: images and logits are means over {subject.draws} draws")
    tick("energy")
    found.energies = list(_energies(subject, ground, adaptive))
    if subject.purifier is not None and subject.differentiable:
        tick("Jacobians")
        _take_jacobians(found, ground)
    tick("Fourier map")
    found.fourier = fourier_map(
        subject.model,
        subject.purifier,
        ground.images[: ground.settings.fourier_images],
        ground.labels[: ground.settings.fourier_images],
        0.5 * ground.length,
        most=ground.settings.frequencies,
        seed=ground.settings.seed,
    )
    if subject.differentiable:
        _walk_bands(found, ground, tick)
    else:
        found.notes.append(
            f"{subject.name} passes no gradient: its gains, Jacobians, band margins and band-limited PGD cannot be taken; its "
            "adaptive attack took the identity in its place"
        )
    return found


def _attack(subject: Subject, ground: Ground) -> Tensor:
    """PGD along the exact gradient, or of a purifier without one along every other path; for each image the lowest margin."""
    paths = gradient_paths(subject.defended, ground.images[:2])
    chosen = list(paths.values())[:1] if subject.differentiable else list(paths.values())
    attack = PGD(ground.threat, steps=ground.settings.attack_steps, early_stop=False)
    best, lowest = ground.images, torch.full((len(ground.images),), float("inf")).to(ground.images)
    for path in chosen:
        generator = torch.Generator(device=ground.images.device).manual_seed(ground.settings.seed)
        attacked = attack(
            subject.defended,
            ground.images,
            ground.labels,
            generator=generator,
            gradient=path if subject.draws == 1 else eot(path, subject.draws),
            precision="bfloat16" if ground.bfloat16 and subject.draws == 1 else "float32",
        ).adversarial
        with torch.no_grad():
            now = margin(subject.model(attacked), ground.labels)
        best = torch.where((now < lowest)[:, None, None, None], attacked, best)
        lowest = torch.minimum(now, lowest)
    return best


def _energies(subject: Subject, ground: Ground, adaptive: Tensor) -> Iterator[EnergySpectrum]:
    purify = subject.purifier or (lambda images: images)
    with torch.no_grad():
        before = purify(ground.images)
        for claim, attacked in (("oblivious", ground.oblivious), ("adaptive", adaptive)):
            change, left = attacked - ground.images, purify(attacked) - before
            for basis in (ground.natural, ground.cosines):
                yield energy_spectrum(basis, claim, change, left)


def _take_jacobians(found: Measured, ground: Ground) -> None:
    purifier = found.subject.purifier
    assert purifier is not None
    count = min(ground.settings.jacobians, len(ground.images))
    dense = ground.images[0].numel() <= _DENSE
    top = min(64, len(ground.natural))
    leading = ground.natural.direction(torch.arange(top)).flatten(1)
    gains: dict[str, list[Tensor]] = {"natural": [], "chance": []}
    everyone, places = torch.arange(len(ground.chance)), torch.arange(len(ground.natural))
    if not dense:  # some of all, evenly
        places = torch.linspace(0, len(ground.natural) - 1, min(64, len(ground.natural))).round().long()
    for kind, images in (("clean", ground.images[:count]), ("attacked", found.adaptive[:count])):
        found.jacobians[kind] = []
        for image in images:
            if dense:
                jacobian = dense_jacobian(purifier, image)
                found.jacobians[kind].append(JacobianSummary.of(spectrum_of(jacobian), leading))
                if kind == "clean":
                    for name, basis in (("natural", ground.natural), ("chance", ground.chance)):
                        rows = basis.direction(torch.arange(len(basis))).flatten(1).to(jacobian)
                        gains[name].append(((rows @ jacobian) * rows).sum(1))
                continue
            found.jacobians[kind].append(
                JacobianSummary.of(leading_spectrum(purifier, image, seed=ground.settings.seed), leading)
            )
            if kind == "clean":
                gains["natural"].append(directional_gains(purifier, image, ground.natural.direction(places).to(image)))
                gains["chance"].append(directional_gains(purifier, image, ground.chance.direction(everyone).to(image)))
    found.gains = [
        GainCurve.of("PCA", places, ground.natural.order[places], torch.stack(gains["natural"])),
        GainCurve.of("random", everyone, ground.chance_variances, torch.stack(gains["chance"])),
    ]


def _walk_bands(found: Measured, ground: Ground, tick: Callable[[str], None]) -> None:
    subject, settings = found.subject, ground.settings
    right = found.clean_margin > 0
    bfloat16 = ground.bfloat16 and subject.draws == 1
    tick("margin in bands")
    for band in ground.bands:
        norms = torch.full_like(found.clean_margin, float("nan"))
        if bool(right.any()):
            norms[right] = smallest_norms(
                subject.model, ground.images[right], ground.labels[right], band, steps=settings.norm_steps, bfloat16=bfloat16
            )
        found.norms[band.name] = norms
    tick("PGD in bands")
    few = slice(0, settings.band_images)
    radii = _radii(ground.length, ground.images[0].numel())
    found.curves = [
        band_accuracy(
            subject.model, ground.images[few], ground.labels[few], band, radii, steps=settings.band_steps, bfloat16=bfloat16
        )
        for band in ground.frequency_bands
    ]
    _, found.clean_slope = margin_slopes(subject.model, ground.images, ground.labels)


def _radii(length: float, values: int) -> list[float]:
    """From an eighth of the threat's own length, doubling, to the diameter of image space: by then nothing stands."""
    radii = [length / 8]
    while radii[-1] < values**0.5:
        radii.append(radii[-1] * 2)
    return radii
