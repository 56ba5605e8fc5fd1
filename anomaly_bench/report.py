"""What is shown of records: results.csv, the tables' files and the tables on the screen. No torch here."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from anomaly_bench import records, tables
from anomaly_bench.config import choices, conf_folder
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.records import Record, legal
from anomaly_bench.renderers import render

if TYPE_CHECKING:
    from anomaly_bench.run import Summary

AFTER_RUN = ("per_class", "complexity")
FORMATS = {"console": "txt", "md": "md", "latex": "tex"}


def write(summary: Summary) -> None:
    """Derive results.csv and all tables from the records of the results folder; print those of this run's setup."""
    results = summary.settings.results
    known, _ = records.load_all(results)  # damaged ones were reported when the run met them
    records.write_csv(known, results)
    here = {setup(record) for record in summary.records}
    layouts = [tables.load_layout(name, [conf_folder() / "table"]) for name in AFTER_RUN]
    for part in tables.setups(known):
        for layout in layouts:
            path = results / "tables" / setup(part[0]) / layout.name
            for kind in ("md", "latex"):
                text = render(part, layout, format=kind)
                records.write_atomically(path.with_suffix(f".{FORMATS[kind]}"), text)
            if setup(part[0]) in here:
                print(render(part, layout), end="\n\n")
    if here:
        print(f"records, results.csv and tables (Markdown, LaTeX) are in {results}")


def setup(record: Record) -> str:
    """A folder name for what one table may compare."""
    parts = [record.dataset, record.protocol, "x".join(map(str, record.input["resize"]))]
    parts += ["crop" + "x".join(map(str, record.input["crop"]))] if record.input["crop"] else []
    parts += [record.precision] if record.precision != "fp32" else []
    return legal("-".join([*parts, *(["oracle"] if record.oracle else [])]))


def print_tables(config: Any) -> None:
    """`anomaly-bench tables`: every wanted table of the wanted records, to the screen or into `out`.

    Raises:
        UsageError: no records, an unknown table, format, metric or name.
    """
    results = Path(str(config["results"])).expanduser()
    found, damaged = records.load_all(results)
    for message in damaged:
        print(f"warning: {message}", file=sys.stderr)
    if not found:
        raise UsageError(f"results={results}: no records there; anomaly-bench results={results} ... makes some")
    if config["format"] not in FORMATS:
        raise UsageError(f"format={config['format']}: unknown{closest(str(config['format']), FORMATS)}")
    for key in ("dataset", "method", "backbone"):
        found = keep(found, key, names(config[key]))
    layouts = [tables.make_layout(OmegaConf.to_container(node), f"table {name}") for name, node in config.table.items()]
    texts = [render(found, layout, names(config["cells"]), config["format"]) for layout in layouts]
    text = "\n\n".join(text.rstrip("\n") for text in texts) + "\n"
    if config["out"] is None:
        print(text, end="")
    else:
        records.write_atomically(Path(str(config["out"])).expanduser(), text)


def keep(found: list[Record], key: str, wanted: list[str] | None) -> list[Record]:
    """The records whose dataset, method or backbone is one of the wanted names; None: all."""
    have = {getattr(record, key) for record in found}
    for name in wanted or []:
        if name not in have:
            raise UsageError(f"{key}={name}: no record of it{closest(name, have)}")
    return [record for record in found if wanted is None or getattr(record, key) in wanted]


def names(value: Any) -> list[str] | None:
    """NAME, [NAME, NAME] or null."""
    return None if value is None else [value] if isinstance(value, str) else [str(name) for name in value]


def print_choices(group: str, folders: Sequence[Path]) -> None:
    """The names of a group, each with the first comment of its YAML."""
    listed = choices(group, folders)
    width = max(map(len, listed), default=0)
    for name in listed:
        path = next(folder / group / f"{name}.yaml" for folder in folders if (folder / group / f"{name}.yaml").exists())
        comments = re.findall(r"^# (?!@package)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        print(f"{name:{width}}  {comments[0] if comments else ''}".rstrip())
