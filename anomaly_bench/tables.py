"""Tables: records and published numbers -> grid. A pure function of both and a layout.

Records of unlike setups never share a grid unless they are mixed on purpose, and what a value leaves out stands in a
footnote.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from anomaly_bench import references as published
from anomaly_bench.axes import ALL, CORNERS, Line, Material, lines
from anomaly_bench.entries import all_categories, describe, setup_name, setups
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.grid import Cell, Grid, Head
from anomaly_bench.layouts import Layout
from anomaly_bench.published import DIFFERENCES, is_repaired
from anomaly_bench.values import Found, beside, measured, rank, reported

if TYPE_CHECKING:
    from anomaly_bench.records import Record
    from anomaly_bench.references import Reference

T = TypeVar("T")
GAP = "The gap is a comparison only where backbone, input and categories are those of the paper."
MARKS = "The best are chosen by the repaired values."
SOURCES = ("measured", "reported", "both")
# in this order below a table
FACTS = ("setup", "count", "seeds", "speed", "alone", "cost", "extraction", "metric", *DIFFERENCES)


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
        _grid(Material(layout, measures, part, references or (), source), name, mixed)
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


# ------------------------------------------------------------------------------------------------- assembling

Matrix = list[list[list[Found]]]  # [row][column][value of the tuple]


def _grid(material: Material, name: str, mixed: bool) -> Grid:
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


def _dataset(material: Material) -> str:
    if not material.records:
        return published.TABLES[material.layout.published].dataset
    record = material.records[0]
    return record.titles.get("dataset") or record.dataset


def _turned(table: Sequence[Sequence[T]]) -> list[list[T]]:
    return [list(column) for column in zip(*table, strict=True)]


def _column_heads(columns: Sequence[Line]) -> list[Head]:
    """With the headers that stand above, each column as many."""
    most = max((len(line.over) for line in columns), default=0)
    padded = [line.over + ("",) * (most - len(line.over)) for line in columns]
    return [replace(line.head, labels=(*over, *line.head.labels)) for over, line in zip(padded, columns, strict=True)]


def _cells(matrix: Matrix, notes: Sequence[Sequence[list[str]]]) -> list[list[Cell]]:
    return [
        [Cell(tuple(each.value for each in found), tuple(own)) for found, own in zip(row, row_notes, strict=True)]
        for row, row_notes in zip(matrix, notes, strict=True)
    ]


def _matrix(rows: Sequence[Line], columns: Sequence[Line], material: Material) -> Matrix:
    """The values of every row and column; what neither picks is all categories, or all measures."""
    averaged = not any(line.categories for line in (*rows, *columns))
    everything = tuple(all_categories(material.records))

    def cell(row: Line, column: Line) -> list[Found]:
        method, other = (row, column) if material.layout.rows == "methods" else (column, row)
        key, wanted = other.key or ALL, other.categories or everything
        found = []
        for measure in other.measures or material.measures:
            if material.source == "measured":
                found.append(measured(measure, method, wanted, averaged))
            elif material.source == "reported":
                found.append(reported(measure, method, key))
            else:
                found.append(beside(measure, method, key, wanted, averaged))
        return found

    return [[cell(row, column) for column in columns] for row in rows]


def _without_empty(heads: Sequence[Head], corner: tuple[str, ...]) -> tuple[list[Head], tuple[str, ...]]:
    """Drop the label levels that are empty in every head."""
    kept = [level for level, labels in enumerate(zip(*(head.labels for head in heads), strict=True)) if any(labels)]
    shorter = [replace(head, labels=tuple(head.labels[level] for level in kept)) for head in heads]
    return shorter, tuple(corner[level] for level in kept if corner)


# ------------------------------------------------------------------------------------------------- footnotes


def _label_shares(categories: Sequence[Line], across: Sequence[Sequence[list[Found]]]) -> list[Line]:
    """Mean lines whose values all leave out the same categories say so: 'mean of all (2 of 15)'."""
    labelled = []
    for line, cells in zip(categories, across, strict=True):
        values = [value for cell in cells for value in cell if value.number is not None]
        shares = {value.covered for value in values}
        if line.head.mean and len(shares) == 1 and len(values[0].covered) < len(line.categories):
            share = f" ({len(values[0].covered)} of {len(line.categories)})"
            line = replace(line, head=replace(line.head, labels=(line.head.labels[0] + share,)))
            for value in values:
                value.facts["count"] = ""
        labelled.append(line)
    return labelled


def _common_facts(matrix: Matrix) -> dict[str, tuple[str, bool]]:
    """Kind of fact -> what holds for most values, and whether for all; nothing where some need no footnote."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for value in (value for row in matrix for cell in row for value in cell):
        for kind, fact in value.facts.items():
            counts[kind][fact] += 1
    return {
        kind: ("" if "" in found else found.most_common(1)[0][0], len(found) == 1) for kind, found in counts.items()
    }


