"""Tables as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from anomaly_bench.tables.formats.fit import split
from anomaly_bench.tables.table import BEST, SECOND, cell_text, header_lines, labels_of, safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import CellValue, Table


class Piece(NamedTuple):
    """A piece of text in a console line. side: "<", "^", ">", or a fill character."""

    plain: str
    side: str = "<"
    span: int = 1
    text: str = ""  # `plain` with terminal codes


_RULE: list[Piece] = []
_GAP = 3  # blanks between columns


def console(table: Table, color: bool = False, room: int = 0) -> str:
    """Lines for a terminal or a text file; every column is as wide as it needs.

    Args:
        color: set the best values in bold with terminal codes.
        room: characters in a line: wider tables go on below, between groups of columns where possible; 0: no limit.
    """
    parts = split(table, lambda part: _width(_widths(*_plain_pieces(part))), room) if room else [table]
    drawn = ["\n".join(_lines(part, color)) for part in parts]
    total = room or max(88, *(len(line) for line in drawn[0].splitlines()))
    notes = [f"[{mark}] {text}" if mark else text for mark, text in table.notes]
    folded = [textwrap.fill(safe_text(text), total) for text in (table.caption, *notes)]
    above = [folded[0], ""] if table.caption else []
    return "\n".join((*above, "\n\n".join(drawn), *([""] if notes else []), *folded[1:])) + "\n"


def _plain_pieces(table: Table) -> tuple[list[list[Piece]], int]:
    """The lines of a table, and the number of its columns."""
    return [*_header_pieces(table), _RULE, *_body_pieces(table, color=False)], len(table.corner) + len(table.columns)


def _lines(table: Table, color: bool) -> list[str]:
    lines = [*_header_pieces(table), _RULE, *_body_pieces(table, color)]
    widths = _widths(lines, len(table.corner) + len(table.columns))
    return [_drawn(pieces, widths) if pieces else "─" * _width(widths) for pieces in lines]


def _header_pieces(table: Table) -> Iterator[list[Piece]]:
    side = "^" if table.paired else ">"
    levels = header_lines([labels_of(head, safe_text, "[{}]") for head in table.columns])
    for level, line in enumerate(levels, 1):
        stubs = [Piece(title if level == len(levels) else "") for title in table.corner]
        yield [*stubs, *(Piece(label, "^" if span > 1 else side, span) for label, span in line)]
        if any(span > 1 for _, span in line):
            yield [*(Piece("") for _ in stubs), *(Piece("", "─" if span > 1 else " ", span) for _, span in line)]


def _body_pieces(table: Table, color: bool) -> Iterator[list[Piece]]:
    marks = [[f"[{','.join(cell.notes)}]" if cell.notes else "" for cell in row] for row in table.cells]
    room = [max(map(len, column)) for column in zip(*marks, strict=True)]
    both = table.has_published
    for row, cells, own in zip(table.rows, table.cells, marks, strict=True):
        if row.opens:
            yield _RULE
        if row.above:
            yield [Piece(safe_text(row.above), span=len(table.corner) + len(table.columns))]
        ends = [mark.ljust(width) for mark, width in zip(own, room, strict=True)]
        stubs = [Piece(label) for label in labels_of(row, safe_text, "[{}]")]
        plain = [cell_text(cell, both, _plain) + end for cell, end in zip(cells, ends, strict=True)]
        style = _colored if color else _plain
        shown = [cell_text(cell, both, style) + end for cell, end in zip(cells, ends, strict=True)]
        yield [*stubs, *(Piece(*pair) for pair in zip(plain, ">" * len(plain), [1] * len(plain), shown, strict=True))]


def _plain(value: CellValue) -> str:
    """'97.5 (98.1) −0.6'."""
    return _joined(safe_text(value.text), value.published, value.gap)


def _joined(text: str, published: str, gap: str) -> str:
    return " ".join(filter(None, (text, f"({published})" if published else "", gap)))


def _colored(value: CellValue) -> str:
    codes = {BEST: "1", SECOND: "4", "better": "32", "worse": "31", "unlike": "90"}

    def code(text: str, key: int | str) -> str:
        return f"\x1b[{codes[key]}m{text}\x1b[0m" if text and key in codes else text

    return _joined(code(safe_text(value.text), value.rank), value.published, code(value.gap, value.grade))


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _widths(lines: Iterable[Sequence[Piece]], columns: int) -> list[int]:
    """Column widths: the widest single piece; the last column under a wider span grows to fit."""
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
    return (" " * _GAP).join(texts).rstrip()
