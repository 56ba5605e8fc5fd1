"""Text of tables: a grid as console text, Markdown, HTML or CSV; `latex` has the fifth format."""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from anomaly_bench.errors import UsageError, closest
from anomaly_bench.grid import BEST, SECOND, Cell, Grid, Value, header, joined, labels_of, one_line
from anomaly_bench.latex import document, latex
from anomaly_bench.layouts import Layout
from anomaly_bench.tables import grids

if TYPE_CHECKING:
    from anomaly_bench.records import Record
    from anomaly_bench.references import Reference

FORMATS = {"console": "txt", "md": "md", "latex": "tex", "csv": "csv", "html": "html"}  # and their suffixes


def render(
    records: Iterable[Record],
    layout: Layout,
    cells: Sequence[str] | None = None,
    format: str = "console",
    *,
    source: str = "measured",
    references: Sequence[Reference] | None = None,
    mixed: bool = False,
    color: bool = False,
    standalone: bool = False,
) -> str:
    """The tables of all setups as text.

    Args:
        cells, source, references, mixed: see `grids`.
        format, color, standalone: see `draw`.

    Raises:
        UsageError: an unknown format, metric or source.
    """
    made = grids(records, layout, cells, source, references=references, mixed=mixed)
    return draw(made, format, color=color, standalone=standalone)


def draw(made: Sequence[Grid], format: str, *, color: bool = False, standalone: bool = False) -> str:
    """Grids as text of one format.

    Args:
        format: one of `FORMATS`.
        color: console only: set marks and gaps with terminal codes; for a terminal, not a file.
        standalone: LaTeX: a whole document instead of a part to \\input. HTML: a whole page.

    Raises:
        UsageError: an unknown format, or `standalone` where it has no effect.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format}: no such format{closest(format, FORMATS)}")
    if standalone and format not in ("latex", "html"):
        raise UsageError(f"standalone=true has no effect on format={format}; expected format=latex or html")
    if format == "csv":
        return csv_text(made)
    if standalone:
        widest = max((len(line) for grid in made for line in console(grid).splitlines()), default=0)
        return document(made, widest) if format == "latex" else page(made)
    one = {"md": markdown, "latex": latex, "html": html_table}
    return "\n".join(console(grid, color) if format == "console" else one[format](grid) for grid in made)


class Piece(NamedTuple):
    """A text in a line of the console's table. side: "<", "^", ">", or a character that fills its place."""

    plain: str
    side: str = "<"
    span: int = 1
    text: str = ""  # printed instead of `plain`: the same with terminal codes


SUP = "<sup>{}</sup>"
RULE: list[Piece] = []
GAP = 3


def console(grid: Grid, color: bool = False) -> str:
    """Lines for a terminal or a text file; every column is as wide as it needs.

    Args:
        color: set the best values in bold with terminal codes.
    """
    lines = [*_header_pieces(grid), RULE, *_body_pieces(grid, color)]
    widths = _widths(lines, len(grid.corner) + len(grid.columns))
    total = _width(widths)
    drawn = [_drawn(pieces, widths) if pieces else "─" * total for pieces in lines]
    notes = [f"[{mark}] {text}" if mark else text for mark, text in grid.notes]
    folded = [textwrap.fill(one_line(text), max(total, 88)) for text in (grid.caption, *notes)]
    return "\n".join((folded[0], "", *drawn, *([""] if notes else []), *folded[1:])) + "\n"


def _header_pieces(grid: Grid) -> Iterator[list[Piece]]:
    side = "^" if grid.paired else ">"
    levels = header([labels_of(head, one_line, "[{}]") for head in grid.columns])
    for level, line in enumerate(levels, 1):
        stubs = [Piece(title if level == len(levels) else "") for title in grid.corner]
        yield [*stubs, *(Piece(label, "^" if span > 1 else side, span) for label, span in line)]
        if any(span > 1 for _, span in line):
            yield [*(Piece("") for _ in stubs), *(Piece("", "─" if span > 1 else " ", span) for _, span in line)]


