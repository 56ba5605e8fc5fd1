"""`anomaly-bench records convert results=DIR data_root=DIR`: migrate records of an older version."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import existing_folder
from anomaly_bench.data.dataset import as_path
from anomaly_bench.errors import Exit, shorten
from anomaly_bench.records import outlines, results_csv
from anomaly_bench.runs.conversion import Sources, convert

OUTCOMES = {
    "proven": "migrated, each verified to belong to the files at hand",
    "kept": "migrated with their old fingerprint, as their files are not at hand: tables show them, but a run computes "
    "them again",
    "left": "left unchanged",
}


def command(subject: str, arguments: Sequence[str]) -> int:
    """Convert what needs it, rebuild results.csv, and report what was done.

    Raises:
        UsageError: there is no such folder.
    """
    config = composed_once("records", arguments)
    if config is None:
        return Exit.DONE
    results = existing_folder(config, "results", "a results folder of an older version")
    data_root = as_path(config["data_root"])
    done = convert(results, Sources(data_root, config_folders(arguments)[1:]))
    results_csv.write_csv(outlines.outlines(results)[0], results)
    for kind, listed in done.items():
        if listed:
            print(f"{len(listed)} records {OUTCOMES[kind]}: {shorten(listed)}")
    if not any(done.values()):
        print(f"{results}: nothing to convert")
    return Exit.FAILED if done["left"] else Exit.DONE
