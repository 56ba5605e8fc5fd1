"""Run time of `anomaly-bench tables` and `report` with 10,000 records; the first call reads every file.

Of the report also its size and the peak memory of its process, which may be at most 25 MB and 600 MB. Then that of
`leaderboard` with 10 categories of 50 methods: at most 30 s and 30 MB. `--leaderboard` measures this alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from anomaly_bench import files, records

ROOT = Path(__file__).parents[1]
TABLES = ("padim2020_III", "zheng2022_3", "per_class", "complexity", "summary")
METHODS = ("padim", "patchcore", "spade", *(f"method_{number}" for number in range(17)))


def fill(folder: Path, methods: Sequence[str], backbones: Sequence[str], categories: int, seeds: int) -> int:
    """Copies of one committed record."""
    first = next(record for record in records.load_all(ROOT / "results")[0] if record.speed)
    content = dataclasses.asdict(first)
    runs = list(product(methods, backbones, first.categories[:categories], range(seeds)))
    for method, backbone, category, seed in runs:
        key = {"method": method, "backbone": backbone, "task": category["name"], "seed": seed}
        titles = {**first.titles, "method": method, "backbone": backbone}
        changed = {**key, "titles": titles, "fingerprint": files.digest(key), "group": category["group"]}
        path = folder / dataclasses.replace(first, **changed).path
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = content | changed
        path.write_text(json.dumps({**copy, "checksum": files.digest(copy)}))  # quicker than `records.save`
    return len(runs)


def leaderboard(folder: Path) -> None:
    count = fill(folder / "board", [f"method_{number}" for number in range(50)], ["lite0"], 10, 1)
    words = ["anomaly-bench", "leaderboard", f"results={folder / 'board'}", f"out={folder / 'site'}"]
    start = time.perf_counter()
    process = subprocess.Popen(words, env={**os.environ, "ANOMALY_BENCH_CACHE": f"{folder}/cache"})
    used = os.wait4(process.pid, 0)[2]
    seconds, size = time.perf_counter() - start, sum(path.stat().st_size for path in (folder / "site").rglob("*.*"))
    print(f"leaderboard of {count} records: {seconds:.1f} s ({used.ru_utime:.1f} s of CPU), {size / 1e6:.1f} MB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        leaderboard(Path(folder))
    if "--leaderboard" in sys.argv:
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ANOMALY_BENCH_CACHE": f"{folder}/cache"}
        print(f"{fill(Path(folder), METHODS, ('lite0', 'wrn50'), 15, 17)} records")
        for table in ("padim2020_III", *TABLES):
            words = ["anomaly-bench", "tables", f"table={table}", f"results={folder}", f"out={folder}/table.txt"]
            start = time.perf_counter()
            subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
            print(f"{table:14} {time.perf_counter() - start:5.2f} s", flush=True)
        start, page = time.perf_counter(), Path(folder, "report.html")
        words = ["anomaly-bench", "report", f"results={folder}", f"out={page}"]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        used = os.wait4(process.pid, 0)[2]  # of this process alone
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        seconds, size = time.perf_counter() - start, page.stat().st_size / 1e6
        print(f"{'report':14} {seconds:5.2f} s, {size:.1f} MB, at most {peak:.0f} MB of memory")


if __name__ == "__main__":
    main()
