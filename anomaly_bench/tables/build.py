"""Records and published numbers -> tables. A pure function of both and a layout.

Records of different setups never share a table unless mixed on purpose; footnotes say what a value leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from anomaly_bench import published
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.records.setups import dataset_title, describe, setup_name, setups
from anomaly_bench.tables.aggregate import beside, mark_places, measured, measured_and_reported, rank, reported
from anomaly_bench.tables.axes import ALL, CORNERS, TableInput, axis_items
from anomaly_bench.tables.footnotes import (
    SHARES,
    UNLIKE,
    cell_notes,
    common_facts,
    general_notes,
    label_shares,
    mark_shares,
    share_methods,
)
from anomaly_bench.tables.table import Cell, Table

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.axes import AxisItem
    from anomaly_bench.tables.footnotes import Matrix
    from anomaly_bench.tables.layout import Layout
    from anomaly_bench.tables.table import CellValue, Header

_T = TypeVar("_T")
TABLE_SOURCES = ("measured", "reported", "ours_beside", "gaps")


def build_tables(
    records: Iterable[Record],
    layout: Layout,
    cells: Sequence[str] | None = None,
    source: str = "measured",
    *,
    references: Sequence[Reference] | None = None,
    mixed: bool = False,
    repaired: bool = False,
    ours: Sequence[str] | None = None,
    empty: bool = False,
    order: Sequence[str] = (),
) -> list[Table]:
    """One table per setup; a single one for a paper's table.

    Args:
        cells: metrics to show instead of the layout's; ignored if the layout has cells as rows or columns.
        source: "measured"; for a paper's table also "reported" (as printed), "ours_beside" (and ours beside it) or
            "gaps" (ours, with the published value and the gap).
        references: published cells of the methods to show; None: all of the paper's.
        mixed: records of different setups share a table and are marked.
        repaired, ours, empty, order: see `TableInput`.

    Raises:
        UsageError: an unknown metric; no record that the layout is for; a source the layout does not have; a paper's
            table with several setups that may not be mixed.
    """
    _check_source(source, layout)
    if layout.published and references is None:
        references = layout.references()
    found = [record for record in records if record.holdout or not layout.holdout]
    if layout.holdout and not found:
        raise UsageError(f"{layout.name}: no record has thresholds from held-out images; run with holdout=0.2")
    found = [record for record in found if record.corrected or not layout.corrected]
    if layout.corrected and not found:
        raise UsageError(
            f"{layout.name}: no record has values under corrected labels; score maps=DIR labels=FILE update=true "
            "computes them"
        )
    _check_ours(ours or (), {record.method for record in found})
    measures = layout.measures(cells, [record.metrics for record in found])
    parts = _parts(found, layout, source, mixed)
    names = [layout.name, *(f"{layout.name}-{number}" for number in range(2, len(parts) + 1))]
    tables = []
    for name, part in zip(names, parts, strict=False):
        thresholds = any(record.holdout for record in part)
        shown = [measure for measure in measures if thresholds or not measure.holdout]
        material = TableInput(layout, shown, part, references or (), source, ours, empty, order, repaired)
        tables.append(_table(material, name, mixed))
    return tables


def _check_source(source: str, layout: Layout) -> None:
    if source == "both":
        raise UsageError(
            "source=both: expected ours_beside (for a paper), or gaps (ours, the published value, the gap)"
        )
    if source not in TABLE_SOURCES:
        raise UsageError(f"source={source}: unknown{closest(source, TABLE_SOURCES)}")
    if source != "measured" and not layout.published:
        raise UsageError(f"source={source}: {layout.name} is not a paper's table; expected source=measured")


def _check_ours(ours: Sequence[str], have: set[str]) -> None:
    for name in ours:
        if name not in have:
            raise UsageError(f"ours={name}: no record of it{closest(name, have)}")


def _parts(records: Sequence[Record], layout: Layout, source: str, mixed: bool) -> list[list[Record]]:
    """The records of each table; a paper's table has one setup for each of its datasets."""
    if source == "reported":
        return [[]]
    if not layout.published:
        return setups(records, mixed)
    datasets = dict.fromkeys(map(layout.datasets, ("", *layout.variants)))
    found = [setups((record for record in records if record.dataset in names), mixed) for names in datasets]
    parts = [part for each in found for part in each]
    if any(len(each) > 1 for each in found):
        kinds = {setup_name(part[0]): f"{describe(part[0])} ({len(part)} records)" for part in parts}
        listed = "; ".join(f"setup={name}: {text}" for name, text in kinds.items())
        one = "one for each dataset; choose them, setup=[A,B]," if layout.variants else "one; choose one,"
        raise UsageError(
            f"{layout.name}: found records of {len(parts)} setups, expected {one} or set "
            f"allow_mixed=true to mix and mark them: {listed}"
        )
    return [[record for part in parts for record in part]]


