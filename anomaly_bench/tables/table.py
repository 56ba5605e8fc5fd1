"""A table as plain data: what `build` makes and `formats` print."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

DASH = "–"
BEST, SECOND = 1, 2


@dataclass
class CellValue:
    """One value of a cell.

    Attributes:
        text: as printed; `DASH` where there is nothing.
        rank: 1 is the best of those that it is compared with, 2 the second where the layout marks it; 0 is no mark.
        published: a paper's value of the same, printed in parentheses after it.
        gap: the text minus `published`, with its sign.
        grade: of the gap: "better", "worse" or "even", or "unlike" where the two must not be compared.
        title, best: of what it is a value: its name, and which is the best: "highest", "lowest" or "" (none).
        number: in the table's unit, as precise as printed; None where there is none, or a text.
        covered: the categories that it is a mean of.
        facts: by kind, for the footnotes.
    """

    text: str = DASH
    rank: int = 0
    published: str = ""
    gap: str = ""
    grade: str = ""
    title: str = ""
    best: str = ""
    number: float | None = None
    covered: frozenset[str] = frozenset()
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return self.text == DASH and self.published in ("", DASH)


@dataclass(frozen=True)
class Cell:
    """One value or a tuple of them, and its footnotes (their letters, once the table is `lettered`)."""

    values: tuple[CellValue, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a row or column is called.

    Attributes:
        labels: header lines from the top, or label columns from the left.
        opens: a rule stands before it.
        above: a title printed between that rule and the row.
        mean: a row of means.
        notes: its footnotes.
    """

    labels: tuple[str, ...]
    opens: bool = False
    above: str = ""
    mean: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """cells[row][column]; parts: what the values of a tuple are; notes: below it, as (letter or "", text)."""

    name: str
    caption: str
    corner: tuple[str, ...]
    columns: list[Header]
    rows: list[Header]
    cells: list[list[Cell]]
    parts: tuple[str, ...] = ("",)
    notes: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of_rows(
        cls,
        name: str,
        caption: str,
        corner: tuple[str, ...],
        columns: Sequence[tuple[str, ...]],
        rows: Iterable[tuple[Header, Sequence[str | Cell]]],
        notes: Iterable[str] = (),
    ) -> Table:
        """A table of texts: `columns` are their header lines, `rows` a header with its cells, `notes` stand below."""
        listed = list(rows)
        cells = [[each if isinstance(each, Cell) else Cell((CellValue(each),)) for each in row] for _, row in listed]
        heads = [head for head, _ in listed]
        return cls(name, caption, corner, [*map(Header, columns)], heads, cells, notes=[("", text) for text in notes])

    @property
    def paired(self) -> bool:
        """Whether cells hold more than one number."""
        return any(len(cell.values) > 1 for row in self.cells for cell in row) or self.has_published

    @property
    def has_published(self) -> bool:
        """Whether published values stand beside measured ones."""
        return any(value.published for row in self.cells for cell in row for value in cell.values)

    def lettered(self) -> Table:
        """With letters in place of footnotes, in reading order, and the footnotes below."""
        letters: dict[str, str] = {}

        def letter(notes: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(letters.setdefault(note, _letter(len(letters))) for note in notes)

        columns = [replace(head, notes=letter(head.notes)) for head in self.columns]
        rows, cells = [], []
        for head, row in zip(self.rows, self.cells, strict=True):
            rows.append(replace(head, notes=letter(head.notes)))
            cells.append([replace(cell, notes=letter(cell.notes)) for cell in row])
        marked = [(mark, text) for text, mark in letters.items()]
        return replace(self, columns=columns, rows=rows, cells=cells, notes=self.notes + marked)


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + tail)


def safe_text(text: str) -> str:
    """Without line breaks, control characters and halves of surrogate pairs, which break tables and files."""
    instead = {"Cc": " ", "Cs": "\N{REPLACEMENT CHARACTER}"}
    return " ".join("".join(instead.get(unicodedata.category(char), char) for char in text).split())


def cell_text(cell: Cell, with_published: bool, show: Callable[[CellValue], str]) -> str:
    """'97.5', '(99.1, –, 92.1)', '97.5 (98.1) −0.6 / – (92.1)', '– (98.1, 92.1)', or one dash."""
    if all(value.empty for value in cell.values):
        return DASH
    if with_published and all(value.text == DASH for value in cell.values):
        return show(CellValue(published=", ".join(value.published or DASH for value in cell.values)))
    texts = [show(value) for value in cell.values]
    if with_published:
        return " / ".join(texts)
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def labels_of(head: Header, escape: Callable[[str], str], mark: str) -> list[str]:
    """Its labels, the last one that is not empty followed by the letters of its notes."""
    labels = [escape(label) for label in head.labels]
    if head.notes:
        last = max((level for level, label in enumerate(labels) if label), default=0)
        labels[last] += mark.format(",".join(head.notes))
    return labels


def header_lines(labels: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    """Header lines from the top as (label, columns that it spans); equal neighbours under one header are merged."""
    lines = []
    for level in range(len(labels[0])):
        line: list[tuple[str, int]] = []
        lowest = level == len(labels[0]) - 1
        for column, own in enumerate(labels):
            same = column > 0 and own[level] and own[: level + 1] == labels[column - 1][: level + 1]
            if same and not lowest:
                line[-1] = (own[level], line[-1][1] + 1)
            else:
                line.append((own[level], 1))
        lines.append(line)
    return lines
