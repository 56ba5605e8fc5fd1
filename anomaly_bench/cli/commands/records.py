"""`anomaly-bench records`: `convert` older ones, `check` those of others, `merge` folders, print the `schema`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import check_writable, existing_folder
from anomaly_bench.data.dataset import as_path
from anomaly_bench.errors import Exit, UsageError, shorten, shown
from anomaly_bench.records import consistency, merging, outlines, results_csv, schema
from anomaly_bench.runs.conversion import Sources, convert

OUTCOMES = {
    "proven": "migrated, each verified to belong to the files at hand",
    "kept": "migrated with their old fingerprint, as their files are not at hand: tables show them, but a run computes "
    "them again",
    "left": "left unchanged",
}


def command(subject: str, arguments: Sequence[str]) -> int:
    """Run `records SUBJECT`."""
    commands = {"convert": convert_records, "check": check_records, "merge": merge_records, "schema": print_schema}
    return commands[subject](arguments)


def print_schema(words: Sequence[str]) -> int:
    """Print the JSON schema of records.

    Raises:
        UsageError: anything else is given.
    """
    if words:
        raise UsageError(f"records schema {' '.join(words)}: takes nothing else")
    print(json.dumps(schema.record_schema(), indent=1))
    return Exit.DONE


def check_records(words: Sequence[str]) -> int:
    """Print what is wrong with the records of a results folder.

    Raises:
        UsageError: not exactly one folder is given, or it has no records.
    """
    if len(words) != 1 or "=" in words[0]:
        raise UsageError(f"records check {' '.join(words)}: expected records check DIR, a results folder")
    folder = with_records(words[0])
    count, found = consistency.check_records(folder)
    for line in found:
        print(shown(line))
    print(f"{folder}: {count} records, {len(found)} faults")
    return Exit.FAILED if found else Exit.DONE


def merge_records(words: Sequence[str]) -> int:
    """Merge results folders, or name the conflicts and copy nothing.

    Raises:
        UsageError: fewer than two folders, or no `into`, are given, or a folder has no records.
    """
    names = [word for word in words if "=" not in word]
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    if len(names) < 2 or list(keys) != ["into"]:
        raise UsageError(f"records merge {' '.join(words)}: expected records merge A B into=C, three results folders")
    into = Path(keys["into"]).expanduser()
    check_writable(into, f"into={into}")
    new, conflicts = merging.merge([with_records(name) for name in names], into)
    if conflicts:
        for line in conflicts:
            print(shown(line))
        print(f"{len(conflicts)} conflicts; nothing is copied")
        return Exit.FAILED
    results_csv.write_csv(outlines.outlines(into)[0], into)
    print(f"{into}: {new} records added")
    return Exit.DONE


def with_records(word: str) -> Path:
    """A results folder that has records."""
    folder = Path(word).expanduser()
    if not (folder / "records").is_dir():
        raise UsageError(f"{folder}: {'no folder records in it' if folder.is_dir() else 'no such folder'}")
    return folder


def convert_records(arguments: Sequence[str]) -> int:
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
