"""``purify evaluate``: one classifier and one purifier on one data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from purify.commands.data_options import DataOptions
from purify.commands.weights_options import WeightsOptions

__all__ = ["EvaluateCommand", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(WeightsOptions, DataOptions):
    """One classifier, bare or behind one purifier, on one data set."""

    data: str = "digits"
    """digits, mnist, fashion-mnist, cifar10 or imagefolder:PATH (a folder or a zip of one)."""
    classifier: str = "digits-shufflenet"
    """Name or path of a classifier's checkpoint; with --weights the name of a torchvision classifier."""
    purifier: str = "digits-dsae"
    """Name or path of a purifier's checkpoint, or none, or a baseline: jpeg, median, gaussian, bit-depth,
    total-variation, wavelet, noise (with --draws 20), pca."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the perturbation."""
    eps: float = 0.15
    """Radius, in the units of images in [0, 1]: 0.0314 for 8/255."""
    images: int = 1000
    """The first so many of the test split."""
    suite: Literal["fast", "standard", "random", "adaptive"] = "adaptive"
    """Of attacks: fast for a first look; random for random defences."""
    draws: int = 1
    """Of a random defence, for gradients and verdicts: 20."""
    checks: int = 64
    """The first so many images serve the checks S1 to S13 and the curve; 0: neither."""
    norms: int = 100
    """The first so many images are attacked for their smallest adversarial norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of gradient steps; verdicts are float32's."""
    batch_size: int | None = None
    """Images attacked at once; default: from memory."""
    seed: int = 0
    """Of every random start."""
    out: Path = Path("runs/evaluate")
    """Folder for the report (HTML, Markdown, JSON), the CSV (one row an image) and the store."""
    store: Path | None = None
    """SQLite file of the run, after which the report's files are called; default: in the folder. The same command again goes on
    where it was."""
    wait: float = 0.0
    """Seconds to wait for another run that holds the store."""
    tensorboard: Path | None = None
    """Folder for the robust accuracy so far, for TensorBoard."""
    quiet: bool = False
    """No progress bars."""


def evaluate(command: EvaluateCommand) -> int:
    """Run ``purify evaluate``."""
    from purify.attacks import ThreatModel
    from purify.classifier import wrap
    from purify.compatibility import check_classifier_fits
    from purify.data import file_stem
    from purify.eval import Settings
    from purify.eval import evaluate as run
    from purify.eval.baselines import BASELINES, make_baseline
    from purify.eval.html import save_report

    named = command.named(command.classifier)
    classifier = named.module
    defended = None
    if command.purifier in BASELINES:
        training = named.load(command, command.data, "train") if command.purifier == "pca" else None
        defended = wrap(classifier, make_baseline(command.purifier, training).eval())
    elif command.purifier != "none":
        defended = wrap(classifier, command.purifier)
    test = named.load(command, command.data, "test").first(command.images)
    check_classifier_fits(classifier, test, command.classifier)
    name = Path(command.purifier).stem
    stem = command.store.stem if command.store is not None else f"{file_stem(command.data)}.{name}"
    report = run(
        defended or classifier,
        test,
        None,
        ThreatModel(command.norm, command.eps),
        settings=Settings(
            suite=command.suite,
            draws=command.draws,
            check_images=command.checks,
            norm_images=command.norms,
            batch_size=command.batch_size,
            precision=command.precision,
            seed=command.seed,
        ),
        name=name,
        about={
            "data": command.data,
            "split": test.split,
            "classifier": command.classifier,
            "purifier": command.purifier,
            **command.weighing(),
            **({"options": command.reading()} if command.reading() else {}),
        },
        store=command.store or command.out / f"{stem}.sqlite",
        wait=command.wait,
        tensorboard=command.tensorboard,
        quiet=command.quiet,
    )
    skipped = f" ({len(test.skipped)} unreadable images skipped)" if test.skipped else ""
    print(f"\n{command.data}{skipped}, classifier {command.classifier}, {report.table()}\n")
    written = [*save_report(report, command.out / f"{stem}.html"), report.to_csv(command.out / f"{stem}.csv")]
    print(f"wrote {', '.join(str(path) for path in [command.store or command.out / f'{stem}.sqlite', *written])}")
    return 0
