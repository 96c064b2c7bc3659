"""The run store: nothing is lost, nothing is mixed up, and every way in which it can be spoilt is told in words."""

from __future__ import annotations

import csv
import ctypes
import importlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import classify_quickly
from torch import Tensor, nn

import purify
from purify.attacks import APGD, FMN, PGD, Square, TargetedAPGD, ThreatModel
from purify.attacks.suite import SUITES, Entry
from purify.cli import main
from purify.eval import Report, Settings, evaluate
from purify.eval.runs import export_run, find_runs, show_run
from purify.eval.store import FORMAT, RunStore, StoreError, Trial

THREAT = ThreatModel("linf", 0.1)
FEW = Settings(suite="fast", norm_images=10, check_images=0, pictures=5, batch_size=25)


def _trials(count: int) -> list[Trial]:
    return [Trial(i, 0, 0, i % 2 == 0, i - 3.5, 0.1, 7) for i in range(count)]


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    pixels = torch.rand(1, 4, 4)
    with RunStore(tmp_path / "a.sqlite", {"seed": 3}) as store:
        stage = store.stage("APGD, exact", "adaptive", "APGD(…)", "exact")
        store.add_images({i: 9 - i for i in range(4)})
        store.add_batch(stage, 0, 0, _trials(4), seconds=1.5, pictures={2: (0.0, -1.0, pixels)}, errors={3: "NaN"})
        store.add_batch(stage, 1, 0, [Trial(0, 1, 0, False, float("nan"), 0.1, 7)], seconds=0.5)
    with RunStore(tmp_path / "a.sqlite", {"seed": 3}) as store:
        assert store.configuration == {"seed": 3}
        assert store.stages() == [stage]
        assert store.stage("APGD, exact", "adaptive") == stage
        assert [t for t in store.trials(stage) if t.restart == 0] == _trials(4)
        assert store.labels().tolist() == [9, 8, 7, 6]
        assert store.errors() == {3: "NaN"}
        assert store.fallen(stage) == {0, 1, 3}
        assert store.fallen(stage, before=1) == {1, 3}
        assert store.silent(stage) == {0}
        assert torch.equal(store.pictures((1, 4, 4))[2], pixels)
        numbers, shares, margins = store.outcome(stage)
        assert numbers.tolist() == [0, 1, 2, 3]
        assert shares.tolist() == [0, 0, 1, 0]
        assert margins.tolist() == [-3.5, -2.5, -1.5, -0.5]
        assert store.has_batch(stage, 1, 0)
        assert not store.has_batch(stage, 2, 0)
        assert store.seconds(stage) == 2.0


def test_a_store_in_the_place_of_a_folder_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with RunStore(path, {"name": "mine", "threat": {"norm": "l2", "eps": 0.5}, "images": {"n": 7}}):
        pass
    assert [str(found) for found in find_runs(path)] == [str(found) for found in find_runs(tmp_path)]
    assert "not finished, at the start" in str(find_runs(path)[0])


def test_an_error_is_wrong_in_the_worst_case_of_a_random_defence_too() -> None:
    """Also where the oblivious column is its lowest one, in which the image had an answer."""
    configuration = {
        "name": "random",
        "threat": {"norm": "linf", "eps": 0.1},
        "images": {"n": 4},
        "suite": "random: …",
        "draws": 2,
        "settings": {"seed": 0},
    }
    right = {"clean": 1, "undefended, clean": 1, "undefended, PGD": 0, "oblivious, PGD": 0.5, "verdict": 1}
    with RunStore(":memory:", configuration) as store:
        store.add_images(dict.fromkeys(range(4), 0))
        for name, share in right.items():
            stage = store.stage(name, "oblivious" if "PGD" in name else "clean")
            rows = [Trial(i, 0, draw, draw < 2 * share, 1.0, 0.1, 1) for i in range(4) for draw in range(2)]
            store.add_batch(stage, 0, 0, rows, seconds=0.0, errors={3: "NaN"})
        costs = {"wrapped": True, "code": None, "classifier_macs": 1, "purifier_macs": 1, "purifier_parameters": 0}
        store.add_finding("costs", {**costs, "milliseconds": 1.0})
        report = Report.of(store)
    assert report.per_image["worst_share"].tolist() == [0.5, 0.5, 0.5, 0]


def test_the_worst_picture_is_kept(tmp_path: Path) -> None:
    with RunStore(tmp_path / "a.sqlite", {}) as store:
        stage = store.stage("a", "adaptive")
        for first, (share, margin) in enumerate([(1.0, 0.5), (1.0, 0.2), (0.0, -1.0), (0.5, -5.0), (0.0, -0.5)]):
            store.add_batch(stage, 0, first, [], seconds=0, pictures={0: (share, margin, torch.full((1, 1, 1), margin))})
        assert store.pictures((1, 1, 1))[0].item() == -1.0


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    RunStore(path, {"threat": {"norm": "linf", "eps": 0.1}, "seed": 0}).close()
    with pytest.raises(StoreError) as refused:
        RunStore(path, {"threat": {"norm": "linf", "eps": 0.2}, "seed": 0})
    assert "threat.eps: the store has 0.1, this run 0.2" in str(refused.value)
    assert "seed" not in str(refused.value)
    RunStore(path, {"threat": {"norm": "linf", "eps": 0.1}, "seed": 0}).close()  # the lock was let go of


