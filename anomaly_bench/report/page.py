"""`anomaly-bench report`: all records on one self-contained HTML page. Does not import torch.

Records that are not comparable (different dataset, protocol or input) get separate sections. All numbers come from
`tables`, so page and tables agree, footnotes included; figures come from `report.figures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.settings import FILTER
from anomaly_bench.files import safe_cell, write_atomically
from anomaly_bench.metrics.registry import find_metric, own_names, packaged_metrics
from anomaly_bench.records.outlines import outlines_by_file
from anomaly_bench.records.results_csv import csv_row
from anomaly_bench.records.setups import setups
from anomaly_bench.report.conclusion import conclusion
from anomaly_bench.report.figures.plots import heat_shares
from anomaly_bench.report.figures.svg import save_for_print
from anomaly_bench.report.sections import ACCURACIES, Section
from anomaly_bench.report.templating import environment, script
from anomaly_bench.report.traits import TRAITS, traits
from anomaly_bench.report.worst_cases import CASE_TITLES, MOST_SHOWN, at_thresholds, doubts
from anomaly_bench.tables import query
from anomaly_bench.tables.layout import Column
from anomaly_bench.tables.table import DASH

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

LEADING = {"category": "Category", "method": "Method", "backbone": "Backbone"}  # columns of the table of records
NUMBER_COLUMNS = (
    Column("latency_ms", "latency (ms)"),
    Column("fps", "FPS"),
    Column("fit_s", "fit (s)"),
    Column("extra_params", "extra params (M)", scale=1e-6, digits=2),
    Column("stored_mb", "stored (MB)"),
    Column("peak_ram_mb", "peak RAM (MB)", digits=0),
)
TRAILING = {"dataset": "Dataset", "input": "Input", "protocol": "Protocol", **TRAITS, "record": "Record"}


def chosen_records(config: Any) -> tuple[list[Record], dict[tuple[Any, ...], Path]]:
    """The selected records as outlines, and the file of each by its identity.

    Raises:
        UsageError: a results folder without records, or a selected name without records.
    """
    files: dict[tuple[Any, ...], Path] = {}

    def read(folder: Path) -> tuple[list[Record], list[str]]:
        """Outlines: curves and images of 10,000 records take more than a gigabyte."""
        found, damaged = outlines_by_file(folder)
        for path, record in found.items():
            files.setdefault(record.identity, path)
        return list(found.values()), damaged

    return query.choose(query.read_records(config, read), [], config)[0], files


def write_page(config: Any) -> None:
    """Write the page to `out`, and the figures to the folder `figures`, if given.

    Raises:
        UsageError: a results folder without records, or a selected name without records.
    """
    known, files = chosen_records(config)
    folders = query.results_folders(config)
    sections = [Section(f"s{number}", part, folders, files) for number, part in enumerate(setups(known), 1)]
    out = Path(str(config["out"])).expanduser()
    text = render_page(known, sections).encode()
    write_atomically(out, text)
    print(f"{out}: {len(known)} records, {len(text) / 1e6:.1f} MB")
    if config["figures"] is not None:
        folder = Path(str(config["figures"])).expanduser()
        drawn = [drawing for section in sections for drawing in section.drawings()]
        for name, figure in drawn:
            save_for_print(figure, folder / name)
        print(f"{folder}: {len(drawn)} figures, each as SVG and PDF")


@dataclass(frozen=True)
class FilterColumn:
    """A column in the table of records; choices: values to filter by."""

    name: str
    title: str
    number: bool = False
    choices: tuple[str, ...] = ()


def number_columns(known: Sequence[Record]) -> list[Column]:
    """Seed, accuracies, metrics of one's own, speed and cost."""
    entries = [record.metrics for record in known]
    ours = [packaged_metrics()[name] for name in (*ACCURACIES, "image_ap", "pixel_ap")]
    theirs = [metric for name in own_names(entries) if (metric := find_metric(name, entries))]
    accuracies = [Column(each.name, each.title, scale=each.scale, digits=each.digits + 1) for each in (*ours, *theirs)]
    return [Column("seed", "Seed", digits=0), *accuracies, *NUMBER_COLUMNS]


def filter_columns(rows: Sequence[Mapping[str, Any]], numbers: Sequence[Column]) -> list[FilterColumn]:
    """The columns of `table_row`s."""
    filters = (FilterColumn(measure.value, measure.title, number=True) for measure in numbers)
    return [*text_columns(rows, LEADING), *filters, *text_columns(rows, TRAILING)]


def text_columns(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Iterator[FilterColumn]:
    """Columns of text by name; one with a single value, and that of the records, gets no filter."""
    for name, title in titles.items():
        values = sorted({row[name] for row in rows})
        yield FilterColumn(name, title, choices=tuple(values) if len(values) > 1 and name != "record" else ())


def table_row(record: Record, columns: Sequence[Column]) -> dict[str, Any]:
    """A record's cells by column name: text, or (number or None, text); and its `path`."""
    row = csv_row(record, [column.value for column in columns])
    size = " crop ".join(filter(None, (str(row["resize"]), str(row["crop"]))))
    size += f" {row['filter']}" if row["filter"] != FILTER else ""
    numbers = {measure.value: (row[measure.value], printed(measure, row[measure.value])) for measure in columns}
    texts = {name: str(row[name]) for name in ("category", "method", "backbone", "dataset", "protocol")}
    known = {"input": size, "record": row["fingerprint"][:8], "path": record.path.as_posix()}
    return {**numbers, **texts, **traits(record), **known}


def printed(measure: Column, value: float | None) -> str:
    return DASH if value is None else f"{value * measure.scale:.{measure.digits}f}"


def render_page(known: Sequence[Record], sections: Sequence[Section]) -> str:
    """The page's HTML; equal records give equal text."""
    numbers = number_columns(known)
    rows = [table_row(record, numbers) for record in known]
    made = environment()
    return made.get_template("report.html").render(
        **script(made, "records", "panels", "report"),
        columns=filter_columns(rows, numbers),
        rows=rows,
        sections=sections,
        heat_shares=heat_shares,
        numbered=enumerate,
        kinds=CASE_TITLES,
        trait_titles=TRAITS,
        conclusion=conclusion,
        doubts=doubts,
        at_thresholds=at_thresholds,
        most_shown=MOST_SHOWN,
        safe_cell=safe_cell,
    )
