"""What a user gets: public names, the wheel's content, and imports that run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import purify
import purify.attacks
import purify.eval

FOLDERS = {
    "purify": ROOT / "purify",
    "purify.commands": ROOT / "purify" / "commands",
    "purify.interop": ROOT / "purify" / "interop",
    "purify.training": ROOT / "purify" / "training",
    "purify.attacks": ROOT / "attacks",
    "purify.eval": ROOT / "eval",
    "purify.eval.spectrum": ROOT / "eval" / "spectrum",
    "purify.eval.theory": ROOT / "eval" / "theory",
}


def test_public_names() -> None:
    assert set(purify.__all__) >= {
        "load",
        "load_classifier",
        "list_checkpoints",
        "wrap",
        "load_dataset",
        "DenoisingSparseAutoencoder",
    }
    assert set(purify.attacks.__all__) >= {"ThreatModel", "FGSM", "PGD", "AttackResult", "exact", "bpda"}
    assert set(purify.eval.__all__) >= {"evaluate", "Report"}
    for module in (purify, purify.attacks, purify.eval):
        assert all(hasattr(module, name) for name in module.__all__)
        assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))


def imports_of(path: Path) -> set[str]:
    """Modules of this project that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "attacks").glob("*.py")), ids=lambda p: p.stem)
def test_attacks_import_torch_alone(path: Path) -> None:
    standard = set(sys.stdlib_module_names)
    for name in imports_of(path):
        ours = name.startswith("purify.attacks") or name in ("purify.images", "purify.training_mode")  # which need but torch
        outside = {"foolbox": {"foolbox", "numpy"}, "pyautoattack": {"pyautoattack"}}.get(path.stem, set())  # wrappers of others
        assert ours or name.split(".")[0] in standard | {"torch"} | outside, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "purify").glob("*.py")), ids=lambda p: p.stem)
def test_the_core_knows_neither_attacks_nor_judge(path: Path) -> None:
    allowed = {"cli": {"attacks", "eval"}, "fitting": {"attacks", "eval"}}.get(path.stem, set())
    for name in imports_of(path):
        for room in ("attacks", "eval"):
            assert room in allowed or not name.startswith(f"purify.{room}"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "purify" / "training").glob("*.py")), ids=lambda p: p.stem)
def test_training_attacks_but_does_not_judge(path: Path) -> None:
    assert not any(name.startswith(("purify.eval", "purify.commands")) for name in imports_of(path))


def test_every_folder_is_in_the_wheel(tmp_path: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(settings["tool"]["setuptools"]["packages"]) == {*FOLDERS, "purify.checkpoints"}
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("purify_defense-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in FOLDERS.items():
        for file in folder.glob("*.py"):
            assert f"{package.replace('.', '/')}/{file.name}" in names
    for name in purify.list_checkpoints():
        assert {f"purify/checkpoints/{name}.safetensors", f"purify/checkpoints/{name}.json"} <= names
    assert {"purify/py.typed", "purify/checkpoints/README.md", "purify/eval/reference/digits.json"} <= names
    assert not any(n.startswith(("tests/", "attacks/", "eval/")) for n in names)


def test_links() -> None:
    for room in ("attacks", "eval", "checkpoints"):
        link = ROOT / "purify" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room


def test_names_say_something_and_files_are_short() -> None:
    for folder in FOLDERS.values():
        for file in folder.glob("*.py"):
            assert file.stem not in {"utils", "util", "misc", "helpers", "common"}
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, f"{file} is two rooms"
