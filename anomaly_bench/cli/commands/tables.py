"""`anomaly-bench tables`, and the tables and results.csv after a run. Does not import torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from anomaly_bench import files
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_choices
from anomaly_bench.config.settings import FILTER, choices, conf_folder, truth
from anomaly_bench.errors import UsageError, closest, shown
from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.published import TABLES
from anomaly_bench.records import outlines, results_csv
from anomaly_bench.records.setups import OWN_INPUTS, setup_name, setups
from anomaly_bench.tables import query
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.draw import FORMATS, draw
from anomaly_bench.tables.layout import MARKS, load_layout, make_layout
from anomaly_bench.tables.papers import table_sides

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.layout import Layout
    from anomaly_bench.tables.table import Table

AFTER_RUN = ("per_class", "operating", "complexity")
DEVIATION = "±: sample standard deviation over seeds; for means over categories, of that mean."


def write_tables(results: Path, shown: Sequence[Record] = (), cells: Sequence[str] | None = None) -> None:
    """Write results.csv and all tables of a results folder; print those of the setups of some records.

    Args:
        cells: the metrics to print; None: those of each table.
    """
    known, _ = outlines.outlines(results)  # the run has already reported damaged ones
    results_csv.write_csv(known, results)
    here = {setup_name(record) for record in shown}
    layouts = [load_layout(name, [conf_folder() / "table"]) for name in AFTER_RUN]
    printed = []  # print after writing everything: stdout may be closed early
    for part in setups(known):
        chosen = [name for name in cells or () if find_metric(name, (record.metrics for record in part))]
        for layout in layouts:
            if layout.holdout and not part[0].holdout:
                continue
            path, made = results / "tables" / setup_name(part[0]) / layout.name, build_tables(part, layout)
            for kind in ("md", "latex"):
                files.write_atomically(path.with_suffix(f".{FORMATS[kind]}"), draw(made, kind))
            if setup_name(part[0]) in here:
                made = build_tables(part, layout, chosen) if chosen else made
                printed.append(f"{draw(made, 'console', room=line_room(None))}\n")
    if here:
        printed.append(f"records, results.csv and tables (Markdown, LaTeX) are in {results}")
    for text in printed:
        print(text)


def command(arguments: Sequence[str]) -> int:
    return hydra("tables", as_choices(arguments, "cells"), print_tables)


def print_tables(config: Any) -> None:
    """`anomaly-bench tables`: print the selected tables of the selected records, or write them to `out`.

    Raises:
        UsageError: no records; an unknown table, source, format, metric or name; records that cannot share a table.
    """
    layouts = [make_layout(OmegaConf.to_container(node), f"table {name}") for name, node in config.table.items()]
    if truth(config, "deviation"):
        layouts = [with_deviation(layout) for layout in layouts]
    if config["best"] is not None:
        layouts = [with_best(layout, str(config["best"])) for layout in layouts]
    sources = {layout.name: str(config["source"] or default_source(layout)) for layout in layouts}
    options = paper_options(config, set(sources.values()))
    if set(sources.values()) == {"reported"} and config["setup"] is not None:
        raise UsageError(f"setup={config['setup']} has no effect on source=reported, which reads no records")
    if config["only"]["category"] is not None and (papers := [each.name for each in layouts if each.published]):
        raise UsageError(f"category= has no effect on {', '.join(papers)}: a paper's table has the paper's categories")
    known = [] if set(sources.values()) == {"reported"} else query.read_records(config, outlines.outlines)
    made, missing = [], []
    for layout in layouts:
        found, cells = query.choose(known, layout.references() if layout.published else [], config)
        source, mixed = sources[layout.name], truth(config, "allow_mixed")
        metrics = query.name_list(config["cells"])
        made += build_tables(found, layout, metrics, source, references=cells, mixed=mixed, **options)
        missing += how_to_get(layout, found, cells) if source != "reported" else []
    made = titled(of_categories(made, query.name_list(config["only"]["category"])), config)
    color, fit = in_color(config["out"]), str(config["fit"] or "page")
    text = draw(
        made,
        str(config["format"]),
        color=color,
        room=line_room(config["out"]),
        standalone=truth(config, "standalone"),
        fit=fit,
    )
    for line in dict.fromkeys(missing):
        print(shown(line), file=sys.stderr)
    show(text, config["out"])


def default_source(layout: Layout) -> str:
    """Ours beside a paper's table; where our sources lack its values, only ours in its layout."""
    if not layout.published:
        return "measured"
    return "ours_beside" if TABLES[layout.published].printed else "measured"


def paper_options(config: Any, sources: set[str]) -> dict[str, Any]:
    """The options of `build_tables` for papers' tables, and the order of methods.

    Raises:
        UsageError: an unknown value, or one without effect on any of the sources.
    """
    repaired, used = truth(config, "repaired"), ", ".join(sorted(sources))
    for key in ("ours", "empty"):
        if config[key] is not None and "ours_beside" not in sources:
            raise UsageError(f"{key}={config[key]} has no effect on source={used}; expected source=ours_beside")
    if repaired and not sources & {"reported", "ours_beside"}:
        raise UsageError(f"repaired=true has no effect on source={used}; expected source=reported or ours_beside")
    if config["empty"] not in (None, "drop", "dash"):
        raise UsageError(f"empty={config['empty']}: unknown{closest(str(config['empty']), ['drop', 'dash'])}")
    ours, order = query.name_list(config["ours"]), query.name_list(config["only"]["method"]) or ()
    return {"repaired": repaired, "ours": ours, "empty": config["empty"] == "dash", "order": ours or order}


