"""The templates of `anomaly-bench new`: each one's own test passes, and a method runs at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_category

from anomaly_bench.cli.main import command as call

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "anomaly_bench" / "cli" / "templates"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["method", "dataset", "metric"])
def test_its_own_test_passes(kind, tmp_path):
    folder = shutil.copytree(TEMPLATES / kind, tmp_path / kind, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_my_{kind}.py"]
    path = {"PYTHONPATH": str(ROOT)}  # this tree, wherever an installed package comes from
    done = subprocess.run(quiet, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_method_runs(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(TEMPLATES / "method", tmp_path / "method")
    make_category(tmp_path / "data" / "cog")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    words = ["--config-dir", ".", "method=my_method", "dataset=folder", f"data_root={tmp_path / 'data'}"]
    assert call([*words, "input.resize=64", "speed=false", "gallery=0"]) == 0
    assert "My method" in capsys.readouterr().out
