"""Tables in Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from anomaly_bench.tables.formats.html import SUP
from anomaly_bench.tables.table import BEST, SECOND, cell_text, labels_of, safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Cell, CellValue, Table

PAGE = 100  # characters in a line


def markdown(table: Table) -> str:
    """A GitHub-flavored table: header lines joined by <br>, note letters as <sup>."""
    from tabulate import tabulate

    heads = table.columns if _is_narrow(table) else [head.shortened() for head in table.columns]
    titles = ["<br>".join(filter(None, labels_of(head, _markdown_text, SUP))) for head in heads]
    rows = [[*map(_markdown_text, table.corner), *titles]]
    for head, cells in zip(table.rows, table.cells, strict=True):
        if head.above:
            rows.append([f"*{_markdown_text(head.above)}*", *[""] * (len(rows[0]) - 1)])
        names = labels_of(head, _markdown_text, SUP)
        shown = [_markdown_cell(cell, table.has_published) for cell in cells]
        rows.append([f"*{names[0]}*" if head.mean else names[0], *names[1:], *shown])
    stubs = len(table.corner)  # a line below a header has three dashes at least
    rows[0] = [f"{text:<3}" if place < stubs else f"{text:>3}" for place, text in enumerate(rows[0])]
    sides = ["left"] * stubs + ["right"] * len(table.columns)
    text = tabulate(rows, tablefmt="pipe", colalign=sides, disable_numparse=True, preserve_whitespace=True)
    dashes, *lines = text.split("\n")
    notes = [f"- {SUP.format(mark) + ' ' if mark else ''}{_markdown_text(text)}" for mark, text in table.notes]
    parts = (f"**{_markdown_text(table.caption)}**", "", lines[0], dashes, *lines[1:], *([""] if notes else []))
    return "\n".join((*parts, *notes)) + "\n"


def _is_narrow(table: Table) -> bool:
    """Whether the last lines of the heads are together no wider than a page."""
    return sum(len(head.labels[-1]) + 3 for head in table.columns) <= PAGE


def _markdown_cell(cell: Cell, with_published: bool) -> str:
    return cell_text(cell, with_published, _markdown_value) + (SUP.format(",".join(cell.notes)) if cell.notes else "")


def _markdown_value(value: CellValue) -> str:
    """GitHub shows no color: gaps that are not comparable are in italics."""
    text, published, gap = (_markdown_text(each) for each in (value.text, value.published, value.gap))
    styled = {BEST: f"**{text}**", SECOND: f"<ins>{text}</ins>"}.get(value.rank, text)
    gap = f"*{gap}*" if gap and value.grade == "unlike" else gap
    return " ".join(filter(None, (styled, f"({published})" if published else "", gap)))


def _markdown_text(text: str) -> str:
    """Escape Markdown, except underscores within words, which have no effect."""
    return re.sub(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", safe_text(text))
