"""Variants of a DSAE's code, encoder and unrolling, trained alike and judged alike: is sparsity by a jump robust, or masked?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from purify.attacks import ThreatModel
from purify.checkpoint import load, load_classifier
from purify.classifier import wrap
from purify.data import ImageSet
from purify.eval.evaluate import Settings, evaluate
from purify.eval.report import Report
from purify.eval.trained import trained_by
from purify.sparse import CodeName
from purify.training.catalogue import find_recipe
from purify.training.recipes import PurifierRecipe

__all__ = ["VARIANTS", "Variant", "compare_variants", "variant_recipe", "variants_markdown"]


@dataclass(frozen=True)
class Variant:
    """One way to make a code."""

    code: CodeName
    encoder: Literal["deep", "linear", "tied"]
    steps: int = 1

    def __str__(self) -> str:
        return f"{self.code}-{self.encoder}-{self.steps}"


_CODES: tuple[CodeName, ...] = ("soft", "hard", "top-k", "batch-top-k")
VARIANTS: tuple[Variant, ...] = (
    *(Variant(code, "deep") for code in _CODES),
    *(Variant(code, "linear") for code in _CODES),
    *(Variant(code, "tied", 4) for code in _CODES),
    *(Variant("soft", "tied", steps) for steps in (1, 2)),
    *(Variant("soft", "linear", steps) for steps in (2, 4)),
    *(Variant("soft", "deep", steps) for steps in (2, 4)),
)
"""Every code with each kind of encoder, and the soft one, the default, at each number of unrolled steps."""


def variant_recipe(base: PurifierRecipe, variant: Variant, epochs: int | None = None) -> PurifierRecipe:
    """The recipe of ``base`` with another code. Where k fixes the sparsity there is no L1 penalty; k leaves a tenth of the
    code.

    Args:
        base: of the DSAE.
        variant: what is different.
        epochs: of the training; None: as many as ``base`` has.
    """
    architecture = dataclasses.replace(
        base.architecture, code=variant.code, encoder=variant.encoder, steps=variant.steps, density=0.1
    )
    l1 = 0.0 if "top-k" in variant.code else base.l1
    epochs = epochs or base.epochs
    name = f"{base.name}-{variant}" + (f"-{epochs}-epochs" if epochs != base.epochs else "")
    return dataclasses.replace(base, name=name, architecture=architecture, l1=l1, epochs=epochs)


def compare_variants(
    base: str,
    training: ImageSet,
    validation: ImageSet,
    test: ImageSet,
    *,
    settings: Settings,
    threat: ThreatModel,
    variants: tuple[Variant, ...] = VARIANTS,
    epochs: int | None = None,
    stores: Path | None = None,
    quiet: bool = False,
) -> list[tuple[Variant, Report]]:
    """Train every variant of the recipe ``base`` into the cache (resumable), and evaluate it.

    Args:
        base: name of a DSAE's recipe.
        training: images to learn from.
        validation: images that the training is judged on.
        test: images to evaluate on.
        settings: of the evaluations.
        threat: of the attacks.
        variants: which ones.
        epochs: of each training; None: as many as the recipe has.
        stores: folder with one store a variant; None: nothing is kept.
        quiet: no progress bars.
    """
    recipe = find_recipe(base)
    if not isinstance(recipe, PurifierRecipe):
        raise ValueError(f"{base} is no recipe of a sparse autoencoder")
    classifier = load_classifier(recipe.classifier)
    found = []
    for variant in variants:
        chosen = variant_recipe(recipe, variant, epochs)
        path = trained_by(chosen, training, validation, quiet=quiet)
        report = evaluate(
            wrap(classifier, load(path)),
            test,
            None,
            threat,
            settings=settings,
            name=str(variant),
            about={"data": test.name, "classifier": recipe.classifier, "variant": str(variant)},
            store=":memory:" if stores is None else stores / f"{chosen.name}.sqlite",
            quiet=quiet,
        )
        found.append((variant, report))
    return found


def variants_markdown(found: list[tuple[Variant, Report]]) -> str:
    """One row a variant."""
    head = (
        "code",
        "encoder",
        "T",
        "clean",
        "PGD, oblivious",
        "adaptive",
        "smallest norm",
        "L0",
        "explained variance",
        "MACs",
        "checks",
    )
    rows = [head, tuple("---" for _ in head)]
    for variant, report in found:
        code = report.code
        rows.append(
            (
                variant.code,
                variant.encoder,
                str(variant.steps),
                str(report.clean),
                str(report.oblivious["PGD"]),
                str(report.adaptive),
                f"{report.norms.median:.3g}" if report.norms else "–",
                f"{code.l0:.0f} ({100 * code.density:.1f} %)" if code else "–",
                f"{code.explained_variance:.2f}" if code else "–",
                f"+{report.purifier_macs / report.classifier_macs:.2f}",
                ("FAILED: " + ", ".join(report.failed) if report.failed else "passed") if report.checks else "not run",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
