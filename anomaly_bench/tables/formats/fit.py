"""Tables that fit a page of a paper: size of text, room between columns, shorter heads, and parts of a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from anomaly_bench.tables.formats.widths import BOLD, SIZES, column_widths, text_width
from anomaly_bench.tables.table import BEST, cell_text, header_lines, safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Cell, CellValue, Header, Table

# points, the narrowest of: article on A4 with margins of 2.5 cm, IEEEtran, CVPR
ROOMS = {"column": 222.0, "page": 455.0, "landscape": 640.0}
FITS = (*ROOMS, "none")
SOFT_HYPHEN = "\u00ad"
_WHOLE, _BROKEN, _SHORT = range(3)  # heads: as they are, in several lines, abbreviated


class Style(NamedTuple):
    """size: of the text, in points; sep: half the room between columns; heads: how short they are."""

    size: int = 10
    sep: int = 6
    heads: int = _WHOLE


PLAIN = Style()
_READABLE = (
    PLAIN,
    *(Style(size, sep, heads) for heads in (_WHOLE, _BROKEN) for size, sep in ((9, 6), (9, 4), (8, 4), (8, 3))),
    *(Style(size, sep, _SHORT) for size, sep in ((9, 4), (8, 3), (8, 2))),
)
_SMALL = tuple(Style(size, sep, _SHORT) for size, sep in ((7, 3), (7, 2), (6, 2)))


class Fitted(NamedTuple):
    """A table, or a part of one, as set; wide: it spans the columns of a page."""

    table: Table
    style: Style
    wide: bool


def fitted(table: Table, fit: str) -> list[Fitted]:
    """The table in the largest text that fits; in several parts where it would be smaller than 6 pt.

    A table on a page takes one column if its text can be 8 pt there.
    """
    if fit == "none":
        return [Fitted(table, PLAIN, wide=False)]
    if fit == "page" and (narrow := _styled(table, ROOMS["column"], _READABLE)):
        return [Fitted(*narrow, wide=False)]
    room, styles, wide = ROOMS[fit], (*_READABLE, *_SMALL), fit != "column"
    if whole := _styled(table, room, styles):
        return [Fitted(*whole, wide)]
    narrowest = styles[-1]
    parts = split(table, lambda part: part_width(part, narrowest), room)
    shared = next((style for style in styles if all(part_width(part, style) <= room for part in parts)), narrowest)
    return [Fitted(_headed(part, shared.heads), shared, wide) for part in parts]


def _styled(table: Table, room: float, styles: tuple[Style, ...]) -> tuple[Table, Style] | None:
    """The table in the first style in which it is no wider than `room`."""
    for level, some in itertools.groupby(styles, key=lambda style: style.heads):
        made = _headed(table, level)
        measured = _Measured.of(made)
        for style in some:
            if measured.width(style) <= room:
                return made, style
    return None


def split(table: Table, width: Callable[[Table], float], room: float) -> list[Table]:
    """As few parts as fit, cut between groups of columns where possible, and about as wide as each other."""
    parts = _cut(table, width, room)
    for share in (0.9, 0.8, 0.7, 0.6):
        again = _cut(table, width, share * room)
        if len(again) > len(parts) or any(width(part) > room for part in again):
            break
        parts = again
    return parts


def _cut(table: Table, width: Callable[[Table], float], room: float) -> list[Table]:
    heads, start, parts = table.columns, 0, []
    for end in range(1, len(heads) + 1):
        if end - start > 1 and width(table.part(start, end)) > room:
            group = next(at for at in range(end) if all(_same_group(heads[at], each) for each in heads[at:end]))
            cut = group if start < group and width(table.part(group, end)) <= room else end - 1
            parts.append(table.part(start, cut))
            start = cut
    return [*parts, table.part(start, len(heads))]


def _same_group(one: Header, other: Header) -> bool:
    return one is other or (len(one.labels) > 1 and one.labels[0] == other.labels[0] != "")


class _Measured(NamedTuple):
    """The widths of a table's labels and cells at 10 pt, and of its columns' footnote letters."""

    pieces: list[tuple[int, int, float]]
    marks: float
    columns: int

    @classmethod
    def of(cls, table: Table) -> _Measured:
        return cls(list(_pieces(table)), sum(mark_widths(table)), len(table.corner) + len(table.columns))

    def width(self, style: Style) -> float:
        """Points from the first to the last column."""
        text, marks = SIZES[style.size]
        gap = 2 * style.sep
        widths = column_widths(self.pieces, self.columns, gap / text)
        return text * sum(widths) + marks * self.marks + gap * (self.columns - 1)


def part_width(table: Table, style: Style) -> float:
    """Points from the first to the last column, with heads as short as the style's."""
    return _Measured.of(_headed(table, style.heads)).width(style)