def _open_and_close(path: Path) -> None:
    RunStore(path, {}, wait=60).close()


def test_a_second_run_says_so_or_waits(tmp_path: Path, processes: ForkServerContext) -> None:
    path = tmp_path / "a.sqlite"
    with RunStore(path, {}):
        with pytest.raises(StoreError, match="another run is writing to .*--store FILE, or --out FOLDER"):
            RunStore(path, {})
        waiting = processes.Process(target=_open_and_close, args=(path,))
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive()
    waiting.join(60)
    assert waiting.exitcode == 0


def test_spoilt_stores(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    RunStore(newer, {}).close()
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(StoreError, match="written by a newer version .*--store FILE, or --out FOLDER"):
        RunStore(newer, {})

    short = tmp_path / "short.sqlite"
    with RunStore(short, {}) as store:
        stage = store.stage("a", "adaptive")
        store.add_batch(stage, 0, 0, _trials(3000), seconds=0)
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"short\.sqlite is damaged, cut short"):
        RunStore(short, {})

    text = tmp_path / "text.sqlite"
    text.write_text("this is no database at all, but some words that are long enough to be one")
    with pytest.raises(StoreError, match="damaged, cut short, or not a run"):
        RunStore(text, {})
    with pytest.raises(StoreError, match="no run at"):
        RunStore(tmp_path / "nothing.sqlite", None)
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(StoreError, match="is not a run"):
        RunStore(tmp_path / "empty.sqlite", None)
    assert len(find_runs(tmp_path)) == 4
    assert all(run.name == "" for run in find_runs(tmp_path))


def test_a_full_disk(tmp_path: Path) -> None:
    """The error names the file, and what was written before stays readable."""
    path = tmp_path / "a.sqlite"
    with RunStore(path, {}) as store:
        stage = store.stage("a", "adaptive")
        store.add_batch(stage, 0, 0, _trials(10), seconds=0)
        store._connection.execute("PRAGMA max_page_count = 30")
        with pytest.raises(StoreError, match=r"could not write to .*a\.sqlite .*full.*make room"):
            store.add_batch(stage, 0, 10, _trials(100_000)[10:], seconds=0)
    with RunStore(path, {}) as store:
        assert store.trials(store.stages()[0]) == _trials(10)
        assert not store.has_batch(stage, 0, 10)


def test_a_finished_run_is_not_attacked_again(tmp_path: Path, quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:50], digits[1][:50]
    first = evaluate(quick_victim, x, y, THREAT, settings=FEW, store=tmp_path / "a.sqlite", quiet=True)
    second = evaluate(quick_victim, x, y, THREAT, settings=FEW, store=tmp_path / "a.sqlite", quiet=True)
    assert sum(first.seconds.values()) > 0
    assert first.to_dict() == second.to_dict()  # also the seconds that each attack took, which no two runs share


