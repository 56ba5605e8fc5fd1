"""`anomaly-bench new`: the generated files pass their test and run; nothing is overwritten."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_category
from PIL import Image

from anomaly_bench.cli.main import command as call
from anomaly_bench.testing.setup import pictures

ROOT = Path(__file__).parents[3]
KINDS = ("method", "dataset", "metric")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_generated_test_passes(kind, tmp_path):
    folder = tmp_path / "first_try"
    assert call(["new", kind, "first_try", f"out={folder}"]) == 0
    quiet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_first_try.py"]
    path = {"PYTHONPATH": str(ROOT)}  # this tree, wherever an installed package comes from
    done = subprocess.run(quiet, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_generated_part_runs_from_the_command_line(kind, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the folder is added
    name = f"first_{kind}"  # a module is imported once
    assert command("new", kind, name, "out=.")[0] == 0
    make_category(tmp_path / "data" / "cog")
    for number, picture in enumerate(pictures(12, 0)):
        part = "normal" if number < 10 else "defective"
        for path, image in ((tmp_path / "own" / "first" / part, picture), (tmp_path / "own" / "first" / "masks", 1)):
            path.mkdir(parents=True, exist_ok=True)
            made = Image.new("L", (64, 64), 255) if path.name == "masks" else Image.fromarray(image)
            made.save(path / f"{number:03}.png")
    data = ["data_root=own", "category=first"] if kind == "dataset" else ["dataset=folder", "data_root=data"]
    words = [f"{kind}={name}", *data, "--config-dir", ".", "input.resize=64", "speed=false", "gallery=0"]
    status, out, err = command(*words)
    assert status == 0, err
    assert f"First {kind}" in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["method", "MyMethod"], "expected a name in snake_case, such as my_method"),
        (["method", "class"], "expected a name in snake_case"),
        (["method", "padim"], "anomaly-bench has a method of that name"),
        (["dataset", "json"], "Python has a module of that name"),
        (["metric"], r"expected new metric NAME \[out=DIR\]"),
        (["metric", "one", "two"], r"expected new metric NAME \[out=DIR\]"),
        (["metric", "one", "at=here"], r"expected new metric NAME \[out=DIR\]"),
        (["backbone", "one"], "no such subject"),
    ],
)
def test_bad_names(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(["new", *words]) == 2
    assert re.search(error, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "test_first_try.py").write_text("mine")
    assert call(["new", "metric", "first_try", f"out={tmp_path}"]) == 2
    assert "test_first_try.py: exists already; give another name or out=DIR" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_first_try.py"]
    assert (tmp_path / "test_first_try.py").read_text() == "mine"
