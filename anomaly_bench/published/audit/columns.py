"""Shared by the checks of published tables: columns of printed numbers, pairs of columns, findings."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from anomaly_bench.metrics.registry import packaged_metrics
from anomaly_bench.published import MEANS, TABLES

if TYPE_CHECKING:
    from anomaly_bench.published import Reference

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper")
LEAST_ROWS = 10  # two columns must share this many to be compared
SAME_NUMBERS = 2 / 3  # share of equal rows from which columns count as copies of one source


@dataclass(frozen=True)
class PrintedColumn:
    """The printed numbers of one method and metric in one table, category -> cell, in the printed order."""

    cells: Mapping[str, Reference]

    @property
    def head(self) -> Reference:
        """Any cell, for the attributes they all share."""
        return next(iter(self.cells.values()))

    @property
    def place(self) -> str:
        variant = f" ({self.head.variant})" if self.head.variant else ""
        return f"{self.head.printed_name}{variant} in {TABLES[self.head.table].title}"

    @property
    def metric(self) -> str:
        return packaged_metrics()[self.head.metric].title

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(category for category in self.cells if category not in MEANS)

    def number(self, category: str) -> Decimal:
        number = self.cells[category].number
        assert number is not None, "`printed_columns` leaves dashes out"
        return number

    def step(self, category: str) -> Decimal:
        """The last printed digit of the rows, or the means; trailing zeros common to all do not count."""
        rows = Decimal(10) ** min(exponent(self.number(name)) for name in self.rows or self.cells)
        means = [exponent(self.number(name)) for name in self.cells if name in MEANS]
        return rows if category not in MEANS else min(rows, Decimal(10) ** min(means))

    def digits(self, category: str) -> int:
        """Decimals of `step`."""
        return -exponent(self.step(category))

    def averaged(self, mean: str) -> tuple[str, ...]:
        """The rows that a mean averages."""
        group = {"mean:textures": TEXTURES, "mean:objects": OBJECTS}.get(mean, self.rows)
        return tuple(name for name in self.rows if name in group)

    def mean(self, mean: str) -> Decimal:
        rows = self.averaged(mean)
        return sum((self.number(name) for name in rows), Decimal()) / len(rows)

    def read(self, order: Sequence[str]) -> dict[str, Decimal]:
        """The printed rows, read as if the categories were in another order."""
        return dict(zip(order, map(self.number, self.rows), strict=True))

    def printed(self) -> dict[str, Decimal]:
        return self.read(self.rows)


@dataclass(frozen=True)
class Finding:
    """A contradiction.

    Attributes:
        group: a key of CONTRADICTIONS.
        weight: the error in percentage points; infinite for a wrong unit.
        cells: the cells concerned.
        table: text rows, the first a header; may be empty.
        sure: certain rather than probable.
    """

    group: str
    title: str
    weight: float
    evidence: tuple[str, ...]
    cells: tuple[Reference, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    sure: bool = True


def printed_columns(references: Iterable[Reference]) -> list[PrintedColumn]:
    """The columns of accuracies, without dashes and columns of dashes only."""
    grouped: dict[tuple[str, ...], dict[str, Reference]] = defaultdict(dict)
    for cell in references:
        if cell.metric in packaged_metrics() and cell.number is not None:
            grouped[cell.table, cell.printed_name, cell.variant, cell.metric][cell.category] = cell
    return [PrintedColumn(cells) for cells in grouped.values()]


def column_pairs(table: Sequence[PrintedColumn]) -> Iterator[tuple[PrintedColumn, PrintedColumn]]:
    """Columns of one method and metric in two papers with enough rows in common."""
    for one, other in itertools.combinations(table, 2):
        a, b = one.head, other.head
        alike = (a.method, a.metric, a.dataset, a.variant) == (b.method, b.metric, b.dataset, b.variant)
        known = a.backbone == b.backbone or not (a.backbone and b.backbone)
        if alike and known and a.source != b.source and len(shared(one, other)) >= LEAST_ROWS:
            yield one, other


def shared(one: PrintedColumn, other: PrintedColumn) -> list[str]:
    return [category for category in one.rows if category in other.rows]


def agree(one: PrintedColumn, other: PrintedColumn, category: str) -> bool:
    """Equal, or one is the other rounded to fewer digits."""
    steps = one.step(category), other.step(category)
    slack = max(steps) / 2 if steps[0] != steps[1] else 0
    return abs(one.number(category) - other.number(category)) <= slack


def copies(one: PrintedColumn, other: PrintedColumn) -> bool:
    rows = shared(one, other)
    return sum(agree(one, other, row) for row in rows) >= SAME_NUMBERS * len(rows)


def label_of(category: str) -> str:
    return MEANS.get(category, category.replace("_", " "))


def minus(number: float, places: int = 2) -> str:
    """Format with a typographic minus sign, and without a sign before zero."""
    return f"{number:z.{places}f}".replace("-", "−")


def exponent(number: Decimal) -> int:
    """The exponent of the last nonzero digit, at most 0."""
    power = number.normalize().as_tuple().exponent
    assert isinstance(power, int), "the loader lets finite numbers in only"
    return min(power, 0)
