"""Records without the fields that tables do not read, cached so that thousands of them load quickly."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from anomaly_bench.cache import cache_root
from anomaly_bench.documents import decode, encode
from anomaly_bench.files import digest, write_atomically
from anomaly_bench.records.record import SCHEMA, DamagedRecord, Record, load

UNREAD = {
    "curves": dict,
    "images": list,
    "provenance": dict,
    "held_out": list,
    "findings": dict,
}  # not read by tables; 3/4 of a file
SHARED = ("categories", "titles", "input", "config")  # equal in many records


def outlines(results: Path) -> tuple[list[Record], list[str]]:
    """Like `load_all`, without what tables do not read (`UNREAD`, learning curves, and the speed samples)."""
    found, damaged = outlines_by_file(results)
    return list(found.values()), damaged


def outlines_by_file(results: Path) -> tuple[dict[Path, Record], list[str]]:
    """`outlines`, each with its file.

    Contents are cached by file size, times and inode: reading 10,000 records would take 6 s.
    """
    kept_in = cache_root() / "outlines" / f"{digest(str(results.resolve()))[:16]}.json"
    version = [SCHEMA, *(entry.name for entry in fields(Record))]
    kept: dict[str, Any] = {"version": version, "shared": [], "files": {}}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # a foreign or damaged file
        read = decode(kept_in.read_bytes())
        kept = read if read["version"] == version and read.keys() == kept.keys() else kept
    files: dict[str, list[Any]] = {}
    shared = {encode(value): place for place, value in enumerate(kept["shared"])}
    damaged: list[str] = []
    for name in sorted(_files(results / "records")):
        try:
            stat = os.lstat(name)
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
            known = kept["files"].get(name)
            files[name] = known if known and known[0] == stamp else [stamp, _outline(load(Path(name)), shared)]
        except (DamagedRecord, OSError) as error:
            damaged.append(str(error))
    values = [decode(text) for text in shared]
    if files != kept["files"]:
        with contextlib.suppress(OSError):  # the next call will just take longer
            write_atomically(kept_in, encode({**kept, "shared": values, "files": files}))
    empty = {name: type_() for name, type_ in UNREAD.items()}
    found = {
        Path(name): Record(**{**content, **{part: values[content[part]] for part in SHARED}, **empty})
        for name, (_, content) in files.items()
    }
    return found, damaged


def _files(folder: Path) -> Iterator[str]:
    """Whatever is called .json below a folder, as text, which is much faster than `Path.rglob`."""
    for root, folders, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in (*folders, *names) if name.endswith(".json"))


def _outline(record: Record, shared: dict[bytes, int]) -> dict[str, Any]:
    """The record's fields without `UNREAD`; `SHARED` ones are replaced by their index in `shared`."""
    speed = [{name: value for name, value in entry.items() if not isinstance(value, list)} for entry in record.speed]
    content = {entry.name: getattr(record, entry.name) for entry in fields(Record) if entry.name not in UNREAD}
    content["training"] = record.training and {**record.training, "curve": None}
    places = {name: shared.setdefault(encode(content[name]), len(shared)) for name in SHARED}
    return {**content, "speed": speed, **places}