def _body_pieces(grid: Grid, color: bool) -> Iterator[list[Piece]]:
    marks = [[f"[{','.join(cell.notes)}]" if cell.notes else "" for cell in row] for row in grid.cells]
    room = [max(map(len, column)) for column in zip(*marks, strict=True)]
    for row, cells, own in zip(grid.rows, grid.cells, marks, strict=True):
        if row.opens:
            yield RULE
        if row.above:
            yield [Piece(one_line(row.above), span=len(grid.corner) + len(grid.columns))]
        ends = [mark.ljust(width) for mark, width in zip(own, room, strict=True)]
        stubs = [Piece(label) for label in labels_of(row, one_line, "[{}]")]
        plain = [joined(cell, grid.beside, _plain) + end for cell, end in zip(cells, ends, strict=True)]
        style = _colored if color else _plain
        shown = [joined(cell, grid.beside, style) + end for cell, end in zip(cells, ends, strict=True)]
        yield [*stubs, *(Piece(*pair) for pair in zip(plain, ">" * len(plain), [1] * len(plain), shown, strict=True))]


def _plain(value: Value) -> str:
    """'97.5 (98.1) −0.6'."""
    return " ".join(filter(None, (value.text, f"({value.published})" * bool(value.published), value.gap)))


def _colored(value: Value) -> str:
    codes = {BEST: "1", SECOND: "4", "better": "32", "worse": "31", "unlike": "90"}

    def code(text: str, key: int | str) -> str:
        return f"\x1b[{codes[key]}m{text}\x1b[0m" if text and key in codes else text

    return _plain(replace(value, text=code(value.text, value.rank), gap=code(value.gap, value.grade)))


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _widths(lines: Iterable[Sequence[Piece]], columns: int) -> list[int]:
    """Of columns: the widest single piece, then more for the last column under a wider span."""
    from rich.cells import cell_len

    widths = [0] * columns
    placed = [(sum(piece.span for piece in pieces[:at]), piece) for pieces in lines for at, piece in enumerate(pieces)]
    for start, piece in sorted(placed, key=lambda pair: pair[1].span):
        end = start + piece.span
        widths[end - 1] += max(0, cell_len(piece.plain) - _width(widths[start:end]))
    return widths