def mark_widths(table: Table) -> list[float]:
    """For each column, points that the letters of its footnotes take at 10 pt, before `SIZES`."""
    columns = zip(*table.cells, strict=True)
    return [max(text_width(",".join(cell.notes)) for cell in column) for column in columns]


def _pieces(table: Table) -> Iterator[tuple[int, int, float]]:
    """(first column, span, width) of every label and cell."""
    stubs = len(table.corner)
    yield from ((at, 1, text_width(title)) for at, title in enumerate(table.corner))
    for line in header_lines([_labels(head) for head in table.columns]):
        start = stubs
        for label, span in line:
            yield start, span, max(map(text_width, label.split("\n")))
            start += span
    for head in table.rows:
        yield from ((at, 1, text_width(safe_text(label))) for at, label in enumerate(_labels(head)))
        yield 0, stubs + len(table.columns), text_width(head.above)
    yield from ((stubs + at, 1, width) for at, width in enumerate(_cell_widths(table)))


def _labels(head: Header) -> list[str]:
    """Labels with the letters of their footnotes, which are smaller than these."""
    labels = list(head.labels)
    labels[-1] += ",".join(head.notes)
    return labels


def _cell_widths(table: Table) -> list[float]:
    """Of the widest cell of each column."""
    shown = table.has_published
    return [max(_cell_width(cell, shown) for cell in column) for column in zip(*table.cells, strict=True)]


def _cell_width(cell: Cell, with_published: bool) -> float:
    def extra(value: CellValue) -> float:
        return (BOLD - 1) * text_width(value.text) if value.rank == BEST else 0.0

    def plain(value: CellValue) -> str:
        return " ".join(filter(None, (value.text, value.published and f"({value.published})", value.gap)))

    return text_width(cell_text(cell, with_published, plain)) + sum(map(extra, cell.values))


def _headed(table: Table, level: int) -> Table:
    """The table with shorter column heads."""
    if level == _WHOLE:
        return table
    heads = [head.shortened() if level == _SHORT else head for head in table.columns]
    single = _single([head.labels for head in heads])
    return replace(table, columns=list(map(_broken_head, heads, _cell_widths(table), single)))


def _broken_head(head: Header, room: float, single: Sequence[bool]) -> Header:
    labels = zip(head.labels, single, strict=True)
    return replace(head, labels=tuple(_broken(text, room) if alone else text for text, alone in labels))


def _single(labels: list[tuple[str, ...]]) -> list[list[bool]]:
    """For every label of every column, whether it spans this column only."""
    found: list[list[bool]] = [[] for _ in labels]
    for line in header_lines(labels):
        at = 0
        for _, span in line:
            for column in range(at, at + span):
                found[column].append(span == 1)
            at += span
    return found


def _broken(label: str, room: float) -> str:
    """Lines of a label that is wider than `room`, broken at blanks, hyphens, slashes, and before capitals."""
    soft = re.sub("(?<=[a-z]{2})(?=[A-Z][A-Za-z]{2})", SOFT_HYPHEN, " ".join(label.split()))
    words = re.findall(rf"[^\s/{SOFT_HYPHEN}-]*(?:[/{SOFT_HYPHEN}-]|\s+|$)", soft)
    room = max(room, *(text_width(word.rstrip()) for word in words))
    lines = [""]
    for word in words:
        if lines[-1] and text_width((lines[-1] + word).rstrip()) > room:
            lines.append("")
        lines[-1] += word
    ended = [re.sub(f"{SOFT_HYPHEN}$", "-", line.rstrip()) for line in lines if line.strip()]
    return "\n".join(ended).replace(SOFT_HYPHEN, "")
