"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from purify import __version__
from purify.checkpoint import list_checkpoints
from purify.eval.exhibit import INK, Exhibit, inline_svg
from purify.eval.recovery import Accuracy
from purify.eval.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["render_exhibits", "render_html", "render_markdown", "save_report", "verdict_in_words"]

_LINES = (("#6b7280", "-"), ("#0d9488", ":"), ("#d97706", "--"), ("#8b5cf6", "-."))


def save_report(report: Report, path: Path) -> list[Path]:
    """Write ``path`` (HTML), and Markdown and JSON of the same figures beside it; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    markdown = path.with_suffix(".md")
    path.write_text(render_html(report), encoding="utf-8")
    markdown.write_text(render_markdown(report), encoding="utf-8")
    return [path, markdown, report.to_json(path.with_suffix(".json"))]


def verdict_in_words(report: Report) -> list[str]:
    """What was found, for someone who reads nothing else: one sentence an entry."""
    of = f"of {report.clean.n} images"
    said = [
        f"Untouched, {_share(report.clean)} {of} are classified rightly.",
        f"Against an attacker who does not know the purifier (PGD on the bare classifier), {_share(report.oblivious['PGD'])} "
        "stand; "
        f"without the purifier {_share(report.undefended['PGD'])} do."
        if report.recovered
        else f"This is a classifier without a purifier: under PGD {_share(report.oblivious['PGD'])} stand.",
        f"Against an attacker who knows everything, at most {_share(report.worst_case)} stand at {report.threat}. "
        "No attack proves anything: a stronger one may find less, and nothing here is certified.",
    ]
    if report.failed:
        said.append(
            f"Do not rely on these figures: {len(report.failed)} of the evaluation's checks of itself failed "
            f"({', '.join(report.failed)})."
        )
    elif report.checks:
        said.append("The evaluation's checks of itself found nothing that would make these figures too good.")
    else:
        said.append("The evaluation's checks of itself were not run.")
    if report.errors:
        said.append(f"{len(report.errors)} images led to answers that are no number; they count as wrong.")
    return said


def render_markdown(report: Report) -> str:
    """The same figures as Markdown."""
    lines = [f"# {report.name}, {report.threat}", "", *verdict_in_words(report), "", report.table(), "", "## Accuracies", ""]
    lines += ["| claim | accuracy, % [95 %] | n | attack |", "|---|---|---|---|"]
    lines += [f"| {claim} | {accuracy} | {accuracy.n} | {accuracy.attack or '–'} |" for claim, accuracy in _accuracies(report)]
    lines += ["", "## Checks", "", "| check | what ought to be | verdict | figures |", "|---|---|---|---|"]
    lines += [f"| {check.id} | {check.title} | {check.verdict} | {check.words} |" for check in report.checks]
    lines += ["", "## Again", "", "```bash", reproduce(report), "```", ""]
    return "\n".join(lines)


def render_html(report: Report) -> str:
    """The whole page."""
    stages = [(name, broken, report.seconds.get(name, 0.0)) for name, broken in report.broken_by.items()]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=verdict_in_words(report),
            accuracies=_accuracies(report),
            stages=stages,
            margins=_draw(report, _margins),
            curve=None if report.curve is None else _draw(report, _curves),
            tags=sorted({tag for entry in report.gallery for tag in entry["tags"]}),
            views={"oblivious": "oblivious PGD", "adaptive": "adaptive, the worst found", "clean": "clean"},
            audit=None
            if report.audit is None
            else {"words": report.audit["words"], "exhibits": [Exhibit(**fields) for fields in report.audit["exhibits"]]},
            reproduce=reproduce(report),
            version=__version__,
        )
    )


def render_exhibits(title: str, words: list[str], exhibits: list[Exhibit], reproduce: str) -> str:
    """A page of exhibits alone, with what they say in words on top, and the command that makes them again."""
    return (
        _environment()
        .get_template("exhibits_page.html.j2")
        .render(title=title, words=words, exhibits=exhibits, reproduce=reproduce, version=__version__)
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("purify.eval", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment


def reproduce(report: Report) -> str:
    """The command that makes this report again; for what a table trains at its first use, that of the table's row."""
    about, settings = report.configuration["about"], report.configuration["settings"]
    if {"data", "classifier", "purifier"} <= about.keys() and (trained := _trained_at_first_use(about)):
        return _row_of_a_table(report, trained)
    if not {"data", "classifier", "purifier"} <= about.keys():
        return f"# made from Python: purify.eval.evaluate(…, name={report.name!r}); its settings are in the JSON file"
    options = {
        "data": about["data"],
        "classifier": about["classifier"],
        **{name: about[name] for name in ("weights", "mean", "std") if name in about},
        "purifier": about["purifier"],
        "norm": report.threat.norm,
        "eps": repr(report.threat.eps),
        "images": report.clean.n,
        "suite": settings["suite"],
        "draws": settings["draws"],
        "checks": settings["check_images"],
        "norms": settings["norm_images"],
        "seed": settings["seed"],
        **({} if settings.get("precision", "auto") == "auto" else {"precision": settings["precision"]}),
        **({} if settings.get("batch_size") is None else {"batch-size": settings["batch_size"]}),
        **about.get("options", {}),
    }
    words = ((key, value if isinstance(value, list) else [value]) for key, value in options.items())
    return "purify evaluate " + " ".join(f"--{key} {shlex.join(map(str, values))}" for key, values in words)


