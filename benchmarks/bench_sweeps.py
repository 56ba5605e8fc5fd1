"""Sweeps measured: the throughput of processes beside each other."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MAIN = "from anomaly_bench.cli import main; main()"


def throughput(folder: Path, jobs: int = 8, repeats: int = 3) -> None:
    """Equal jobs by two processes of one thread, by one process of one, and by one of two; medians of sweeps in turn.

    Starting Python, Hydra and torch is in; decoded images are there.
    """
    equal = ["dataset=synthetic", "method=padim", "backbone=lite0", "speed=false", "gallery=0"]
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


SECTIONS: dict[str, Callable[[Path], None]] = {"throughput": throughput}


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
