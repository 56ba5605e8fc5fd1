"""A table as plain data: what `tables` makes and `renderers` print."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DASH = "–"
BEST, SECOND = 1, 2


@dataclass(frozen=True)
class Value:
    """One entry of a cell.

    Attributes:
        text: as printed; `DASH` where there is nothing.
        rank: 1 is the best of those that it is compared with, 2 the second where the layout marks it; 0 is no mark.
        published: a paper's value of the same, printed in parentheses after it.
        gap: the text minus `published`, with its sign.
        grade: of the gap: "better", "worse" or "even", or "unlike" where the two must not be compared.
    """

    text: str = DASH
    rank: int = 0
    published: str = ""
    gap: str = ""
    grade: str = ""

    @property
    def empty(self) -> bool:
        return self.text == DASH and self.published in ("", DASH)


@dataclass(frozen=True)
class Cell:
    """One value or a tuple of them, and the letters of footnotes."""

    values: tuple[Value, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a row or column is called.

    Attributes:
        labels: header lines from the top, or label columns from the left.
        opens: a rule stands before it.
        above: a title printed between that rule and the row.
        mean: a row of means.
        notes: letters of footnotes.
    """

    labels: tuple[str, ...]
    opens: bool = False
    above: str = ""
    mean: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """cells[row][column]; parts: what the values of a tuple are; footnotes as (letter or "", text)."""

    name: str
    caption: str
    corner: tuple[str, ...]
    columns: list[Header]
    rows: list[Header]
    cells: list[list[Cell]]
    parts: tuple[str, ...]
    notes: list[tuple[str, str]]

    @property
    def paired(self) -> bool:
        """Whether cells hold more than one number."""
        return any(len(cell.values) > 1 for row in self.cells for cell in row) or self.beside

    @property
    def beside(self) -> bool:
        """Whether published values stand beside measured ones."""
        return any(value.published for row in self.cells for cell in row for value in cell.values)


def one_line(text: str) -> str:
    """Without line breaks and control characters, which would break a table or command a terminal."""
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split())


def joined(cell: Cell, beside: bool, show: Callable[[Value], str]) -> str:
    """'97.5', '(99.1, –, 92.1)', '97.5 (98.1) −0.6 / – (92.1)', '– (98.1, 92.1)', or one dash."""
    if all(value.empty for value in cell.values):
        return DASH
    if beside and all(value.text == DASH for value in cell.values):
        return show(Value(published=", ".join(value.published or DASH for value in cell.values)))
    texts = [show(value) for value in cell.values]
    if beside:
        return " / ".join(texts)
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def labels_of(head: Header, escape: Callable[[str], str], mark: str) -> list[str]:
    """Its labels, the last one that is not empty followed by the letters of its notes."""
    labels = [escape(label) for label in head.labels]
    if head.notes:
        last = max((level for level, label in enumerate(labels) if label), default=0)
        labels[last] += mark.format(",".join(head.notes))
    return labels


def header(labels: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
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
