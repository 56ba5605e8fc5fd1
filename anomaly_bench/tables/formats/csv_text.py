"""Tables as CSV, one line per value."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly_bench.files import safe_cell
from anomaly_bench.tables.table import safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Table

CSV_HEADER = ("table", "row", "column", "metric", "value", "published", "gap", "gap_is", "rank", "notes")


def csv_text(made: Sequence[Table]) -> str:
    """One line per value, with its footnotes; rank 1 is best."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in made:
        said = dict(table.notes)
        for row, cells in zip(table.rows, table.cells, strict=True):
            for column, cell in zip(table.columns, cells, strict=True):
                names = [" / ".join(filter(None, map(safe_text, head.labels))) for head in (row, column)]
                notes = safe_text("; ".join(said[mark] for mark in (*row.notes, *column.notes, *cell.notes)))
                for part, value in zip(table.parts, cell.values, strict=True):
                    shown = [value.text, value.published, value.gap, value.grade, value.rank or ""]
                    writer.writerow(map(safe_cell, [table.name, *names, part, *shown, notes]))
    return text.getvalue()
