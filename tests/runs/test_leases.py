"""Leases: one owner at a time; they expire without a heartbeat or with a dead process, never for a live one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from anomaly_bench.runs import leases

CLAIM = """
import sys
from pathlib import Path
from anomaly_bench.runs import leases
with leases.claim(Path(sys.argv[1]), "work") as ours:
    print(ours.ours, flush=True)
    sys.stdin.read()
"""


def other(results) -> subprocess.Popen:
    """A process that tries to claim a lease, reports the outcome, and holds it until its stdin closes."""
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, results], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def write(results, **changes) -> None:
    (results / "leases").mkdir(exist_ok=True)
    (results / "leases" / "work.json").write_text(json.dumps({**leases.owner(), **changes}))


def test_lease_belongs_to_one_process_and_ends_with_the_work(tmp_path):
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours
        second = other(tmp_path)
        assert second.communicate("")[0] == "False\n"
        with leases.claim(tmp_path, "other work") as too:
            assert too.ours
    assert not (tmp_path / "leases").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a dead process's lease has to run out")
def test_killed_process_holds_no_lease(tmp_path):
    first = other(tmp_path)
    assert first.stdout.readline() == "True\n"
    with leases.claim(tmp_path, "work") as ours:
        assert not ours.ours
    first.kill()
    first.wait()
    assert (tmp_path / "leases" / "work.json").exists()
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours


@pytest.mark.parametrize(("age", "free"), [(30, False), (59, False), (61, True), (4000, True)])
def test_lease_of_another_machine_expires_without_heartbeat(tmp_path, age, free):
    write(tmp_path, host="elsewhere", process=1)
    path = tmp_path / "leases" / "work.json"
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours == free
    assert path.exists() != free


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="start times are read from /proc")
def test_reused_process_id_is_another_process(tmp_path):
    write(tmp_path, started="1")
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours


def test_heartbeat_keeps_a_lease_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with leases.claim(tmp_path, "work"):
        path = tmp_path / "leases" / "work.json"
        os.utime(path, (1, 1))
        beaten = threading.Event()
        while path.stat().st_mtime == 1:
            beaten.wait(0.005)


def test_lease_taken_over_is_left_to_its_new_owner(tmp_path):
    path = tmp_path / "leases" / "work.json"
    with leases.claim(tmp_path, "work") as ours:
        with ours.kept() as still:
            assert still
            os.utime(path, (1, 1))
            second = other(tmp_path)  # nobody can claim it meanwhile, nor has to wait
            assert second.communicate("")[0] == "False\n"
        write(tmp_path, host="elsewhere")
        with ours.kept() as still:
            assert not still
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize(("age", "free"), [(61, False), (599, False), (601, True)])
def test_a_lease_of_another_machine_that_saves_lasts_longer(tmp_path, age, free):
    write(tmp_path, host="elsewhere", process=1, saving=True)
    path = tmp_path / "leases" / "work.json"
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours == free


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file")
def test_the_lock_of_a_stopped_process_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LIFE", 0.2)
    held, over = threading.Event(), threading.Event()

    def stopped() -> None:
        with leases.locked(tmp_path):
            held.set()
            over.wait()

    def waiting() -> None:
        with leases.locked(tmp_path):
            pass

    thread = threading.Thread(target=stopped)
    thread.start()
    held.wait()
    with leases.locked(tmp_path):
        second = threading.Thread(target=waiting)
        second.start()
        second.join(0.1)
        assert second.is_alive()  # the new lock is one
    over.set()
    thread.join()
    second.join()


def test_truncated_lease_has_no_owner(tmp_path):
    write(tmp_path)
    (tmp_path / "leases" / "work.json").write_text("{")
    with leases.claim(tmp_path, "work") as ours:
        assert ours.ours


def test_one_of_many_concurrent_claims_is_granted(tmp_path):
    granted, begin, over = [], threading.Barrier(8), threading.Barrier(8)

    def work() -> None:
        begin.wait()
        with leases.claim(tmp_path, "work") as ours:
            granted.append(ours.ours)
            over.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == [False] * 7 + [True]
