"""README, CONTRIBUTING and docs/: their examples run, and their tables match results/."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_category, time_briefly

from anomaly_bench.cli.commands.tables import write_tables
from anomaly_bench.cli.main import command as call
from anomaly_bench.testing.contract import BACKBONE_CHECKS
from anomaly_bench.testing.setup import Setup
from anomaly_bench.version import __version__

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


def blocks(language, page):
    """Blocks meant to run; those marked `text` need what a test lacks: a cluster, a file's name."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


LINES = dict.fromkeys(
    line.partition("  ")[0]
    for page in PAGES
    for block in blocks("bash", page)
    for line in block.splitlines()
    if line.startswith("anomaly-bench")
)
COMMANDS = [line for line in LINES if "data download" not in line]  # tests/data/test_download.py has a server for that


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """An empty working folder, small images in place of the reader's data, and short timing."""
    monkeypatch.chdir(tmp_path)
    time_briefly(monkeypatch)
    for name in ("bottle", "screw", "carpet", "mine/cog"):
        make_category(tmp_path / "data" / ("" if "/" in name else "mvtec") / name)
    return tmp_path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A results folder with records of two methods."""
    root = tmp_path_factory.mktemp("fitted")
    make_category(root / "mine" / "cog")
    words = [
        "dataset=folder",
        f"data_root={root / 'mine'}",
        f"results={root / 'results'}",
        "input.resize=64",
        "batch_size=2",
    ]
    with pytest.MonkeyPatch.context() as patch:
        time_briefly(patch)
        for method in ("padim", "patchcore"):
            assert call([*words, f"method={method}"]) == 0
    return root / "results"


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines(line, quick, fitted):
    words = [word.replace("/data/", f"{quick}/data/") for word in shlex.split(line, comments=True)[1:]]
    if "backbone=wrn50" in words:
        words += ["backbone.weights=random", "backbone.network=resnet18", "method.dimensions=20", "category=bottle"]
    if words[0] in ("tables", "report", "leaderboard", "compare"):
        shutil.copytree(fitted, "results")
    if words[0] == "score":
        words = with_files(words, quick)
    if "=" in words[0] or words[0] in ("-m", "plan", "status"):
        small = [] if any(word.startswith("input.") for word in words) else ["input.resize=64"]
        words += ["batch_size=2", *small]
    whole = "score" not in words and not any("category=[" in word for word in words)
    partial = whole and any("mvtec" in word for word in words)
    incomplete = words[0] == "status" or "retry=failed" in words  # the cache starts empty
    missing = partial and "category=bottle" not in words  # categories, on the disk
    assert call(words) == (1 if missing or incomplete else 0)


def with_files(words, quick):
    """A `score` command line whose model, images and maps exist."""
    fit = ["dataset=mvtec", f"data_root={quick}/data/mvtec", "category=screw", "input.resize=64", "speed=false"]
    assert call([*fit, "method.dimensions=20", "save_model=true", "results=fitted"]) == 0
    (model,) = Path("fitted").rglob("model.yaml")
    shutil.copytree(quick / "data" / "mvtec" / "screw" / "test", quick / "data" / "line7")
    for image in (quick / "data" / "line7").rglob("*.png"):
        path = quick / "data" / "theirs" / "screw" / "test" / image.parent.name / f"{image.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.eye(48))
    return [f"model={model.parent}" if word.startswith("model=") else word for word in words]


def test_every_command_is_shown():
    """Each command of `--help` is in a code block of the documentation, whether or not it can run here."""
    from anomaly_bench.cli.main import SUBJECTS

    shown = {line.split()[1] for text in PAGES.values() for line in re.findall(r"anomaly-bench \w+", text)}
    assert set(SUBJECTS) - {"run"} <= shown


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([\w-]+)", "\n".join(PAGES.values()), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_python_api(quick, capsys):
    first, frame, second = blocks("python", "docs/python.md")
    exec(first, {})
    out = capsys.readouterr().out
    assert re.search(r"^weave 0\.\d+ 0\.\d+$", out, re.MULTILINE)
    assert len(first.strip().splitlines()) <= 14
    exec(frame, {})
    assert re.search(r"^padim +lite0 +0\.\d+ +0\.\d+$", capsys.readouterr().out, re.MULTILINE)
    exec(second, {})
    assert "'pro': 0." in capsys.readouterr().out


@pytest.fixture
def own(quick):
    """The YAML blocks of CONTRIBUTING.md, each written to the file named before it."""
    shown = r"This is `(my_conf/[^`]+)`:\n\n```yaml\n(.*?)^```"
    for name, text in re.findall(shown, PAGES["CONTRIBUTING.md"], re.MULTILINE | re.DOTALL):
        path = quick / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return quick / "my_conf"


def test_user_backbone(own):
    setup = Setup("mahalanobis_ad", "mobile", ("backbone.weights=random",), [own])
    for check in BACKBONE_CHECKS:
        check(setup)


def test_user_table(own, capsys):
    words = ["tables", "--config-dir", str(own), "table=image_level", f"results={ROOT / 'results'}", "method=padim"]
    assert call([*words, "format=md"]) == 0
    assert re.search(r"\| PaDiM +\| Lite0 .*\d\d\.\d", capsys.readouterr().out)


def test_tables_match_the_committed_records():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "benchmarks" / "update_readme.py")
    update_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_readme)
    for page, one in update_readme.PAGES.items():
        assert PAGES[page].split() == update_readme.updated(page, one).split(), "python benchmarks/update_readme.py"


def test_results_csv_and_table_files_match_the_committed_records(tmp_path):
    def files(folder):
        paths = [folder / "results.csv", *(path for path in (folder / "tables").rglob("*") if path.is_file())]
        return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}

    shutil.copytree(ROOT / "results" / "records", tmp_path / "records")
    write_tables(tmp_path)
    made, committed = files(tmp_path), files(ROOT / "results")
    stale = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert stale == [], "python benchmarks/update_readme.py"


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
