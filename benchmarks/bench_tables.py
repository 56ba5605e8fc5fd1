"""Run time of `anomaly-bench tables` with 10,000 records; the first call reads every file."""

from __future__ import annotations

import dataclasses
import os
import subprocess
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
    for method, backbone, category, seed in product(METHODS, ("lite0", "wrn50"), first.categories, range(17)):
        key = {"method": method, "backbone": backbone, "task": category["name"], "seed": seed}
        titles = {**first.titles, "method": method, "backbone": backbone}
        copy = dataclasses.replace(first, **key, titles=titles, fingerprint=files.digest(key), group=category["group"])
        records.save(copy, folder)
    return len(METHODS) * 2 * len(first.categories) * 17


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ANOMALY_BENCH_CACHE": f"{folder}/cache"}
        print(f"{fill(Path(folder))} records")
        for table in ("padim2020_III", *TABLES):
            words = ["anomaly-bench", "tables", f"table={table}", f"results={folder}", f"out={folder}/table.txt"]
            start = time.perf_counter()
            subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
            print(f"{table:14} {time.perf_counter() - start:5.2f} s")


if __name__ == "__main__":
    main()
