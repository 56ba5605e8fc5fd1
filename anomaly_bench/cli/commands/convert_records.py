"""`anomaly-bench records convert results=DIR data_root=DIR`: records of an older version, carried over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import existing_folder
from anomaly_bench.data.dataset import as_path
from anomaly_bench.errors import DONE, FAILED, shorten
from anomaly_bench.records import outlines, results_csv
from anomaly_bench.runs.conversion import Sources, convert

SAID = {
    "proven": "carried over, each proven to be of the files at hand",
    "kept": "carried over with their old fingerprint, as their files are not at hand: tables show them, a run does not "
    "take them for done",
    "left": "left as they are",
}


def convert_records(config: Any, configs: Sequence[Path]) -> int:
    """Convert what needs it, rebuild results.csv, and say what was done.

    Raises:
        UsageError: there is no such folder.
    """
    results = existing_folder(config, "results", "a results folder of an older version")
    data_root = as_path(config["data_root"])
    done = convert(results, Sources(data_root, configs))
    results_csv.write_csv(outlines.outlines(results)[0], results)
    for kind, listed in done.items():
        if listed:
            print(f"{len(listed)} records {SAID[kind]}: {shorten(listed)}")
    if not any(done.values()):
        print(f"{results}: nothing to convert")
    return FAILED if done["left"] else DONE