def _own_notes(cell: Sequence[Found], common: Mapping[str, tuple[str, bool]]) -> dict[str, list[str]]:
    """By kind what is true of this cell and not of most; of one value of a tuple, after its title."""
    notes: dict[str, list[str]] = {}
    for kind, (usual, _) in common.items():
        facts: dict[str, list[str]] = defaultdict(list)
        for value in cell:
            if kind in value.facts:
                facts[value.facts[kind]].append(value.measure.title)
        if facts:
            unusual = {fact: titles for fact, titles in facts.items() if fact != usual}
            whole = len(facts) == 1
            notes[kind] = [fact if whole else f"{', '.join(titles)}: {fact}" for fact, titles in unusual.items()]
    return notes


def _notes(by_method: Matrix, common: Mapping[str, tuple[str, bool]]) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Of each cell, and of each method: what all its cells that have a kind of fact say goes to its label."""
    notes, shared = [], []
    for cells in by_method:
        own = [_own_notes(cell, common) for cell in cells]
        everywhere = []
        for kind in common:
            said = [each[kind] for each in own if kind in each]
            everywhere += [note for note in said[0] if all(note in each for each in said)] if said[1:] else []
        listed = [[note for found in each.values() for note in found] for each in own]
        notes.append([[note for note in each if note not in everywhere] for each in listed])
        shared.append(everywhere)
    return notes, shared


def _noted(line: Line, notes: Sequence[str]) -> Line:
    return replace(line, head=replace(line.head, notes=tuple(notes)))


def _general_notes(common: Mapping[str, tuple[str, bool]], material: Material, mixed: bool) -> list[tuple[str, str]]:
    """What holds for the table: facts of most values, where published numbers are from, the layout's own notes."""
    facts = {kind: fact + " unless marked" * (not all_alike) for kind, (fact, all_alike) in common.items() if fact}
    kinds = FACTS if mixed or material.layout.published else FACTS[1:]  # a caption has the setup
    sentences = " ".join(f"{facts[kind][:1].upper()}{facts[kind][1:]}." for kind in kinds if kind in facts)
    texts = [sentences, *material.layout.notes]
    if material.source != "measured":
        table = published.TABLES[material.layout.published]
        source = f"{'In parentheses' if material.source == 'both' else 'As printed'}: {table.title}"
        source += f" ({published.PAPERS[table.paper]})"
        source += f"; {facts['origin']}." if "origin" in facts else "."
        source += f" {GAP}" if any(kind in common for kind in DIFFERENCES) else ""
        repaired = any(map(is_repaired, material.references))
        texts = [source + f" {MARKS}" * repaired] if material.source == "reported" else [sentences, source, *texts[1:]]
    return [("", text) for text in texts if text]


def _lettered(grid: Grid) -> Grid:
    """Replace the texts of notes by letters in reading order, and list them below."""
    letters: dict[str, str] = {}

    def letter(notes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(letters.setdefault(note, _letter(len(letters))) for note in notes)

    columns = [replace(head, notes=letter(head.notes)) for head in grid.columns]
    rows, cells = [], []
    for head, row in zip(grid.rows, grid.cells, strict=True):
        rows.append(replace(head, notes=letter(head.notes)))
        cells.append([replace(cell, notes=letter(cell.notes)) for cell in row])
    marked = [(mark, text) for text, mark in letters.items()]
    return replace(grid, columns=columns, rows=rows, cells=cells, notes=grid.notes + marked)


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + tail)