def _trained_at_first_use(about: Mapping[str, Any]) -> str:
    """The purifier or classifier of a table's row that no checkpoint is shipped of, and that `purify evaluate` does not know."""
    from purify.eval.trained import TRAINED
    from purify.training.catalogue import list_recipes

    shipped, recipes = list_checkpoints(), list_recipes()
    made = [about["purifier"]] * (about["purifier"] in TRAINED)
    made += [about["classifier"]] * (about["classifier"] in recipes and about["classifier"] not in shipped)
    return " and ".join(made)


def _row_of_a_table(report: Report, trained: str) -> str:
    from purify.eval.tables import TABLES

    data, settings = report.configuration["about"]["data"], report.configuration["settings"]
    for name, spec in TABLES.items():
        if (spec.data, spec.threat) == (data, report.threat):
            full = "" if report.name in spec.row_names else " --full"
            again = f"purify tables --data {name} --rows {shlex.quote(report.name)}{full} --images {report.clean.n}"
            return f"{again} --suite {settings['suite']} --checks {settings['check_images']} --seed {settings['seed']}"
    return f"# a row of a table, whose {trained} is trained at its first use: see `purify tables`"


def _share(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.share:.1f} % (95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"


def _accuracies(report: Report) -> list[tuple[str, Accuracy]]:
    rows = [("clean, without the purifier", report.undefended_clean)] if report.recovered else []
    rows += [("clean", report.clean)]
    if report.recovered:
        rows += [(f"{name}, without the purifier", accuracy) for name, accuracy in report.undefended.items()]
    rows += [(f"{name}, oblivious", accuracy) for name, accuracy in report.oblivious.items()]
    return [*rows, ("adaptive", report.adaptive), ("worst case", report.worst_case)]


def _draw(report: Report, paint: Callable[[Axes, Report], None]) -> str:
    """A figure as inline SVG in the page's colours."""
    return inline_svg(lambda figure: paint(figure.subplots(), report))


def _margins(axis: Axes, report: Report) -> None:
    rows = report.per_image
    shown = {
        "clean": rows["clean_margin"],
        "oblivious PGD, without the purifier": rows["undefended_PGD_margin"],
        "oblivious PGD": rows["oblivious_PGD_margin"],
        "adaptive, lowest found": rows["adaptive_margin"],
    }
    finite = {name: values[torch.isfinite(values)].numpy() for name, values in shown.items()}
    everything = np.concatenate(list(finite.values()))
    low, high = (float(v) for v in np.percentile(everything, [0.5, 99.5])) if len(everything) else (0.0, 1.0)
    bins = list(np.linspace(low, high if high > low else low + 1, 60))
    for (colour, line), (name, values) in zip(_LINES, finite.items(), strict=True):
        clipped = np.clip(values, bins[0], bins[-1])
        axis.hist(clipped, bins, histtype="step", color=colour, linestyle=line, linewidth=1.8, label=name)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_xlabel("margin: logit of the true class − largest other (negative: misclassified)")
    axis.set_ylabel("images")
    axis.legend(frameon=False, fontsize=9)


def _curves(axis: Axes, report: Report) -> None:
    assert report.curve is not None
    series: dict[str, list[Any]] = {"oblivious": report.curve.oblivious, "adaptive": report.curve.adaptive}
    for (colour, line), (claim, accuracies) in zip((_LINES[1], _LINES[2]), series.items(), strict=True):
        if accuracies:
            shares = [100 * a.share for a in accuracies]
            axis.plot(report.curve.eps, shares, color=colour, linestyle=line, marker="o", markersize=4, label=claim)
            low, high = [100 * a.low for a in accuracies], [100 * a.high for a in accuracies]
            axis.fill_between(report.curve.eps, low, high, color=colour, alpha=0.15)
    axis.axvline(report.threat.eps, color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel(f"eps, {report.threat.norm_name}; dotted: this report's")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(-2, 102)
    axis.legend(frameon=False, fontsize=9)
