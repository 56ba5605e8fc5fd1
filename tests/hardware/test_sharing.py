"""Locks between jobs on one machine: timing gets its turn and runs alone; locks of killed processes are released."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import time_briefly

from anomaly_bench import records
from anomaly_bench.cache import cache_root
from anomaly_bench.console import Reporter
from anomaly_bench.hardware import devices, sharing, torch_setup

HOLD = """
import contextlib, sys
from anomaly_bench.hardware import sharing
block = {{"computing": sharing.computing, "exclusive": lambda: sharing.exclusive(lambda: print("waits", flush=True)),
         "gpu": lambda: sharing.one_of(["gpu-a"], lambda: print("waits", flush=True))}}["{kind}"]
with block() as had:
    print(had, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def quick(empty_cache, monkeypatch):
    monkeypatch.setattr(sharing, "POLL", 0.01)


class Other:
    """Another process that holds a lock until told to stop, or killed."""

    def __init__(self, kind: str) -> None:
        words = [sys.executable, "-c", HOLD.format(kind=kind)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_jobs_run_in_parallel_and_timing_waits_for_all():
    with Other("exclusive") as timer:
        assert timer.says() == "True"
    with Other("computing") as job, sharing.computing():
        assert job.says() == "None"
        with Other("exclusive") as timer:
            assert timer.says() == "waits"
            job.process.communicate("\n")
            with pytest.raises(subprocess.TimeoutExpired):
                timer.process.wait(0.2)


def test_new_jobs_do_not_starve_timing():
    with Other("computing") as first:
        assert first.says() == "None"
        with Other("exclusive") as timer:
            assert timer.says() == "waits"
            with Other("computing") as second:
                first.process.communicate("\n")
                assert timer.says() == "True", "the second started before it"
                timer.process.communicate("\n")
                assert second.says() == "None"


@pytest.mark.parametrize("kind", ["computing", "exclusive", "gpu"])
def test_locks_of_a_killed_process_are_released(kind):
    with Other(kind) as other:
        other.says()
    with sharing.exclusive(lambda: pytest.fail("waits for a dead process")) as alone:
        assert alone
    with sharing.one_of(["gpu-a"], lambda: pytest.fail("waits for a dead process")) as place:
        assert place == 0


def test_timing_stops_waiting_eventually(monkeypatch):
    monkeypatch.setattr(sharing, "LONGEST_WAIT", 0.05)
    messages = []
    with Other("computing") as job:
        job.says()
        with sharing.exclusive(lambda: messages.append("waits")) as alone:
            assert not alone
    assert messages == ["waits"]


def test_work_continues_without_locks(monkeypatch):
    cache_root().parent.mkdir(exist_ok=True)
    cache_root().write_text("no folder")
    with sharing.computing(), sharing.exclusive(lambda: None) as alone:
        assert not alone
    with sharing.one_of(["gpu-a", "gpu-b"], lambda: None) as place:
        assert place == 0


@pytest.mark.parametrize("busy", [False, True])
def test_speed_records_whether_it_was_timed_alone(busy, tree, tmp_path, command, monkeypatch):
    monkeypatch.setattr(sharing, "LONGEST_WAIT", 0.05)
    time_briefly(monkeypatch)
    words = ["dataset=folder", f"data_root={tree}", f"results={tmp_path / 'results'}", "category=cog"]
    words += ["input.resize=64", "gallery=0", "batch_size=2", "method.dimensions=20"]
    with Other("computing") as job:
        assert job.says() == "None"
        if not busy:
            job.process.communicate("\n")
        status, _, err = command(*words)
    assert status == 0, err
    (record,) = records.load_all(tmp_path / "results")[0]
    assert [entry["alone"] for entry in record.speed] == [not busy]
    assert ("cog: other jobs are running here; timing waits for them" in err) == busy


@pytest.fixture
def two_gpus(monkeypatch):
    """Two mock GPUs in the list of devices."""
    monkeypatch.setattr(devices, "device_kind", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"{index:08}-beef"))


def test_each_job_gets_its_own_gpu_and_the_third_waits(two_gpus, monkeypatch):
    reporter, messages, reported = Reporter(), [], threading.Event()
    monkeypatch.setattr(reporter, "say", lambda line: (messages.append(line), reported.set()))
    with torch_setup.own_device("auto", reporter) as first, torch_setup.own_device("auto", reporter) as second:
        assert (first, second) == ("cuda:0", "cuda:1")
        found, over = [], threading.Event()

        def third() -> None:
            with torch_setup.own_device("auto", reporter) as device:
                found.append(device)
                over.wait()

        waiting = threading.Thread(target=third)
        waiting.start()
        reported.wait()
        with torch_setup.own_device("cuda:1", reporter) as named, torch_setup.own_device("cpu", reporter) as cpu:
            assert (named, cpu) == ("cuda:1", "cpu"), "an explicitly named GPU is not waited for"
        assert not found
        with torch_setup.own_device("cuda", reporter):
            pass
    while not found:
        over.wait(0.01)
    over.set()
    waiting.join()
    assert found[0] in ("cuda:0", "cuda:1")
    assert messages == ["all GPUs of this machine (2) are in use; waiting for one (device=cuda does not wait)"]


def test_each_host_has_its_own_locks(monkeypatch):
    here = sharing.locks()
    monkeypatch.setattr(sharing.platform, "node", lambda: "another host")
    assert isinstance(here, Path)
    assert sharing.locks() != here
    assert sharing.locks().parent == here.parent
