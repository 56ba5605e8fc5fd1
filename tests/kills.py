"""Kill storm: runs that share a results folder are killed at random moments; no record may be lost or computed twice.

    python tests/kills.py --kills 200 [--seed 7]

One worker, in every fourth round two, run the same configuration in the same folder. Each is a fork of this process,
which has imported everything, has composed the configuration and has computed the same tasks once undisturbed, so that
little time passes without work. A kill counts if it falls after the first record and before the last. Some workers get
SIGINT twice, 20 ms apart, or SIGTERM instead.
Then workers are stopped for longer than a lease lasts, the disk fills up (if a disk can be mounted), and the clock
jumps (if libfaketime is there).

After each signal every record that was there is there, unchanged. In the end there is one record of each task with
exactly the scores of the undisturbed run, each task was reported once as computed, and neither a file of unfinished
work nor a lease in force is left.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import make_category

from anomaly_bench import cache, records
from anomaly_bench.cli.main import command
from anomaly_bench.config.compose import compose
from anomaly_bench.runs import leases
from anomaly_bench.runs.runner import execute

QUICK = ["dataset=folder", "input.resize=32", "speed=false", "gallery=0", "threads=1", "device=cpu", "cache=off"]
QUICK += ["method.dimensions=5", "method.levels=[1,2]", "save_maps=true"]
MAIN = "from anomaly_bench.cli.main import main; main()"
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
LEASE = 2.0  # seconds that one lasts here
PATIENCE = 600.0  # seconds, on a busy machine
Contents = dict[Path, bytes]  # of records


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.002)


def state(process: int) -> str:
    """A letter: R or S, T for stopped."""
    return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0]


def found(folder: Path, name: str) -> list[Path]:
    """Files below a folder; none if it is deleted meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return list(folder.rglob(name))
    return []


class Worker:
    """A run in a process of its own."""

    def __init__(self, run: Callable[[], int], screen: Path) -> None:
        self.status: int | None = None
        self.process = os.fork()
        if self.process == 0:
            status = 99
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            with contextlib.suppress(BaseException):
                file = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, 1)
                os.dup2(file, 2)
                status = run()
            os._exit(status)

    def ended(self) -> bool:
        if self.status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if process else None
        return self.status is not None

    def works(self, results: Path) -> bool:
        """Whether it holds a lease that another may take over if this worker stands still."""
        held = (leases.read_lease(path) or {} for path in found(results / "leases", "*.json"))
        return any(each.get("process") == self.process and not each.get("saving") for each in held)

    def stopped(self) -> bool:
        """Whether it stands still, or has ended."""
        return self.ended() or state(self.process) == "T"

    def wait(self) -> int:
        wait_until(self.ended)
        assert self.status is not None
        return self.status

    def send(self, *signals: signal.Signals) -> None:
        for number, each in enumerate(signals):
            time.sleep(0.02 * min(number, 1))
            if not self.ended():
                os.kill(self.process, each)


