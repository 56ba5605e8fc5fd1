"""Sweeps with Hydra's launchers through the console script: real processes, a real Slurm, a real Ray."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import slurm_node

from anomaly_bench import records
from anomaly_bench.cli.launchers import PLUGINS, installed
from anomaly_bench.hardware.devices import cores

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SMALL = ("category=gear", "speed=false", "gallery=0", "input.resize=64", "method.dimensions=20")
PROGRAM = "import sys; from anomaly_bench.cli.main import main; main()"


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster on this machine."""
    if why := slurm_node.missing():
        pytest.skip(why)
    with slurm_node.node(tmp_path_factory.mktemp("slurm")):
        yield


def needs(launcher: str) -> pytest.MarkDecorator:
    module, extra = PLUGINS[launcher]
    return pytest.mark.skipif(not installed(module), reason=f"needs the extra {extra}")


def sweep(launcher: str, results: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "-m", f"hydra/launcher={launcher}", f"results={results}", *SMALL, *words]


def seeds(results: Path) -> list[int]:
    return sorted(record.seed for record in records.load_all(results)[0])


def threads(results: Path) -> set[int]:
    return {record.cost["threads"] for record in records.load_all(results)[0]}


def workers(results: Path) -> set[int]:
    """The processes in which Slurm runs jobs of a sweep."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if f"submitit.core._submit\0{results}".encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def await_(condition: Callable[[], object], command: subprocess.Popen[str]) -> None:
    """Wait for something that happens while a command runs."""
    while not condition():
        assert command.poll() is None, command.communicate()[1]
        time.sleep(0.1)


def done(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in finished.stderr
    assert "Warning" not in finished.stderr
    return finished


@needs("joblib")
def test_joblib(tmp_path):
    finished = done(sweep("joblib", tmp_path, "seed=0,1,2,x", "hydra.launcher.n_jobs=2"))
    assert seeds(tmp_path) == [0, 1, 2]
    assert threads(tmp_path) == {max(1, cores() // 2)}
    assert (finished.returncode, finished.stderr.count("failed: seed=x: ")) == (1, 1)
    assert len(list(tmp_path.glob("logs/*.log"))) == 3, "each job has a log file"
    assert finished.stdout.count("Synthetic, input") == 2, "the tables are printed once"


@needs("ray")
def test_ray(tmp_path):
    finished = done(sweep("ray", tmp_path, "seed=0,1,2,3"))
    assert finished.returncode == 0, finished.stderr
    assert seeds(tmp_path) == [0, 1, 2, 3]
    assert threads(tmp_path) == {1}


@needs("submitit_local")
def test_submitit_local(tmp_path):
    finished = done(sweep("submitit_local", tmp_path, "seed=0,1"))
    assert finished.returncode == 0, finished.stderr
    assert seeds(tmp_path) == [0, 1]
    assert threads(tmp_path) == {1}


@needs("submitit_slurm")
def test_slurm_with_a_worker_killed_in_the_middle(slurm, tmp_path):
    small = [f"hydra.launcher.{key}" for key in ("partition=debug", "mem_gb=1", "cpus_per_task=1")]
    command = sweep("submitit_slurm", tmp_path, "seed=0,1,2,3,4,5,6,7", *small)
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    await_(lambda: seeds(tmp_path), first)
    before = workers(tmp_path)
    await_(lambda: workers(tmp_path) - before, first)
    os.kill(min(workers(tmp_path) - before), 9)
    err = first.communicate()[1]
    assert first.returncode == 1, err
    assert re.search(r"^error: SlurmLauncher: Job .*; run it again: finished work is kept$", err, re.MULTILINE), err
    assert "Traceback" not in err
    kept = seeds(tmp_path)
    assert 0 < len(kept) < 8, "the others were waited for"
    again = done(command)
    assert again.returncode == 0, again.stderr
    assert seeds(tmp_path) == list(range(8))
    assert len(list(tmp_path.rglob("gear-*.json"))) == 8
    assert threads(tmp_path) == {1}