def _table(material: TableInput, name: str, mixed: bool) -> Table:
    """The table of one setup."""
    layout = material.layout
    axes = {axis: axis_items(axis, material) for axis in (layout.rows, layout.columns)}
    if not axes["methods"]:
        raise UsageError(f"{name}: no published method and no matching record is left; relax the selection")
    matrix = _matrix(axes[layout.rows], axes[layout.columns], material)
    methods_down = layout.rows == "methods"
    across = _turned(matrix) if methods_down else matrix  # [category or cell][method]
    rank(axes["methods"], across, layout.best)
    if "cells" in axes:
        mark_places(material.measures, across)
    if "categories" in axes and material.source == "measured":
        axes["categories"] = label_shares(axes["categories"], across)
    wanted = [item.categories or tuple(material.categories) for item in axes[_other(layout)]]
    told = SHARES if mark_shares(wanted, across, "categories" in axes) else ""
    if told and "categories" not in axes:
        axes["methods"], told = share_methods(axes["methods"], wanted, across), UNLIKE
    common = common_facts(matrix)
    notes, shared = cell_notes(_turned(across), common)
    axes["methods"] = [
        replace(item, head=replace(item.head, notes=tuple(own)))
        for item, own in zip(axes["methods"], shared, strict=True)
    ]
    columns, _ = _without_empty(_column_heads(axes[layout.columns]), ())
    rows, corner = _without_empty([item.head for item in axes[layout.rows]], CORNERS[layout.rows])
    caption = layout.caption.format(
        dataset=_dataset(material),
        setup="several setups" if mixed else describe(material.records[0]) if material.records else "",
        cells=", ".join(measure.title for measure in material.measures),
    )
    caption = caption[:1].upper() + caption[1:] + told
    parts = tuple(measure.title for measure in material.measures) if "cells" not in axes else ("",)
    by_row = zip(matrix, notes if methods_down else _turned(notes), strict=True)
    joined = "" if material.source == "gaps" else layout.joined
    cells = [[Cell(tuple(values), tuple(own), joined) for values, own in zip(*row, strict=True)] for row in by_row]
    general = general_notes(common, material, mixed)
    made = Table(name, caption, corner, columns, rows, cells, parts, general, caption_below=layout.caption_below)
    return made.lettered()


def _other(layout: Layout) -> str:
    """The axis that is not the methods'."""
    return layout.columns if layout.rows == "methods" else layout.rows


def _dataset(material: TableInput) -> str:
    if not material.records:
        return published.TABLES[material.layout.published].dataset
    return dataset_title(material.records[0])


def _turned(table: Sequence[Sequence[_T]]) -> list[list[_T]]:
    return [list(column) for column in zip(*table, strict=True)]


def _column_heads(columns: Sequence[AxisItem]) -> list[Header]:
    """Column headers with the lines above them, padded to equal height."""
    most = max((len(item.over) for item in columns), default=0)
    padded = [item.over + ("",) * (most - len(item.over)) for item in columns]
    return [replace(item.head, labels=(*over, *item.head.labels)) for over, item in zip(padded, columns, strict=True)]


def _matrix(rows: Sequence[AxisItem], columns: Sequence[AxisItem], material: TableInput) -> Matrix:
    """The values of every row and column; all categories or measures where neither axis selects any."""
    averaged = not any(item.categories for item in (*rows, *columns))
    everything = tuple(material.categories)

    def cell(row: AxisItem, column: AxisItem) -> list[CellValue]:
        method, other = (row, column) if material.layout.rows == "methods" else (column, row)
        key, wanted = other.key or ALL, other.categories or everything
        found = []
        for measure in other.measures or material.measures:
            if material.source == "measured":
                found.append(measured(measure, method, wanted, averaged))
            elif material.source == "reported":
                found.append(reported(measure, method, key, material.repaired))
            elif material.source == "ours_beside":
                found.append(beside(measure, method, key, wanted, averaged, material.repaired))
            else:
                found.append(measured_and_reported(measure, method, key, wanted, averaged))
        return found

    return [[cell(row, column) for column in columns] for row in rows]


def _without_empty(heads: Sequence[Header], corner: tuple[str, ...]) -> tuple[list[Header], tuple[str, ...]]:
    """Drop label levels that are empty in every header."""
    kept = [level for level, labels in enumerate(zip(*(head.labels for head in heads), strict=True)) if any(labels)]
    shorter = [replace(head, labels=tuple(head.labels[level] for level in kept)) for head in heads]
    return shorter, tuple(corner[level] for level in kept if corner)
