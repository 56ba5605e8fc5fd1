"""Run time of `anomaly-bench tables` and `report` with 10,000 records; the first call reads every file.

Of the report also its size and the peak memory of its process, which may be at most 25 MB and 600 MB.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from anomaly_bench import files, records

ROOT = Path(__file__).parents[1]
TABLES = ("padim2020_III", "zheng2022_3", "per_class", "complexity", "summary")
METHODS = ("padim", "patchcore", "spade", *(f"method_{number}" for number in range(17)))


def fill(folder: Path) -> int:
    """Copies of one committed record: 20 methods, 2 backbones, 15 categories, 17 seeds."""
    first = next(record for record in records.load_all(ROOT / "results")[0] if record.speed)
    content = dataclasses.asdict(first)
    for method, backbone, category, seed in product(METHODS, ("lite0", "wrn50"), first.categories, range(17)):
        key = {"method": method, "backbone": backbone, "task": category["name"], "seed": seed}
        titles = {**first.titles, "method": method, "backbone": backbone}
        changed = {**key, "titles": titles, "fingerprint": files.digest(key), "group": category["group"]}
        path = folder / dataclasses.replace(first, **changed).path
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = content | changed
        path.write_text(json.dumps({**copy, "checksum": files.digest(copy)}))  # quicker than `records.save`
    return len(METHODS) * 2 * len(first.categories) * 17


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ANOMALY_BENCH_CACHE": f"{folder}/cache"}
        print(f"{fill(Path(folder))} records")
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
