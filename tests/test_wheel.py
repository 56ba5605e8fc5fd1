"""The wheel in a separate environment and folder: nothing of this repository, but a user's own parts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from conftest import make_category

from anomaly_bench.config.settings import choices, conf_folder

pytest.importorskip("hatchling", reason="builds the wheel without a network")


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
DATASET = '''
from pathlib import Path

from anomaly_bench.data.mvtec import MVTecDataset


def yards(name, title, data_root, names):
    """Categories whose names are in the YAML."""
    return MVTecDataset(name, title, Path(data_root), dict.fromkeys(names))
'''
FILES = {
    "dataset/yards.yaml": """
        # Two small yards
        name: yards
        title: Yards
        _target_: my_data.yards
        names: [cog, mat]
        """,
    "backbone/tiny.yaml": """
        # MobileNet V3, small, with weights of one's own
        name: tiny
        about: {title: Tiny, revision: 1}
        weights: tiny.safetensors
        _target_: anomaly_bench.backbones.Backbone
        network: mobilenetv3_small_050
        mean: [0.5, 0.5, 0.5]
        std: [0.5, 0.5, 0.5]
        modules: {"1": blocks.0, "2": blocks.1}
        """,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The wheel in an environment that takes its dependencies from the running one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    there = [scripts / Path(sys.executable).name, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(there, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "running.pth").write_text("\n".join(site.getsitepackages()))
    pip("--python", scripts / Path(sys.executable).name, "install", "--no-index", wheel)
    return scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: the template's method, a dataset, a backbone, and two categories of images."""
    import timm
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("empty")
    template = ROOT / "anomaly_bench" / "cli" / "templates" / "method"
    shutil.copy(template / "my_method.py", place)
    shutil.copytree(template / "method", place / "my_conf" / "method")
    (place / "my_data.py").write_text(DATASET)
    for name, text in FILES.items():
        path = place / "my_conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), place / "tiny.safetensors")
    for name in ("cog", "mat"):
        make_category(place / "data" / name)
    return place


def pip(*words):
    quiet = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    at = 2 if words[0] == "--python" else 0  # a flag of pip itself, before its command
    subprocess.run([*quiet, *words[:at], words[at], "--no-deps", *words[at + 1 :]], check=True)


@pytest.fixture
def call(environment, folder):
    """Run a program of the environment in the folder; it must succeed."""

    def run(program, *words):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = shutil.which(program, path=environment)
        done = subprocess.run([path, *words], cwd=folder, env=clean, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_package_and_conf(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"anomaly_bench/{name}" for name in conf} <= names
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "anomaly_bench").rglob("*.py")}
    assert code <= names
    packages = {"anomaly_bench", "anomaly_bench_suite", "hydra_plugins"}
    assert {name.split("/")[0].partition("-")[0] for name in names} == packages


def test_the_installed_wheel_is_what_runs(call, environment):
    out = call("python", "-c", "import anomaly_bench.config.settings as c; print(c.__file__); print(c.conf_folder())")
    for line in out.splitlines():
        assert Path(line).is_relative_to(environment.parent)
    listed = call("anomaly-bench", "list", "methods", "--config-dir", "my_conf").splitlines()
    assert {line.split()[0] for line in listed} == {"my_method", *choices("method", [conf_folder()])}


def test_user_method_dataset_and_backbone(call, folder):
    words = ["--config-dir", "my_conf", "method=my_method", "dataset=yards", "data_root=data", "backbone=tiny"]
    out = call("anomaly-bench", *words, "input.resize=64", "speed=false", "gallery=0")
    assert "Yards" in out
    (path,) = (folder / "results" / "records" / "yards" / "my_method-tiny").glob("cog-s0-*.json")
    record = json.loads(path.read_bytes())
    assert record["titles"] == {"dataset": "Yards", "method": "My method", "backbone": "Tiny"}
    weights = hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    assert record["config"]["backbone"]["weights"] == weights
    assert str(folder) not in path.read_text("utf-8")


def test_the_contract_of_all_three(call, folder):
    words = ["--method", "my_method", "--backbone", "tiny", "--dataset", "yards", "--data-root", "data"]
    pytest_alone = ("-P", "-m", "pytest", "-v")  # -P: like the program pytest, which does not import from this folder
    out = call("python", *pytest_alone, "--pyargs", "anomaly_bench.testing.contract", "--config-dir", "my_conf", *words)
    assert "20 passed" in out
    for title in ("my_method-same_seed_same_bits", "tiny-strides", "yards-tasks"):
        assert f"test_contract[{title}] PASSED" in out