def test_runs_and_their_rows(tmp_path: Path, quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:50], digits[1][:50]
    path = tmp_path / "runs" / "a.sqlite"
    report = evaluate(quick_victim, x, y, THREAT, settings=FEW, store=path, name="none", quiet=True)
    (run,) = find_runs(tmp_path)
    assert (run.path, run.name) == (path, "none")
    assert str(report.worst_case) in run.words
    assert str(report.adaptive) in show_run(path)

    with export_run(path, "csv", tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    broken = {row["image"] for row in rows if row["claim"] in ("clean", "adaptive") and row["correct"] == "False"}
    assert len(y) - len(broken) == report.adaptive.right  # the figure again, from nothing but the rows
    lines = export_run(path, "json", tmp_path / "rows.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(rows)
    assert json.loads(lines[0])["stage"] == "undefended, clean"
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(export_run(path, "parquet", tmp_path / "rows.parquet")).num_rows == len(rows)
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        export_run(path, "xml", tmp_path / "rows.xml")  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_commands")
def test_runs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "--images",
        "20",
        "--suite",
        "fast",
        "--checks",
        "0",
        "--norms",
        "0",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    assert main([*command, "--purifier", "none"]) == 0
    store = tmp_path / "digits.none.sqlite"
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert main(["runs", "show", str(store)]) == 0
    assert main(["runs", "export", str(store), "--to", "json"]) == 0
    assert store.with_suffix(".json").exists()
    assert main(["report", str(store), "--out", str(tmp_path / "r.html")]) == 0
    assert "worst case" in (tmp_path / "r.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*command, "--purifier", "none", "--eps", "0.1"]) == 1
    assert "threat.eps: the store has 0.15, this run 0.1" in capsys.readouterr().err
    assert main(["runs", "show", str(tmp_path / "nothing.sqlite")]) == 1
    assert "no run at" in capsys.readouterr().err


def _without_times(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("milliseconds", "undefended_milliseconds", "seconds"):
        figures.pop(key)
    return figures


def _evaluate_in_few_steps(*arguments: str) -> None:
    """The command line, for a process of its own: every attack of the suite ``adaptive`` and every check, in a few steps each."""
    classify_quickly(pytest.MonkeyPatch())
    evaluate_module, judge = (importlib.import_module(f"purify.eval.{name}") for name in ("evaluate", "judge"))
    SUITES["adaptive"] = (
        "few steps",
        lambda threat, _: (
            Entry("APGD-CE", APGD(threat, steps=10)),
            Entry("APGD-T", TargetedAPGD(threat, steps=5, classes=3), along="fruitful paths"),
            Entry("FMN", FMN(threat, steps=10, stop_inside=True), along="fruitful paths"),
            Entry("Square", Square(threat, queries=50), along="once"),
        ),
    )
    judge.FMN = partial(judge.FMN, steps=10)
    full = evaluate_module.Examination
    evaluate_module.Examination = lambda **given: full(**given | {"steps": 5, "queries": 50, "random_draws": 50})
    few = ["--images", "40", "--checks", "4", "--norms", "4", "--batch-size", "5", "--quiet"]
    sys.exit(main(["evaluate", *few, *arguments]))


def test_killed_three_times_and_still_the_same_table(tmp_path: Path, processes: ForkServerContext) -> None:
    """The defended digits under the suite ``adaptive``, in a process that is killed (-9) at three random moments."""

    def begin(folder: Path) -> ForkServerProcess:
        process = processes.Process(target=_evaluate_in_few_steps, args=("--out", str(folder)))
        process.start()
        return process

    chance = random.Random(os.environ.get("PURIFY_TEST_SEED", "5"))
    broken, store = tmp_path / "broken", tmp_path / "broken" / "digits.digits-dsae.sqlite"
    for kill in range(3):
        process = begin(broken)
        goal = _progress(store) + chance.randint(2, 20)
        while process.is_alive() and _progress(store) < goal:
            time.sleep(0.01)
        time.sleep(0.2 * chance.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it was through before kill {kill + 1}"
    for folder in (broken, tmp_path / "whole"):
        process = begin(folder)
        process.join()
        assert process.exitcode == 0
    name = "digits.digits-dsae"
    assert _without_times(broken / f"{name}.json") == _without_times(tmp_path / "whole" / f"{name}.json")
    assert (broken / f"{name}.csv").read_bytes() == (tmp_path / "whole" / f"{name}.csv").read_bytes()
    rows = [
        export_run(folder / f"{name}.sqlite", "csv", tmp_path / f"{folder.name}.csv") for folder in (broken, tmp_path / "whole")
    ]
    assert rows[0].read_bytes() == rows[1].read_bytes()


def _progress(store: Path) -> int:
    """Batches and findings that are written."""
    if not store.exists():
        return 0
    try:
        with RunStore(store, None) as opened:
            return sum(
                int(opened._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in ("batch", "finding")
            )
    except StoreError:  # just being made
        return 0


class _Many:
    """Images without end, made when they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(indices[0]))
        return torch.rand(len(indices), 1, 64, 64, generator=generator), indices % 10


def _peak_memory(n: int, store: Path) -> int:
    """Of an evaluation of ``n`` images, in kB, for a process of its own."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: glibc else keeps what is freed, by chance more or less of it
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    SUITES["fast"] = "one step", lambda threat, _: (Entry("PGD-1", PGD(threat, steps=1)),)
    few = Settings(suite="fast", oblivious_steps=2, norm_images=0, check_images=0, pictures=4, batch_size=100)
    evaluate(model, _Many(n), None, ThreatModel("linf", 0.01), settings=few, store=store, quiet=True)
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss would start from the parent's


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, processes: ForkServerContext) -> None:
    peaks = {}
    for n in (300, 1800):
        with ProcessPoolExecutor(1, processes) as alone:
            peaks[n] = alone.submit(_peak_memory, n, tmp_path / str(n)).result()
    assert peaks[1800] - peaks[300] < 12_000, peaks  # kB; the pictures alone would be 24,000


def test_a_run_goes_on_with_the_same_model_only(tmp_path: Path, quick_victim: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Also where the difference is in no layer and no weight."""

    class Darker(nn.Module):
        factor = 1.0

        def forward(self, images: Tensor) -> Tensor:
            return images * self.factor

    stage = Darker().eval()
    few = Settings(suite="fast", oblivious_steps=1, norm_images=0, check_images=0, pictures=0)
    path, x, y = tmp_path / "a.sqlite", digits[0][:4], digits[1][:4]
    evaluate(purify.wrap(quick_victim, stage), x, y, THREAT, settings=few, store=path, quiet=True)
    evaluate(purify.wrap(quick_victim, stage), x, y, THREAT, settings=few, store=path, quiet=True)
    stage.factor = 0.3
    with pytest.raises(StoreError, match="the model answers otherwise than when .* was begun"):
        evaluate(purify.wrap(quick_victim, stage), x, y, THREAT, settings=few, store=path, quiet=True)