def _drawn(pieces: Sequence[Piece], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    texts, start = [], 0
    for piece in pieces:
        width = _width(widths[start : start + piece.span])
        room = width - cell_len(piece.plain)
        left = {"<": 0, "^": room // 2, ">": room}.get(piece.side, 0)
        fill = " " if piece.side in "<^>" else piece.side
        texts.append(fill * left + (piece.text or piece.plain) + fill * (room - left))
        start += piece.span
    return (" " * GAP).join(texts).rstrip()


def markdown(grid: Grid) -> str:
    """A GitHub-flavoured table: header lines and letters of notes as <br> and <sup>."""
    titles = ["<br>".join(filter(None, labels_of(head, _markdown_text, SUP))) for head in grid.columns]
    rows = [[*map(_markdown_text, grid.corner), *titles]]
    for head, cells in zip(grid.rows, grid.cells, strict=True):
        if head.above:
            rows.append([f"*{_markdown_text(head.above)}*", *[""] * (len(rows[0]) - 1)])
        stubs = labels_of(head, _markdown_text, SUP)
        shown = [_markdown_cell(cell, grid.beside) for cell in cells]
        rows.append([f"*{stubs[0]}*" if head.mean else stubs[0], *stubs[1:], *shown])
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" * len(grid.corner) + ">" * len(grid.columns)
    shapes = list(zip(sides, widths, strict=True))
    padded = [[f"{text:{side}{width}}" for text, (side, width) in zip(row, shapes, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    dashes = "|".join(f":{'-' * (width + 1)}" if side == "<" else f"{'-' * (width + 1)}:" for side, width in shapes)
    marks = [f"<sup>{mark}</sup> " if mark else "" for mark, _ in grid.notes]
    notes = [f"- {mark}{_markdown_text(text)}" for mark, (_, text) in zip(marks, grid.notes, strict=True)]
    parts = (f"**{_markdown_text(grid.caption)}**", "", lines[0], f"|{dashes}|", *lines[1:], *([""] if notes else []))
    return "\n".join((*parts, *notes)) + "\n"


def _markdown_cell(cell: Cell, beside: bool) -> str:
    return joined(cell, beside, _markdown_value) + (SUP.format(",".join(cell.notes)) if cell.notes else "")


def _markdown_value(value: Value) -> str:
    """GitHub shows no colour: a gap that is no comparison is in italics."""
    text, published, gap = (_markdown_text(each) for each in (value.text, value.published, value.gap))
    styled = {BEST: f"**{text}**", SECOND: f"<ins>{text}</ins>"}.get(value.rank, text)
    gap = f"*{gap}*" if gap and value.grade == "unlike" else gap
    return " ".join(filter(None, (styled, f"({published})" * bool(published), gap)))


def _markdown_text(text: str) -> str:
    """Escaped; underscores within words are left, as they mean nothing there."""
    return re.sub(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text))


CSS = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; margin-bottom: 1ex; }
caption { caption-side: top; text-align: left; font-weight: bold; padding-bottom: 1ex; }
th, td { padding: 2px 10px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: normal; }
thead th { text-align: center; vertical-align: bottom; }
thead th[colspan] { border-bottom: 1px solid; }
tbody, tr.rule { border-top: 1px solid; }
tbody th, thead th.stub { text-align: left; }
tr.mean th { font-style: italic; }
.best { font-weight: bold; }
.second { text-decoration: underline; }
.published { color: #555; }
.better { color: #17722a; }
.worse { color: #b3261e; }
.unlike { color: #999; }
.notes { font-size: 13px; margin: 0 0 3em; padding: 0; list-style: none; max-width: 75em; }
"""


def page(made: Sequence[Grid]) -> str:
    """A whole HTML page of tables, which needs nothing else."""
    title = html.escape(made[0].caption if made else "no tables")
    head = f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
    style = f"<style>{CSS}</style>\n</head>\n<body>\n"
    return head + style + "\n".join(map(html_table, made)) + "</body>\n</html>\n"


def html_table(grid: Grid) -> str:
    """A <table> and a list of its notes; classes say what is best, a mean, or a gap of which kind."""
    lines = [f'<table id="{html.escape(grid.name)}">', f"<caption>{_html_text(grid.caption)}</caption>", "<thead>"]
    levels = header([labels_of(head, _html_text, SUP) for head in grid.columns])
    for level, line in enumerate(levels, 1):
        stubs = [f'<th class="stub">{title * (level == len(levels))}</th>' for title in grid.corner]
        titles = [f'<th colspan="{span}">{label}</th>' if span > 1 else f"<th>{label}</th>" for label, span in line]
        lines.append(f"<tr>{''.join((*stubs, *titles))}</tr>")
    lines += ["</thead>", "<tbody>", *_html_body(grid), "</tbody>", "</table>"]
    notes = [f"<li>{f'{SUP.format(mark)} ' * bool(mark)}{_html_text(text)}</li>" for mark, text in grid.notes]
    return "\n".join((*lines, '<ul class="notes">', *notes, "</ul>")) + "\n"


def _html_body(grid: Grid) -> Iterator[str]:
    for head, cells in zip(grid.rows, grid.cells, strict=True):
        if head.above:
            width = len(grid.corner) + len(grid.columns)
            yield f'<tr class="rule"><th colspan="{width}">{_html_text(head.above)}</th></tr>'
        kinds = " ".join(filter(None, ("rule" * (head.opens and not head.above), "mean" * head.mean)))
        stubs = "".join(f"<th>{label}</th>" for label in labels_of(head, _html_text, SUP))
        texts = [joined(cell, grid.beside, _html_value) for cell in cells]
        marks = [SUP.format(",".join(cell.notes)) if cell.notes else "" for cell in cells]
        shown = "".join(f"<td>{text}{mark}</td>" for text, mark in zip(texts, marks, strict=True))
        yield f"<tr{f' class={kinds!r}' * bool(kinds)}>{stubs}{shown}</tr>"


def _html_value(value: Value) -> str:
    parts = [_span(value.text, {BEST: "best", SECOND: "second"}.get(value.rank, ""))]
    parts += [_span(f"({value.published})", "published")] if value.published else []
    return " ".join([*parts, *([_span(value.gap, value.grade)] if value.gap else [])])


def _span(text: str, kind: str) -> str:
    return f'<span class="{kind}">{_html_text(text)}</span>' if kind else _html_text(text)


def _html_text(text: str) -> str:
    return html.escape(one_line(text))


CSV_HEADER = ("table", "row", "column", "metric", "value", "published", "gap", "gap_is", "rank", "notes")


def csv_text(made: Sequence[Grid]) -> str:
    """One line for each value of each cell, with what its footnotes say; rank 1 is the best."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for grid in made:
        said = dict(grid.notes)
        for row, cells in zip(grid.rows, grid.cells, strict=True):
            for column, cell in zip(grid.columns, cells, strict=True):
                names = [" / ".join(filter(None, map(one_line, head.labels))) for head in (row, column)]
                notes = "; ".join(said[mark] for mark in (*row.notes, *column.notes, *cell.notes))
                for part, value in zip(grid.parts, cell.values, strict=True):
                    shown = [value.text, value.published, value.gap, value.grade, value.rank or ""]
                    writer.writerow([grid.name, *names, part, *shown, notes])
    return text.getvalue()
