"""Several results folders in one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.records.record import DamagedRecord, Record, load


def merge(folders: Sequence[Path], into: Path) -> tuple[int, list[str]]:
    """Copy the records of several results folders, with what lies beside each, into a new or existing one.

    Returns:
        How many records `into` did not have yet, and what stands in the way, each in one line: then nothing is copied.
    """
    chosen: dict[Path, tuple[Path, Record]] = {}
    conflicts: list[str] = []
    for folder in [into, *folders]:
        for path in sorted((folder / "records").rglob("*.json")):
            try:
                record = load(path)
            except DamagedRecord as error:
                conflicts.append(str(error))
                continue
            known = chosen.setdefault(record.path, (path, record))
            if known[1] != record:
                conflicts.append(f"{known[0]} and {path}: the same run with different content")
    new = {place: path for place, (path, _) in chosen.items() if path != into / place}
    if not conflicts:
        for place, path in new.items():
            target = into / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.with_suffix("").is_dir():
                shutil.copytree(path.with_suffix(""), target.with_suffix(""), dirs_exist_ok=True)
            shutil.copyfile(path, target)
    return len(new), conflicts