class Storm:
    def __init__(self, folder: Path, seed: int, tasks: int) -> None:
        self.folder, self.tasks, self.rng = folder, tasks, random.Random(seed)
        self.done: Counter[str] = Counter()
        for number in range(tasks):
            make_category(folder / "data" / f"part{number:02}", train=4, good=2, defects=2, side=32)
        self.words = [*QUICK, f"data_root={folder / 'data'}"]
        self.config = compose("config", self.words)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert command([*self.words, f"results={folder / 'whole'}"]) == 0
        made = sorted(path.stat().st_mtime for path in (folder / "whole" / "records").rglob("*.json"))
        self.pace = float(np.median(np.diff(made)))  # seconds for a task
        self.reference = {record.task: record.images for record in records.load_all(folder / "whole")[0]}
        assert len(self.reference) == tasks
        leases.BEAT, leases.LIFE = LEASE / 10, LEASE
        cache.STANDSTILL = LEASE

    def new_results(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="results-", dir=self.folder))

    def worker(self, results: Path) -> Worker:
        def run() -> int:
            summary = execute({**self.config, "results": str(results)})
            return int(bool(summary.failed or summary.busy))

        return Worker(run, self.folder / "screen.txt")

    @property
    def screen(self) -> str:
        """The last that the workers have printed."""
        return (self.folder / "screen.txt").read_text("utf-8")[-2000:]

    def count(self, results: Path) -> int:
        return sum(1 for _ in (results / "records").rglob("*.json"))

    def look(self, results: Path, before: Contents) -> Contents:
        """The records that are there: all that were there before, unchanged and whole, and perhaps more."""
        now = {path: path.read_bytes() for path in (results / "records").rglob("*.json")}
        assert before.keys() <= now.keys(), f"lost: {before.keys() - now.keys()}"
        changed = [path for path, content in before.items() if now[path] != content]
        assert not changed, f"computed twice: {changed}"
        for path in now.keys() - before.keys():
            records.load(path)
        return now

    def finish(self, results: Path, before: Contents) -> None:
        """Complete what was disturbed, and compare it with the undisturbed run."""
        words = [*self.words, f"results={results}"]
        assert Worker(lambda: command(words), self.folder / "screen.txt").wait() == 0, self.screen
        self.look(results, before)
        made, damaged = records.load_all(results)
        assert not damaged
        assert sorted(record.task for record in made) == sorted(self.reference), "one record for each task"
        for record in made:
            assert record.images == self.reference[record.task], record.task
            maps = np.load(results / record.path.with_suffix("") / "maps.npy")
            assert [float(each.max()) for each in maps] == [image["score"] for image in record.images]
        said = Counter[str]()
        for log in (results / "logs").iterdir():
            said.update(re.findall(r"\] (part\d+): image AUROC", log.read_text("utf-8")))
        assert max(said.values()) == 1, f"computed twice: {said.most_common(3)}"
        held = [path for path in found(results / "leases", "*.json") if leases.is_held(path)]
        left = [path for folder in (".staging", "failed") for path in found(results / folder, "*.*")]
        assert not held + left, held + left
        shutil.rmtree(results)

    def round(self, kills: int) -> None:
        """Kill workers until all tasks are done, or until so many kills have been counted in all."""
        results, seen = self.new_results(), Contents()
        self.done["rounds"] += 1
        workers = [self.worker(results) for _ in range(2 if self.done["rounds"] % 4 == 0 else 1)]
        while len(seen) < self.tasks and self.done["SIGKILL"] < kills:
            place = self.rng.randrange(len(workers))
            self.wait_for_moment(workers[place], results)
            chosen = self.rng.choices(["SIGKILL", "SIGINT twice", "SIGTERM"], [7, 2, 1])[0]
            signals = [getattr(signal, chosen.split()[0])] * (2 if "twice" in chosen else 1)
            alive = not workers[place].ended()
            workers[place].send(*signals)
            workers[place].wait()
            seen = self.look(results, seen)
            self.done[chosen] += alive and 1 <= len(seen) < self.tasks
            workers[place] = self.worker(results)
        for each in workers:
            assert each.wait() == 0, self.screen
        self.finish(results, seen)

    def wait_for_work(self, worker: Worker, results: Path, working: bool = True) -> None:
        """Wait until there is a record and, if wanted, the worker holds a lease; or it has done all."""
        wait_until(lambda: worker.ended() or (self.count(results) > 0 and (not working or worker.works(results))))
        assert worker.status in (None, 0), self.screen

    def wait_for_moment(self, worker: Worker, results: Path) -> None:
        """Wait until a worker is to be killed: before it works, while it works, or as it writes."""
        moment = self.rng.choices(["before", "early", "anywhere", "writing"], [1, 3, 3, 3])[0]
        self.wait_for_work(worker, results, working=moment != "before")
        if moment == "writing":
            wait_until(lambda: worker.ended() or bool(found(results / ".staging", "maps.npy")))
        spans = {"before": self.pace, "early": self.pace / 2, "anywhere": 1.2 * self.pace, "writing": 0.03}
        time.sleep(self.rng.uniform(0, spans[moment]))

    def stop(self) -> None:
        """Stop a worker while it holds a lease, for longer than that lasts: another takes its task over."""
        results = self.new_results()
        first = self.worker(results)
        while True:
            self.wait_for_work(first, results)
            time.sleep(self.rng.uniform(0, self.pace))
            first.send(signal.SIGSTOP)
            wait_until(first.stopped)
            if first.works(results) or first.ended():
                break
            first.send(signal.SIGCONT)
        try:
            assert self.worker(results).wait() == 0
            seen = self.look(results, {})
            self.done["SIGSTOP beyond the lease"] += not first.ended() and len(seen) == self.tasks
        finally:
            first.send(signal.SIGCONT)
        first.wait()
        self.finish(results, seen)

    def fill(self, results: Path) -> None:
        """Fill the disk of these results while a worker is busy."""
        worker = self.worker(results)
        enough = self.rng.randrange(1, self.tasks // 2)
        wait_until(lambda: self.count(results) >= enough or worker.ended())
        with contextlib.suppress(OSError), (results / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        self.done["disk full"] += worker.wait() == 1
        seen = self.look(results, {})
        (results / "ballast").unlink()
        self.finish(results, seen)

    def disk(self) -> None:
        """Mount a small disk for `fill`."""
        folder = Path(tempfile.mkdtemp(prefix="disk-", dir=self.folder))
        words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
            print("no disk could be mounted")
            return
        try:
            (folder / "results").mkdir()
            self.fill(folder / "results")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)

    def jump(self) -> None:
        """Two processes: the clock of one jumps by up to a year, that of the other is wrong all the time.

        libfaketime moves the monotonic clock too, which stands for more than happens; so it only jumps ahead.
        """
        if not FAKETIME:
            print("no libfaketime")
            return
        results, clock = self.new_results(), self.folder / "clock"
        clock.write_text("+0\n")
        faked = {**os.environ, "LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_NO_CACHE": "1"}
        faked |= {"NO_FAKE_STAT": "1", "FAKE_UTIME": "0"}  # the kernel's clock gives files their times
        clocks = [{"FAKETIME_TIMESTAMP_FILE": str(clock)}, {"FAKETIME": self.rng.choice(["-400d", "-2h", "+90d"])}]
        call = [sys.executable, "-c", MAIN, *self.words, f"results={results}"]
        with (self.folder / "screen.txt").open("a") as screen:
            made = [subprocess.Popen(call, env=faked | each, stdout=screen, stderr=screen) for each in clocks]
        for jump in ("+30", "+90", "+1h", "+40d", "+400d"):
            count = self.count(results)
            wait_until(lambda count=count: self.count(results) > count or made[0].poll() is not None)
            clock.write_text(f"{jump}\n")
            self.done["jump of the clock"] += made[0].poll() is None
        wait_until(lambda: all(each.poll() is not None for each in made))
        assert [each.returncode for each in made] == [0, 0], self.screen
        self.finish(results, self.look(results, {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--others", type=int, default=5, help="stops, full disks and runs with a jumping clock")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ.update(ANOMALY_BENCH_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    print(f"seed {chosen.seed}", flush=True)
    storm = Storm(folder, chosen.seed, chosen.tasks)
    while storm.done["SIGKILL"] < chosen.kills:
        storm.round(chosen.kills)
        print(", ".join(f"{name} {count}" for name, count in storm.done.items()), flush=True)
    for _ in range(chosen.others):
        storm.stop()
        storm.disk()
        storm.jump()
    print("no record lost, none twice:", ", ".join(f"{name} {count}" for name, count in storm.done.items()))
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
