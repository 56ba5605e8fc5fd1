"""Records without what tables do not read, kept in the cache so that thousands of them are read quickly."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from anomaly_bench.cache import cache_root
from anomaly_bench.files import digest, write_atomically
from anomaly_bench.records.record import SCHEMA, DamagedRecord, Record, load

UNREAD = {"curves": dict, "images": list, "provenance": dict}  # by tables, and 3/4 of a file
SHARED = ("categories", "titles", "input", "config")  # alike in many records


def outlines(results: Path) -> tuple[list[Record], list[str]]:
    """As `load_all` without what tables do not read (`UNREAD`, and the samples of speeds).

    What a file says is kept in the user's cache by its size and time of change, so that 10,000 records need no 10 s.
    """
    kept_in = cache_root() / "outlines" / f"{digest(str(results.resolve()))[:16]}.json"
    version = [SCHEMA, *(entry.name for entry in fields(Record))]
    kept: dict[str, Any] = {"version": version, "shared": [], "files": {}}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not what we write
        read = json.loads(kept_in.read_bytes())
        kept = read if read["version"] == version and read.keys() == kept.keys() else kept
    files: dict[str, list[Any]] = {}
    shared = {json.dumps(value): place for place, value in enumerate(kept["shared"])}
    damaged: list[str] = []
    for name in sorted(_files(results / "records")):
        stat = os.stat(name)
        stamp = [stat.st_size, stat.st_mtime_ns]
        try:
            known = kept["files"].get(name)
            files[name] = known if known and known[0] == stamp else [stamp, _outline(load(Path(name)), shared)]
        except DamagedRecord as error:
            damaged.append(str(error))
    values = [json.loads(text) for text in shared]
    if files != kept["files"]:
        with contextlib.suppress(OSError):  # without it the next call takes longer
            write_atomically(kept_in, json.dumps({**kept, "shared": values, "files": files}, separators=(",", ":")))
    empty = {name: type_() for name, type_ in UNREAD.items()}
    made = [
        Record(**{**content, **{name: values[content[name]] for name in SHARED}, **empty})
        for _, content in files.values()
    ]
    return made, damaged


def _files(folder: Path) -> Iterator[str]:
    """Paths of the JSON files below a folder; as text, which is quicker by far than `Path.rglob`."""
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if name.endswith(".json"))


def _outline(record: Record, shared: dict[str, int]) -> dict[str, Any]:
    """The record's fields but `UNREAD`; for those that many records have alike their place in `shared`."""
    speed = [{name: value for name, value in entry.items() if not isinstance(value, list)} for entry in record.speed]
    content = {entry.name: getattr(record, entry.name) for entry in fields(Record) if entry.name not in UNREAD}
    places = {name: shared.setdefault(json.dumps(content[name]), len(shared)) for name in SHARED}
    return {**content, "speed": speed, **places}
