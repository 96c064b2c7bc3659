"""The spectral audit: is this purifier a selective filter, and does that help against an attacker who knows it?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify.attacks import ThreatModel
from purify.eval.exhibit import Exhibit
from purify.eval.spectrum.claim import Verdict, judge_claim
from purify.eval.spectrum.filter_exhibits import energy_exhibit, fourier_exhibit, gains_exhibit, jacobian_exhibit
from purify.eval.spectrum.margin_exhibits import band_pgd_exhibit, lipschitz_exhibit, margin_spectrum_exhibit
from purify.eval.spectrum.measure import AuditSettings, Ground, Measured, measure
from purify.eval.spectrum.subjects import make_subjects
from purify.images import check_images, check_labels
from purify.progress_bar import progress_bar
from purify.versions import library_versions

__all__ = ["Audit", "spectral_audit"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found: a verdict for each purifier, and the exhibits that it rests on."""

    name: str
    """Of the purifier that it is about."""
    threat: ThreatModel
    n: int
    verdicts: list[Verdict]
    notes: list[str]
    """What could not be measured, and why."""
    exhibits: list[Exhibit]
    configuration: dict[str, Any]

    def words(self) -> list[str]:
        """The verdict for someone who reads nothing else, one sentence an entry."""
        first = self.verdicts[0]
        head = (
            f"The claim that {first.name} is a selective filter of perturbations is, for oblivious attacks: {first.oblivious}; "
            f"for adaptive attacks: {first.adaptive} ({self.threat}, {self.n} images)."
        )
        return [
            head,
            *first.sentences,
            *(f"Beside it, {verdict}." for verdict in self.verdicts[1:]),
            *(f"{note}." for note in self.notes),
        ]

    def markdown(self) -> str:
        """Words, and every exhibit's reading and table."""
        parts = [f"# Spectral audit of {self.name}", *(f"- {sentence}" for sentence in self.words())]
        return "\n".join(parts) + "\n\n" + "\n\n".join(exhibit.markdown() for exhibit in self.exhibits) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the figures."""
        return {
            "name": self.name,
            "threat": dataclasses.asdict(self.threat),
            "n": self.n,
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "notes": self.notes,
            "configuration": self.configuration,
            "exhibits": [exhibit.to_dict() for exhibit in self.exhibits],
        }

    def save(self, folder: Path) -> list[Path]:
        """Write ``audit.json``, ``audit.md``, and one CSV and one SVG an exhibit; returns what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        written = {"audit.json": json.dumps(self.to_dict(), indent=1) + "\n", "audit.md": self.markdown()}
        for exhibit in self.exhibits:
            written[f"{exhibit.id}.csv"] = exhibit.csv()
            if exhibit.svg:
                written[f"{exhibit.id}.svg"] = exhibit.standalone_svg()
        for name, text in written.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in written]


def spectral_audit(
    classifier: nn.Module,
    purifiers: Mapping[str, nn.Module],
    natural: Tensor,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    settings: AuditSettings | None = None,
    quiet: bool = False,
) -> Audit:
    """Measure purifiers in front of one classifier, the first of them being the one that the audit is about.

    Args:
        classifier: images (N, C, H, W) in [0, 1] to logits, in eval mode.
        purifiers: modules from images to images, by name.
        natural: images (M, C, H, W) apart from those that are attacked, whose principal components are the directions.
        images: (N, C, H, W) in [0, 1]; the first ``settings.images`` are attacked.
        labels: (N,).
        threat: of the oblivious and adaptive attacks.
        settings: how much to measure; None: ``AuditSettings.suited`` to the images.
        quiet: no progress bar.

    Raises:
        TypeError, ValueError: images or labels are not what they should be; no purifier, or one called "bare"; fewer than two
            natural images.

    >>> from purify import load, load_classifier, load_dataset
    >>> digits = load_dataset("digits", "test").first(6).batch(slice(None))
    >>> few = AuditSettings(images=6, jacobians=2, attack_steps=2, norm_steps=5, band_images=4, band_steps=2, frequencies=3)
    >>> natural = load_dataset("digits", "train").batch(slice(0, 200))[0]
    >>> audit = spectral_audit(load_classifier("digits-shufflenet"), {"digits-dsae": load("digits-dsae")}, natural, *digits,
    ...                        ThreatModel("linf", 0.15), settings=few, quiet=True)
    >>> [exhibit.id for exhibit in audit.exhibits]
    ['gain', 'energy-pca', 'energy-dct', 'jacobian', 'fourier', 'margin-spectrum', 'band-pgd', 'lipschitz']
    """
    if not purifiers:
        raise ValueError("an audit needs at least one purifier")
    if "bare" in purifiers:
        raise ValueError('no purifier can be called "bare": so an audit calls the classifier alone; give it another name')
    check_images(images)
    check_images(natural, images.shape[1])
    check_labels(labels, images)
    if natural.shape[1:] != images.shape[1:]:
        raise ValueError(f"natural images are {tuple(natural.shape[1:])} and those to be attacked {tuple(images.shape[1:])}")
    settings = settings or AuditSettings.suited(images[0].numel())
    images, labels, natural = images[: settings.images], labels[: settings.images], natural[: settings.natural]
    ground = Ground.of(classifier, natural, images, labels, threat, settings)
    subjects = make_subjects(classifier, purifiers, images[:2])
    with progress_bar(total=6 * len(subjects), label="audit", unit="part", quiet=quiet) as bar:
        found = []
        for subject in subjects:

            def tick(part: str, name: str = subject.name) -> None:
                bar.set_postfix_str(f"{name}: {part}", refresh=False)
                bar.update()

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                found.append(measure(subject, ground, tick))
    bare, *others = found
    notes = [note for one in found for note in one.notes]
    if ground.portion != "third":
        sizes = [f"{band.size:,}" for band in ground.bands[1:4]]
        notes.append(
            f"the bands of high, middle and low natural variance have {sizes[0]}, {sizes[1]} and {sizes[2]} dimensions, the last "
            "of them all that the others leave: their figures are not of equal dimension"
        )
    short = len(natural) - 1
    if short < images[0].numel():
        notes.append(f"{len(natural)} natural images have variance along at most {short} of {images[0].numel()} directions")
    return Audit(
        name=next(iter(purifiers)),
        threat=threat,
        n=len(images),
        verdicts=[judge_claim(one, bare, ground) for one in others],
        notes=notes,
        exhibits=_exhibits(found, ground),
        configuration={"settings": dataclasses.asdict(settings), "natural": len(natural), "versions": library_versions()},
    )


def _exhibits(found: list[Measured], ground: Ground) -> list[Exhibit]:
    """Every figure that could be made: what passes, then what that does to decisions."""
    made = [
        gains_exhibit(found, ground),
        energy_exhibit(found, ground, "PCA"),
        energy_exhibit(found, ground, "DCT"),
        jacobian_exhibit(found, ground),
        fourier_exhibit(found, ground),
        margin_spectrum_exhibit(found, ground),
        band_pgd_exhibit(found, ground),
        lipschitz_exhibit(found, ground),
    ]
    return [exhibit for exhibit in made if exhibit is not None]
