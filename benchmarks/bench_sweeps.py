"""Sweeps measured: processes beside each other, a finished sweep against Hydra's own, a storm of kills."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anomaly_bench import records
from anomaly_bench.config import conf_folder

SMALL = (
    *("dataset=synthetic", "category=gear", "input.resize=32", "speed=false", "gallery=0", "threads=1"),
    *("method.levels=[1,2]", "method.dimensions=5"),
)
MAIN = "from anomaly_bench.cli import main; main()"
EMPTY = """
import hydra, sys
@hydra.main(version_base="1.3", config_path=sys.argv.pop(1), config_name="config")
def nothing(config): pass
nothing()
"""


def call(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def seconds(code: str, *words: str) -> tuple[float, float]:
    """Of a whole process, and until its first line."""
    begin = time.perf_counter()
    process = call(code, *words)
    assert process.stderr is not None
    process.stderr.readline()
    first = time.perf_counter() - begin
    process.stderr.read()
    if process.wait():
        raise SystemExit(f"{' '.join(words)} failed")
    return time.perf_counter() - begin, first


def finished(folder: Path, jobs: int = 100, repeats: int = 3) -> None:
    """A second, fully done sweep against an empty Hydra sweep of the same jobs, in turn."""
    words = ["-m", *SMALL, f"results={folder}", f"seed=range({jobs})"]
    call(MAIN, *words).communicate()
    times = []
    for _ in range(repeats):
        empty, _ = seconds(EMPTY, str(conf_folder()), *words, "hydra/sweeper=basic")
        done, first = seconds(MAIN, *words)
        times.append((done / empty, done, empty, first))
    ratio, done, empty, first = sorted(times)[len(times) // 2]
    print(
        f"finished sweep of {jobs} jobs: {done:.1f} s, empty Hydra sweep {empty:.1f} s: {ratio:.2f} (at most 1.3); "
        f"first line after {first:.1f} s (at most 3)"
    )


def storm(folder: Path, jobs: int = 200, kills: int = 10) -> None:
    """A sweep that is killed at random moments and called again until it is through; then its records are looked at."""
    words = ["-m", *SMALL, f"results={folder}", f"seed=range({jobs})"]
    draw = random.Random(0)
    begin = time.perf_counter()
    for number in range(kills):
        wanted = (number + draw.random()) * jobs / kills / 1.2  # so that each kill finds it at work
        process = call(MAIN, *words)
        while process.poll() is None and len(made(folder)) < wanted:
            time.sleep(0.05)
        time.sleep(draw.random())
        process.kill()
        process.communicate()
    last = call(MAIN, *words)
    _, said = last.communicate()
    found, damaged = records.load_all(folder)
    present = sorted(record.seed for record in found)
    left = [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
    print(
        f"{jobs} jobs, {kills} times kill -9: {len(set(present))} records present, "
        f"{len(present) - len(set(present))} twice, {len(damaged)} damaged, {len(left)} unfinished files left, "
        f"exit status {last.returncode}, {time.perf_counter() - begin:.0f} s"
    )
    if last.returncode or present != list(range(jobs)) or damaged:
        raise SystemExit(said)


def made(folder: Path) -> list[Path]:
    return list((folder / "records").rglob("*.json"))


def throughput(folder: Path, jobs: int = 8, repeats: int = 3) -> None:
    """Equal jobs by two processes of one thread, by one process of one, and by one of two; medians of sweeps in turn.

    Starting Python, Hydra and torch is in; decoded images are there.
    """
    equal = ["category=[gear,biscuit]", "method=padim", "backbone=lite0", "speed=false", "gallery=0"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    ways = {"2 processes of 1 thread": joblib, "1 process of 1 thread": ["threads=1"], "1 of 2 threads": ["threads=2"]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, repeats):  # the first one decodes
        for name, words in ways.items():
            results = folder / f"{name} {number}"
            seeds = f"seed=range({jobs if number >= 0 else 1})"
            begin = time.perf_counter()
            command = [sys.executable, "-c", MAIN, "-m", *equal, *words, seeds, f"results='{results}'"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if number >= 0:
                times[name].append(time.perf_counter() - begin)
    medians = {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    print(f"{jobs} equal jobs: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items()))
    two, one, wide = medians.values()
    print(f"throughput of two processes: {one / two:.2f} of one thread (at least 1.7), {wide / two:.2f} of two threads")


SECTIONS: dict[str, Callable[[Path], None]] = {"throughput": throughput, "finished": finished, "storm": storm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all where none is given")
    arguments = parser.parse_args()
    for name in arguments.sections or SECTIONS:
        folder = Path(tempfile.mkdtemp(prefix="anomaly-bench-"))
        os.environ["ANOMALY_BENCH_CACHE"] = str(folder / "cache")
        try:
            SECTIONS[name](folder / "results")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
