"""The command line as a user meets it: files, exit codes, and messages without tracebacks."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from purify import list_checkpoints, load_dataset
from purify.attacks import ThreatModel
from purify.checkpoint import FOLDER
from purify.cli import main
from purify.commands.tables import TablesCommand
from purify.data import ImageSet
from purify.eval import Settings, reference
from purify.eval.tables import TABLES, DefenceTable, TableSpec


def test_help_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "purify tables" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["frobnicate"]) == 2
    assert "unknown command 'frobnicate'" in capsys.readouterr().err
    assert main(["--version"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", "--help"])
    assert ended.value.code == 0
    assert "--weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nonesuch"], "unknown recipe 'nonesuch'; known: cifar10-code-robust"),
        (["tables", "--data", "nonesuch"], "no table for nonesuch; known: digits, mnist"),
        (["tables", "--rows", "none"], "--rows are those of one table: give one name with --data"),
        (["evaluate", "--purifier", "nonesuch"], "unknown checkpoint 'nonesuch'; known: "),
        (["evaluate", "--data", "nonesuch"], "unknown data set 'nonesuch'; known: digits"),
        (["evaluate", "--eps", "8"], "write 8 / 255, not 8"),
        (["evaluate", "--eps", "-0.1"], "eps of 0 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
    assert message.count("\n") == 1


def test_an_interruption_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for said in ((), ("saved",)):

        def interrupted(_: object, said: tuple[str, ...] = said) -> int:
            raise KeyboardInterrupt(*said)

        monkeypatch.setattr("purify.cli.runs", interrupted)
        assert main(["runs"]) == 130
        assert capsys.readouterr().err == f"\npurify runs: {said[0] if said else 'interrupted'}\n"


def test_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in list_checkpoints())


@pytest.mark.usefixtures("quick_commands")
def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "--images",
        "60",
        "--suite",
        "fast",
        "--checks",
        "0",
        "--norms",
        "0",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    assert main([*command, "--purifier", "digits-dsae"]) == 0
    assert main([*command, "--purifier", "median"]) == 0
    assert main([*command, "--purifier", "none", "--norm", "l2", "--eps", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "| adaptive |" in printed
    assert str(tmp_path / "digits.digits-dsae.json") in printed
    assert json.loads((tmp_path / "digits.none.json").read_text(encoding="utf-8"))["threat"] == {"norm": "l2", "eps": 0.5}
    assert len((tmp_path / "digits.median.csv").read_text(encoding="utf-8").splitlines()) == 61


@pytest.mark.usefixtures("quick_commands")
def test_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grey PNG files in class folders, one of them broken: the count of skipped files stands above the table."""
    digits = load_dataset("digits", "test").first(200)
    for index, (pixels, label) in enumerate(zip(digits.pixels, digits.labels.tolist(), strict=True)):
        file = tmp_path / "pictures" / "test" / str(label) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(file)
    (tmp_path / "pictures" / "test" / "3" / "broken.png").write_bytes(b"not a picture")
    command = ["evaluate", "--data", f"imagefolder:{tmp_path / 'pictures'}", "--images", "40", "--suite", "fast", "--quiet"]
    assert main([*command, "--checks", "0", "--norms", "0", "--purifier", "jpeg", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "(1 unreadable images skipped)" in printed
    assert "n = 40" in printed
    assert "| jpeg | " in printed


def test_variants_are_of_the_tables_data_and_threat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table may bear another name than its data set."""
    asked: list[object] = []
    digits = load_dataset("digits", "test")

    def load(name: str, split: str, **_: object) -> ImageSet:
        asked.append(name)
        return digits

    def compare(*_: object, threat: ThreatModel, **__: object) -> None:
        asked.append(threat)
        raise InterruptedError

    monkeypatch.setattr("purify.commands.data_options.load_dataset", load)
    monkeypatch.setattr("purify.eval.variants.compare_variants", compare)
    with contextlib.suppress(InterruptedError):
        main(["tables", "--variants", "--data", "cifar10-l2", "--out", str(tmp_path), "--quiet"])
    assert asked == ["imagefolder:cifar10-jpeg.zip"] * 3 + [ThreatModel("l2", 0.5)]


@pytest.mark.usefixtures("quick_commands")
def test_the_page_says_how_it_is_made_again(tmp_path: Path) -> None:
    few = ["--images", "6", "--suite", "fast", "--checks", "0", "--norms", "0", "--quiet", "--out", str(tmp_path)]
    assert main(["evaluate", *few, "--purifier", "none", "--batch-size", "3", "--precision", "float32"]) == 0
    page = (tmp_path / "digits.none.html").read_text(encoding="utf-8")
    assert "--precision float32 --batch-size 3" in page


@pytest.mark.usefixtures("short_attacks", "quick_commands")
def test_tables_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reference, "REFERENCE_FOLDER", tmp_path / "reference")
    few = Settings(suite="fast", oblivious_steps=5, norm_images=0, check_images=3, check_steps=2, random_draws=10, pictures=8)
    monkeypatch.setitem(TABLES, "digits", dataclasses.replace(TABLES["digits"], settings=few, baselines=("jpeg",)))
    command = ["tables", "--data", "digits", "--images", "20", "--out", str(tmp_path), "--quiet"]
    assert main([*command, "--check"]) == 1
    assert "no committed reference" in capsys.readouterr().out
    for name in ("digits.md", "digits.json", "digits-examples.png", "digits-margins.png", "digits-eps.png", "digits.jpeg.csv"):
        assert (tmp_path / name).stat().st_size > 0

    (tmp_path / "reference").mkdir()
    figures = (tmp_path / "digits.json").read_text(encoding="utf-8")
    (tmp_path / "reference" / "digits.json").write_text(figures, encoding="utf-8")
    shutil.rmtree(tmp_path / "stores")  # else the rows would be read from there
    assert main([*command, "--check"]) == 0
    printed = capsys.readouterr().out
    assert "every figure within its interval" in printed
    assert json.loads(figures)["rows"] != []
    again = json.loads((tmp_path / "digits.json").read_text(encoding="utf-8"))
    first = json.loads(figures)
    for table in (again, first):
        for row in table["rows"]:
            for clock in ("milliseconds", "undefended_milliseconds", "seconds"):
                row.pop(clock)
    assert again == first  # same seed, same table

    shutil.rmtree(tmp_path / "stores")
    assert main([*command, "--rows", "jpeg", "--check"]) == 0
    assert [path.name for path in (tmp_path / "stores").glob("*.sqlite")] == ["digits.jpeg.sqlite"]
    one = json.loads((tmp_path / "digits.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in one["rows"]] == [row["name"] for row in first["rows"]]
    assert one["rows"][1]["adaptive"] == first["rows"][1]["adaptive"]
    printed = capsys.readouterr().out
    assert "Not measured yet" not in printed
    assert "reference, rows jpeg: every figure within its interval" in printed  # of the others nothing is claimed
    assert main([*command, "--rows", "blur"]) == 1
    assert "digits has no row blur; its rows: none, digits-dsae, jpeg" in capsys.readouterr().err

    damaged = json.loads(figures)
    damaged["rows"][0]["clean"] |= {"right": 5, "low": 0.04, "high": 0.2}
    (tmp_path / "reference" / "digits.json").write_text(json.dumps(damaged), encoding="utf-8")
    assert main([*command, "--check"]) == 1
    assert "none, clean: " in capsys.readouterr().out


def test_the_help_names_every_table() -> None:
    named = re.search(r"default: all of them \(([^)]*)\)", inspect.getsource(TablesCommand))
    assert named is not None
    assert named.group(1).replace("\n", " ").split(", ") == list(TABLES)


def test_a_table_of_ones_own_says_which_file_its_classifier_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on a run's page takes it again, with the size to which a folder's images were brought."""
    asked: list[dict[str, object]] = []

    def made(spec: TableSpec, **options: object) -> DefenceTable:
        asked.append(cast(dict[str, object], options["about"]))
        return DefenceTable(spec, not_run="not now")

    checkpoint = tmp_path / "mine.safetensors"
    for shipped in FOLDER.glob("digits-shufflenet.*"):
        shutil.copy(shipped, checkpoint.with_suffix(shipped.suffix))
    monkeypatch.setattr("purify.eval.tables.defence_table", made)
    command = ["tables", "--model", str(checkpoint), "--data", f"imagefolder:{tmp_path}", "--size", "8"]
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert asked == [{"classifier": str(checkpoint), "options": {"size": "8"}}]


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--data", "mnist", "--data-root", str(tmp_path), "--out", str(tmp_path), "--quiet"]) == 1
    assert "Not run: mnist is not here" in capsys.readouterr().out
    assert "Not run" in (tmp_path / "mnist.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tables", "--data", "digits", "--purifiers", "mine.safetensors", "--eps", "0.1"], "--purifiers and --eps are for a"),
        (["tables", "--data", "digits", "--epochs", "2"], "--epochs are those of the --variants"),
        (["tables", "--model", "digits-shufflenet", "--data", "digits", "--epochs", "2"], "--epochs are those of the --variants"),
        (
            ["train", "digits-dsae", "--weights", "mine.pt"],
            "--weights are those of a classifier of your own",
        ),
        (["clean", "photo.png", "-o", "out.png", "--weights", "mine.pt"], "--weights are those of a classifier of your own"),
        (["export", "digits-dsae", "--mean", "0.5", "--std", "0.5"], "--mean and --std are those of a classifier of your own"),
        (["evaluate", "--mean", "0.5", "--std", "0.5"], "--mean and --std go with the --weights of a torchvision classifier"),
        (["tables", "--mean", "0.5", "--std", "0.5"], "--mean and --std are for a classifier of your own"),
        (["report", "run.sqlite", "--out", "page.md"], "expected an HTML file (*.html) for --out, got page.md"),
        (["clean", "photo.png", "-o", "photo.txt/out.png"], "photo.txt"),
    ],
)
def test_what_would_be_ignored_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("photo.png")
    (tmp_path / "photo.txt").write_text("a file where a folder should be", encoding="utf-8")
    assert main(words) == 1
    assert said in capsys.readouterr().err