def with_best(layout: Layout, best: str) -> Layout:
    """The layout with another mark of the best.

    Raises:
        UsageError: an unknown one.
    """
    if best not in MARKS:
        raise UsageError(f"best={best}: unknown{closest(best, MARKS)}")
    return replace(layout, best=best)


def titled(made: list[Table], config: Any) -> list[Table]:
    """The tables with the caption and label that the user gives.

    Raises:
        UsageError: either for several tables; what has no effect on the format.
    """
    for key in ("label", "fit"):
        if config[key] is not None and config["format"] != "latex":
            raise UsageError(f"{key}={config[key]} has no effect on format={config['format']}; expected format=latex")
    given: dict[str, Any] = {key: str(config[key]) for key in ("caption", "label") if config[key] is not None}
    if given and len(made) != 1:
        raise UsageError(f"{'= and '.join(given)}= for {len(made)} tables, expected one; choose one, table=NAME")
    return [replace(table, **given) for table in made]


def of_categories(made: list[Table], wanted: Sequence[str] | None) -> list[Table]:
    """The tables with a caption that names the categories they are restricted to: all means are over these."""
    note = f"; of {', '.join(wanted)} only" if wanted else ""
    return [replace(table, caption=table.caption + note) for table in made]


def with_deviation(layout: Layout) -> Layout:
    """The layout with deviations over seeds, except in cells that set `deviation` themselves."""
    return layout if layout.deviation else replace(layout, deviation=True, notes=[*layout.notes, DEVIATION])


def in_color(out: Any) -> bool:
    """Whether to use color codes: output goes to a terminal, and NO_COLOR is unset."""
    return out is None and sys.stdout.isatty() and "NO_COLOR" not in os.environ


def line_room(out: Any) -> int:
    """The terminal's width in characters, or COLUMNS; 0, no limit, for files and pipes."""
    wide = out is None and (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal())
    return shutil.get_terminal_size().columns if wide else 0


def show(text: str, out: Any) -> None:
    """Print text, or write it to the file `out`.

    Raises:
        UsageError: the file cannot be written.
    """
    if out is None:
        print(text, end="")
        return
    path = Path(str(out)).expanduser()
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"out={path}: cannot be written ({error.strerror}); give another file") from error


def how_to_get(layout: Layout, found: list[Record], cells: list[Reference]) -> list[str]:
    """For each method of a paper's table without records, the command to run, or that it is unavailable."""
    if not cells:
        return []
    dataset, here = cells[0].dataset, choices("method", [conf_folder()])
    if dataset not in choices("dataset", [conf_folder()]):
        return [f"{dataset}: not among the datasets of anomaly-bench; only published numbers can be shown"]
    columns = dict.fromkeys((cell.printed_name, cell.method, cell.backbone, cell.variant) for cell in cells)
    lines, missing = [], []
    for name, method, backbone, variant in columns:
        title, names = f"{name} ({variant})" if variant in layout.variants else name, layout.datasets(variant)
        done = [record for record in found if record.dataset in names]
        if method not in here:
            missing.append(title)
        elif not any(record.method == method and backbone in ("", record.backbone) for record in done):
            words = [f"method={method}", *_backbone(method, backbone), *_dataset(names[0], dataset)]
            words += [_overrides(done[0]) if done else f"protocol={_protocol(layout, method)}", "data_root=..."]
            lines.append(f"{title}: no records, dashes; anomaly-bench {' '.join(words)} makes them")
    return lines + ([f"not among the methods of anomaly-bench: {', '.join(missing)}"] if missing else [])


def _dataset(name: str, paper: str) -> list[str]:
    """The overrides of a dataset by its name in records: mvtec3d_rgb_xyz is mvtec3d in the modality rgb+xyz."""
    if not name.startswith(f"{paper}_"):
        return [f"dataset={name}"]
    modality = name.removeprefix(f"{paper}_").replace("_", "+")
    return [f"dataset={paper}", f"dataset.modality={modality}"]


def _protocol(layout: Layout, method: str) -> str:
    """That of the paper's table; if it has no input for a method, that of the method's own paper."""
    protocol = TABLES[layout.published].protocol
    sides = table_sides(protocol)
    return "paper" if sides and method not in sides else protocol


def _backbone(method: str, published: str) -> list[str]:
    """The backbone override; empty for a method without backbone."""
    node = OmegaConf.load(conf_folder() / "method" / f"{method}.yaml")
    return [f"backbone={published or 'NAME'}"] if OmegaConf.select(node, "uses_backbone", default=True) else []


def _overrides(record: Record) -> str:
    """The command-line overrides of a record's setup."""
    regime = record.regime or {"name": "one_class"}
    parts = [f"task={regime['name']}"] if regime["name"] != "one_class" else []
    parts += [f"task.shots={regime['shots']}"] if "shots" in regime else []
    parts += [f"protocol={record.protocol}"]
    named = ("paper", *OWN_INPUTS)
    for name in ("resize", "crop") if record.protocol not in named else ():
        size = record.input[name]
        parts += [f"input.{name}={size[0] if size[0] == size[1] else size}".replace(" ", "")] if size else []
    other = record.protocol not in named and record.input["filter"] != FILTER
    parts += [f"input.filter={record.input['filter']}"] if other else []
    parts += [f"precision={record.precision}"] if record.precision != "fp32" else []
    parts += [f"holdout={record.holdout:g}"] if record.holdout else []
    return " ".join([*parts, *(["oracle=true"] if record.oracle else [])])
