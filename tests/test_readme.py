"""Every code block of the README runs, and its tables are those of results/."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_category

from anomaly_bench.cli.main import command as call
from anomaly_bench.hardware import timing

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("anomaly-bench")]
COMMANDS = [line for line in LINES if "data download" not in line]  # tests/test_download.py has a server for that


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """An empty folder to work in, small images for the data that a reader has, and no waiting for the clock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing.measure, "__defaults__", (0.05, lambda calls: None))
    for name in ("bottle", "screw", "carpet", "mine/cog"):
        make_category(tmp_path / "data" / ("" if "/" in name else "mvtec") / name)
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines(line, quick):
    words = [word.replace("/data/", f"{quick}/data/") for word in shlex.split(line, comments=True)[1:]]
    if "backbone=wrn50" in words:
        words += ["backbone.weights=random", "method.dimensions=20", "category=bottle", "input.resize=64"]
    if words[0] in ("tables", "report", "compare"):
        done = ["dataset=folder", f"data_root={quick}/data/mine", "input.resize=64", "batch_size=2"]
        assert call(done) == 0
        assert words[0] != "compare" or call([*done, "method=patchcore"]) == 0
    if words[0] == "score":
        words = with_files(words, quick)
    if words[0] not in ("data", "tables", "report", "compare", "list", "score", "--help"):
        words.append("batch_size=2")
    whole = "score" not in words and not any("category=[" in word for word in words)
    partial = whole and any("mvtec" in word for word in words)
    incomplete = words[0] == "status" or "retry=failed" in words  # nothing has been done here before
    missing = partial and "category=bottle" not in words  # categories, on the disk
    assert call(words) == (1 if missing or incomplete else 0)


def with_files(words, quick):
    """A `score` line whose model, images and maps are there."""
    fit = ["dataset=mvtec", f"data_root={quick}/data/mvtec", "category=screw", "input.resize=64", "speed=false"]
    assert call([*fit, "method.dimensions=20", "save_model=true", "results=fitted"]) == 0
    (model,) = Path("fitted").rglob("model.yaml")
    shutil.copytree(quick / "data" / "mvtec" / "screw" / "test", quick / "data" / "line7")
    for image in (quick / "data" / "line7").rglob("*.png"):
        path = quick / "data" / "theirs" / "screw" / "test" / image.parent.name / f"{image.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.eye(48))
    return [f"model={model.parent}" if word.startswith("model=") else word for word in words]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile


def test_python_door(quick, capsys):
    exec(blocks("python")[0], {})
    out = capsys.readouterr().out
    assert re.search(r"^weave 0\.\d+ 0\.\d+$", out, re.MULTILINE)
    assert len(blocks("python")[0].strip().splitlines()) <= 14


def test_a_method_of_ones_own(quick, monkeypatch, capsys):
    (quick / "my_package.py").write_text(blocks("python")[1])
    (quick / "my_conf" / "method").mkdir(parents=True)
    (quick / "my_conf" / "method" / "mean.yaml").write_text(blocks("yaml")[0])
    monkeypatch.syspath_prepend(str(quick))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    assert call(["--config-dir", "my_conf", "method=mean", "dataset=folder", f"data_root={quick}/data/mine"]) == 0
    assert "Mean" in capsys.readouterr().out


def test_tables_are_those_of_the_committed_records():
    printed = README.partition("<!-- tables")[2].partition("-->\n")[2].partition("<!-- end of tables -->")[0]
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "benchmarks" / "update_readme.py")
    update_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_readme)
    assert printed.split() == update_readme.tables().split()
