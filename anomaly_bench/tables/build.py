"""Tables: records and published numbers -> grid. A pure function of both and a layout.

Records of unlike setups never share a grid unless they are mixed on purpose, and what a value leaves out stands in a
footnote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from anomaly_bench import published
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.records.setups import all_categories, describe, setup_name, setups
from anomaly_bench.tables.aggregate import measured, rank, reported, with_published
from anomaly_bench.tables.axes import ALL, CORNERS, TableInput, lines
from anomaly_bench.tables.footnotes import _common_facts, _general_notes, _label_shares, _lettered, _noted, _notes
from anomaly_bench.tables.table import Cell, Grid

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.aggregate import Found
    from anomaly_bench.tables.axes import AxisItem
    from anomaly_bench.tables.footnotes import Matrix
    from anomaly_bench.tables.layout import Layout
    from anomaly_bench.tables.table import Header

T = TypeVar("T")
SOURCES = ("measured", "reported", "both")


def grids(
    records: Iterable[Record],
    layout: Layout,
    cells: Sequence[str] | None = None,
    source: str = "measured",
    *,
    references: Sequence[Reference] | None = None,
    mixed: bool = False,
) -> list[Grid]:
    """One grid for each setup of the records; of a paper's table a single one.

    Args:
        cells: metrics to show instead of the layout's, where these are a tuple; where they are rows or columns
            the layout's stay.
        source: "measured"; of a paper's table also "reported" (as printed) or "both" (with the gap).
        references: published cells of the methods to show, instead of the whole paper's.
        mixed: records of unlike setups share a grid and are marked.

    Raises:
        UsageError: a metric that is not known and in no record; a source that the layout does not have; a paper's
            table of several setups that are not to be mixed.
    """
    if source not in SOURCES:
        raise UsageError(f"source={source}: unknown{closest(source, SOURCES)}")
    if source != "measured" and not layout.published:
        raise UsageError(f"source={source}: {layout.name} is no paper's table; expected source=measured")
    if layout.published and references is None:
        references = published.load(layout.published)
    found = list(records)
    measures = layout.measures(cells, {name for record in found for name in record.metrics})
    parts = _parts(found, layout, source, mixed)
    names = [layout.name, *(f"{layout.name}-{number}" for number in range(2, len(parts) + 1))]
    return [
        _grid(TableInput(layout, measures, part, references or (), source), name, mixed)
        for name, part in zip(names, parts, strict=False)
    ]


def _parts(records: Sequence[Record], layout: Layout, source: str, mixed: bool) -> list[list[Record]]:
    """The records of each grid."""
    if source == "reported":
        return [[]]
    if layout.published:
        records = [record for record in records if record.dataset == published.TABLES[layout.published].dataset]
    parts = setups(records, mixed)
    if layout.published and len(parts) > 1:
        kinds = {setup_name(part[0]): f"{describe(part[0])} ({len(part)} records)" for part in parts}
        listed = "; ".join(f"setup={name}: {text}" for name, text in kinds.items())
        raise UsageError(
            f"{layout.name}: found records of {len(parts)} setups, expected one; choose it, or let allow_mixed=true "
            f"mark them: {listed}"
        )
    return parts or ([[]] if layout.published else [])


def _grid(material: TableInput, name: str, mixed: bool) -> Grid:
    """The table of one setup."""
    layout = material.layout
    axes = {axis: lines(axis, material) for axis in (layout.rows, layout.columns)}
    if not axes["methods"]:
        raise UsageError(f"{name}: no published method and no record with its numbers is left; name fewer of them")
    matrix = _matrix(axes[layout.rows], axes[layout.columns], material)
    methods_down = layout.rows == "methods"
    across = _turned(matrix) if methods_down else matrix  # [category or cell][method]
    rank(axes["methods"], across, layout.second)
    if "categories" in axes and material.source == "measured":
        axes["categories"] = _label_shares(axes["categories"], across)
    common = _common_facts(matrix)
    notes, shared = _notes(_turned(across), common)
    axes["methods"] = [_noted(line, own) for line, own in zip(axes["methods"], shared, strict=True)]
    columns, _ = _without_empty(_column_heads(axes[layout.columns]), ())
    rows, corner = _without_empty([line.head for line in axes[layout.rows]], CORNERS[layout.rows])
    caption = layout.caption.format(
        dataset=_dataset(material),
        setup="several setups" if mixed else describe(material.records[0]) if material.records else "",
        cells=", ".join(measure.title for measure in material.measures),
    )
    parts = tuple(measure.title for measure in material.measures) if "cells" not in axes else ("",)
    cells = _cells(matrix, notes if methods_down else _turned(notes))
    general = _general_notes(common, material, mixed)
    return _lettered(Grid(name, caption, corner, columns, rows, cells, parts, general))


def _dataset(material: TableInput) -> str:
    if not material.records:
        return published.TABLES[material.layout.published].dataset
    record = material.records[0]
    return record.titles.get("dataset") or record.dataset


def _turned(table: Sequence[Sequence[T]]) -> list[list[T]]:
    return [list(column) for column in zip(*table, strict=True)]


def _column_heads(columns: Sequence[AxisItem]) -> list[Header]:
    """With the headers that stand above, each column as many."""
    most = max((len(line.over) for line in columns), default=0)
    padded = [line.over + ("",) * (most - len(line.over)) for line in columns]
    return [replace(line.head, labels=(*over, *line.head.labels)) for over, line in zip(padded, columns, strict=True)]


def _cells(matrix: Matrix, notes: Sequence[Sequence[list[str]]]) -> list[list[Cell]]:
    return [
        [Cell(tuple(each.value for each in found), tuple(own)) for found, own in zip(row, row_notes, strict=True)]
        for row, row_notes in zip(matrix, notes, strict=True)
    ]


def _matrix(rows: Sequence[AxisItem], columns: Sequence[AxisItem], material: TableInput) -> Matrix:
    """The values of every row and column; what neither picks is all categories, or all measures."""
    averaged = not any(line.categories for line in (*rows, *columns))
    everything = tuple(all_categories(material.records))

    def cell(row: AxisItem, column: AxisItem) -> list[Found]:
        method, other = (row, column) if material.layout.rows == "methods" else (column, row)
        key, wanted = other.key or ALL, other.categories or everything
        found = []
        for measure in other.measures or material.measures:
            if material.source == "measured":
                found.append(measured(measure, method, wanted, averaged))
            elif material.source == "reported":
                found.append(reported(measure, method, key))
            else:
                found.append(with_published(measure, method, key, wanted, averaged))
        return found

    return [[cell(row, column) for column in columns] for row in rows]


def _without_empty(heads: Sequence[Header], corner: tuple[str, ...]) -> tuple[list[Header], tuple[str, ...]]:
    """Drop the label levels that are empty in every head."""
    kept = [level for level, labels in enumerate(zip(*(head.labels for head in heads), strict=True)) if any(labels)]
    shorter = [replace(head, labels=tuple(head.labels[level] for level in kept)) for head in heads]
    return shorter, tuple(corner[level] for level in kept if corner)
