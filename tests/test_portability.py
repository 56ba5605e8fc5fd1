"""Windows and macOS, as far as testable here; `make check` has mypy look for functions they lack."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from anomaly_bench.data import store

ROOT = Path(__file__).parents[1]
FOLDERS = ("anomaly_bench", "benchmarks", "conf", "results", "tests")
SOURCES = sorted((ROOT / "anomaly_bench").rglob("*.py"))
ELSEWHERE = {"fcntl", "grp", "multiprocessing", "posix", "pwd", "resource", "termios"}  # missing on Windows, or forks
LINKS = {"fork", "forkpty", "hardlink_to", "link", "mkfifo", "symlink", "symlink_to"}


def test_file_names_are_legal_everywhere():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    assert not [name for name in names if re.search(r'[<>:"\\|?*\x00-\x1f]|[ .](/|$)', name)]
    assert len({name.casefold() for name in names}) == len(names), "two names differ in case only"
    assert not [path for path in paths if path.is_symlink()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_functions_missing_on_windows(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not ELSEWHERE & {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).partition(".")[0] not in ELSEWHERE
        if isinstance(node, ast.Attribute):
            own = node.attr == "link" and ast.unparse(node.value) != "os"  # a table's cell has one
            assert node.attr not in LINKS or own, f"{path.name}:{node.lineno}: {node.attr}"


def test_a_damaged_file_is_closed_before_it_is_deleted(tmp_path, monkeypatch):
    np.save(tmp_path / "key-00000000.npy", np.zeros((2, 3), np.uint8))
    map, unlink, mapped = store.mapped_array, Path.unlink, []

    def mapping(*arguments):
        array = map(*arguments)
        mapped.append(weakref.ref(array))
        return array

    def unlinking(path, missing_ok=False):
        assert [reference() for reference in mapped] == [None], "Windows cannot delete a mapped file"
        unlink(path, missing_ok)

    monkeypatch.setattr(store, "mapped_array", mapping)
    monkeypatch.setattr(Path, "unlink", unlinking)
    assert store.find_array(tmp_path, "key", (2, 3), np.dtype(np.uint8)) is None
    assert not list(tmp_path.iterdir())


def test_tables_on_a_console_with_a_limited_encoding():
    """The usual encoding on Windows has no superscript six."""
    code = "import sys; from anomaly_bench.cli.main import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    words = ["tables", f"results={ROOT / 'results'}", "format=md"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert r"MB = 10\u2076 bytes" in done.stdout.decode("cp1252")


@pytest.mark.parametrize(
    ("there", "module"),
    [("sys", "anomaly_bench"), ("sys", "anomaly_bench.cli.main"), ("pytest", "anomaly_bench.testing.pytest_plugin")],
)
def test_imports_are_light(there, module):
    """Only the standard library: torch takes seconds to import, numpy and Hydra tenths of a second."""
    code = f"import sys, {there}; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken = set(done.stdout.split())
    assert {name.partition(".")[0] for name in taken} - sys.stdlib_module_names == {"anomaly_bench"}
    if module == "anomaly_bench":
        assert not {"dataclasses", "inspect", "logging"} & taken
