"""A table as plain data: made by `build`, printed by `formats`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

DASH = "–"
BEST, SECOND = 1, 2


@dataclass
class CellValue:
    """One value in a cell.

    Attributes:
        text: as printed; `DASH` if there is no value.
        rank: 1: best; 2: second best, if the layout marks it; 0: unmarked.
        published: the paper's value, printed in parentheses.
        gap: the text minus `published`, with its sign.
        grade: of the gap: "better", "worse", "even", or "unlike" (not comparable).
        title, best: of the measure: its name, and which value is best: "highest", "lowest" or "" (none).
        number: in the table's unit, rounded as printed; None for a dash or text.
        covered: the categories averaged.
        share: "1 of 15", of the categories, where means of unlike sets of them stand side by side.
        facts: footnotes by kind.
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
    share: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return self.text == DASH and self.published in ("", DASH)


@dataclass(frozen=True)
class Cell:
    """One value or a tuple of values, and its footnotes (letters, once the table is `lettered`).

    Attributes:
        joined: what stands between the values; "": they are a tuple in parentheses.
        link: in HTML, where it leads; "": nowhere.
    """

    values: tuple[CellValue, ...]
    notes: tuple[str, ...] = ()
    joined: str = ""
    link: str = ""


@dataclass(frozen=True)
class Header:
    """The header of a row or column.

    Attributes:
        labels: header lines from the top, or label columns from the left.
        opens: a row preceded by a rule.
        above: a title printed between that rule and the row.
        mean: a row of means.
        notes: its footnotes.
        short: an abbreviation of the last label, for narrow columns; "": none.
        divides: a column preceded by a rule.
        link: in HTML, where its first label leads; "": nowhere.
    """

    labels: tuple[str, ...]
    opens: bool = False
    above: str = ""
    mean: bool = False
    notes: tuple[str, ...] = ()
    short: str = ""
    divides: bool = False
    link: str = ""

    def shortened(self) -> Header:
        """The header with its abbreviation, if it has one."""
        return replace(self, labels=(*self.labels[:-1], self.short)) if self.short else self


@dataclass(frozen=True)
class Table:
    """cells[row][column]; parts: names of a tuple's values; notes: (letter or "", text) below the table.

    Attributes:
        label: of LaTeX's \\ref; "": tab:NAME.
        caption_below: in LaTeX, the caption stands below.
    """

    name: str
    caption: str
    corner: tuple[str, ...]
    columns: list[Header]
    rows: list[Header]
    cells: list[list[Cell]]
    parts: tuple[str, ...] = ("",)
    notes: list[tuple[str, str]] = field(default_factory=list)
    label: str = ""
    caption_below: bool = False

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
        """A table of text: header lines per column, (header, cells) per row, and notes below."""
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
        """Whether published values are shown next to measured ones."""
        return any(value.published for row in self.cells for cell in row for value in cell.values)

    def part(self, start: int, end: int) -> Table:
        """Some of the columns, and the notes that they need."""
        columns, cells = self.columns[start:end], [row[start:end] for row in self.cells]
        headed = [mark for header in (*columns, *self.rows) for mark in header.notes]
        marked = {"", *headed, *(mark for row in cells for cell in row for mark in cell.notes)}
        notes = [(mark, text) for mark, text in self.notes if mark in marked]
        return replace(self, columns=columns, cells=cells, notes=notes)

    def in_order(self, order: Sequence[int]) -> Table:
        """The rows in another order; a lettered table is lettered again."""
        texts = dict(self.notes)
        rows, cells = [self.rows[line] for line in order], [self.cells[line] for line in order]
        made = replace(self, rows=rows, cells=cells, notes=[]).lettered()
        general = [note for note in self.notes if not note[0]]
        return replace(made, notes=general + [(mark, texts[letter]) for mark, letter in made.notes])

    def lettered(self) -> Table:
        """Replace footnotes by letters in reading order, and list them below the table."""
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
    """Remove line breaks, control characters, lone surrogates and those that change the direction of text."""
    instead = {"Cc": " ", "Cs": "\N{REPLACEMENT CHARACTER}", "Cf": "\N{REPLACEMENT CHARACTER}"}
    kept = "\u200c\u200d"  # join letters and emoji
    return " ".join(
        "".join(char if char in kept else instead.get(unicodedata.category(char), char) for char in text).split()
    )


def cell_text(cell: Cell, with_published: bool, show: Callable[[CellValue], str]) -> str:
    """'97.5', '(99.1, –, 92.1)', '99.1/92.1', '97.5 (98.1) −0.6 / – (92.1)', '– (98.1, 92.1)', or one dash.

    With '(1 of 15)' behind it where means of unlike sets of categories stand side by side.
    """
    share = next((f" ({value.share})" for value in cell.values if value.share), "")
    return _values_text(cell, with_published, show) + share


def _values_text(cell: Cell, with_published: bool, show: Callable[[CellValue], str]) -> str:
    if all(value.empty for value in cell.values):
        return DASH
    if with_published and all(value.text == DASH for value in cell.values):
        return show(CellValue(published=", ".join(value.published or DASH for value in cell.values)))
    texts = [show(value) for value in cell.values]
    if with_published:
        return " / ".join(texts)
    if len(texts) == 1 or cell.joined:
        return cell.joined.join(texts)
    return f"({', '.join(texts)})"


def labels_of(head: Header, escape: Callable[[str], str], mark: str) -> list[str]:
    """A header's labels, with footnote letters after the last non-empty one."""
    labels = [escape(label) for label in head.labels]
    if head.notes:
        last = max((level for level, label in enumerate(labels) if label), default=0)
        labels[last] += mark.format(",".join(head.notes))
    return labels


def header_lines(labels: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    """Header lines from the top as (label, span); equal neighbours under one header are merged."""
    lines = []
    for level in range(len(labels[0])):
        line: list[tuple[str, int]] = []
        lowest = level == len(labels[0]) - 1
        for column, levels in enumerate(labels):
            same = column > 0 and levels[level] and levels[: level + 1] == labels[column - 1][: level + 1]
            if same and not lowest:
                line[-1] = (levels[level], line[-1][1] + 1)
            else:
                line.append((levels[level], 1))
        lines.append(line)
    return lines
