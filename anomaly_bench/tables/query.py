"""Select the records and published cells of a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import UsageError, closest, shown
from anomaly_bench.files import composed
from anomaly_bench.records.setups import setup_name, setups

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record


def results_folders(config: Mapping[str, Any], key: str = "results") -> list[Path]:
    """The results folders named by a key of the configuration."""
    found = [Path(name).expanduser() for name in name_list(config[key]) or () if name]
    if not found:
        raise UsageError(f"{key}={'' if config[key] is None else config[key]}: expected a folder, or [A,B]")
    return found


def read_records(
    config: Mapping[str, Any], read: Callable[[Path], tuple[list[Record], list[str]]], key: str = "results"
) -> list[Record]:
    """All records in a key's results folders; duplicates are merged, with the speeds of both.

    Raises:
        UsageError: a folder without records.
    """
    found: dict[tuple[Any, ...], Record] = {}
    for folder in results_folders(config, key):
        part, damaged = read(folder)
        for message in damaged:
            print(f"warning: {shown(message)}", file=sys.stderr)
        if not part:
            raise UsageError(f"{key}={folder}: no records there; anomaly-bench results={folder} ... makes some")
        for record in part:
            same = found.setdefault(record.identity, record)
            same.speed += [entry for entry in record.speed if entry not in same.speed]
    return list(found.values())


def choose(
    known: list[Record], cells: list[Reference], config: Mapping[str, Any]
) -> tuple[list[Record], list[Reference]]:
    """The records and published cells selected by `only` and `setup`; `only.category` selects records.

    Raises:
        UsageError: a name without records.
    """
    for key in ("dataset", "method", "backbone"):
        chosen = name_list(config["only"][key])
        have = {getattr(each, key) for each in (*known, *cells)} - {""}
        for name in chosen or ():
            if name not in have:
                raise UsageError(f"{key}={name}: no record of it{closest(name, have)}")
        known = [record for record in known if chosen is None or getattr(record, key) in chosen]
        cells = [cell for cell in cells if chosen is None or getattr(cell, key) in ("", *chosen)]
    if (listed := name_list(config["only"]["category"])) is not None:
        known = in_categories(known, listed)
    wanted = name_list(config["setup"])
    if wanted is not None:
        parts = {setup_name(part[0]): part for part in setups(known)}
        for name in wanted:
            if name not in parts:
                raise UsageError(f"setup={name}: no record of it{closest(name, parts)}")
        known = [record for name in wanted for record in parts[name]]
    return known, cells


def in_categories(known: Sequence[Record], wanted: Sequence[str]) -> list[Record]:
    """The records of some categories, or groups of them, as if the dataset had only these, in the order given.

    Raises:
        UsageError: a name without records.
    """
    groups: dict[str, dict[str, None]] = {}  # name of a category or group -> its categories, in order
    for each in (each for record in known for each in record.categories):
        for name in filter(None, (each["name"], each.get("group"))):
            groups.setdefault(composed(name), {})[each["name"]] = None
    for record in known:
        groups.setdefault(composed(record.category), {})[record.category] = None
    have = {record.category for record in known}
    for name in wanted:
        if not have & groups.get(name, {}).keys():
            raise UsageError(f"category={name}: no record of it{closest(name, have)}")
    chosen = list(dict.fromkeys(category for name in wanted for category in groups[name]))
    order = [{"name": name, "group": None} for name in chosen]
    return [replace(record, categories=order) for record in known if record.category in chosen]


def name_list(value: Any) -> list[str] | None:
    """NAME, [NAME, NAME] or null."""
    return None if value is None else [composed(str(name)) for name in ([value] if isinstance(value, str) else value)]
