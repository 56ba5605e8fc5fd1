"""Detect columns printed next to the wrong rows, by trying a few named category orders."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from operator import mul
from statistics import correlation, fmean, pstdev
from typing import TYPE_CHECKING, NamedTuple

from anomaly_bench.published.audit.columns import OBJECTS, TEXTURES, Finding, column_pairs, label_of, minus

if TYPE_CHECKING:
    from anomaly_bench.published.audit.columns import PrintedColumn

DRAEM_ORDER = (
    *("bottle", "capsule", "grid", "leather", "pill", "tile", "transistor", "zipper"),
    *("cable", "carpet", "hazelnut", "metal_nut", "screw", "toothbrush", "wood"),
)
ORDERS = {
    "alphabetical order": tuple(sorted(TEXTURES + OBJECTS)),
    "the order with textures first": TEXTURES + OBJECTS,
    "the order with objects first": OBJECTS + TEXTURES,
    "the order of DRAEM's tables": DRAEM_ORDER,
    "the order of DifferNet's table": tuple(sorted(DRAEM_ORDER, key=lambda name: name not in TEXTURES)),
}


class Own(NamedTuple):
    """The row order of a method's own paper, and a value from it that is known from elsewhere."""

    order: str
    basis: str
    category: str
    value: Decimal
    known_from: str


OWN_ORDERS = {
    "differnet": Own(
        "the order of DifferNet's table",
        "This order is recalled, not looked up; it is that of DRAEM's tables with the textures moved to the front.",
        "grid",
        Decimal("84.0"),
        "issue 12 of marco-rudolph/differnet on GitHub quotes the paper's value for",
    )
}
DOUBTFUL = 0.5  # correlation below which two papers' columns of one method are examined
DRAWS = 10_000  # random orders
RARE = 0.01  # share of random orders that may fit another paper's column as well as a named order
PROBABLE = 0.05  # share that may fit the other methods as well as the own paper's order


def shuffled(table: Sequence[PrintedColumn]) -> Iterator[Finding]:
    """Columns that match another paper's column of the same method only when the rows are reordered."""
    for pair in column_pairs(table):
        if fit(pair[0].printed(), pair[1].printed()) >= DOUBTFUL:
            continue
        column, witness = sorted(pair, key=lambda each: profile_fit(table, each))  # the odd one out is shuffled
        named_orders = orders_of(column)
        if not named_orders:
            continue
        fits = {name: fit(ranks(column.read(order)), ranks(witness.printed())) for name, order in named_orders.items()}
        order = max(fits, key=lambda name: fits[name])
        chance = chance_fits(ranks(column.printed()), ranks(witness.printed()), fits[order], groups=False)
        if chance >= RARE * DRAWS:
            continue
        printed, read = (fit(numbers, witness.printed()) for numbers in (column.printed(), column.read(ORDERS[order])))
        evidence = (
            f"Correlation with {witness.place}: {minus(printed)} as printed, {minus(read)} in {order}.",
            fit_sentence("it", fit(ranks(column.printed()), ranks(witness.printed())), fits[order], order, chance),
            profile_evidence(table, column, order, groups=False)[1],
            f"{witness.place} agrees with the other methods as printed ({minus(profile_fit(table, witness))}): "
            "the fault is not there.",
        )
        yield misplaced(column, order, evidence, witness)


def own_orders(table: Sequence[PrintedColumn]) -> Iterator[Finding]:
    """Columns probably in the row order of the method's own paper, tested only against other methods."""
    for column in table:
        own = OWN_ORDERS.get(column.head.method)
        if own is None or own.order not in orders_of(column):
            continue
        read = column.read(ORDERS[own.order])
        lift = profile_fit(table, column, ORDERS[own.order]) - profile_fit(table, column)
        chance, others = profile_evidence(table, column, own.order, groups=True)
        if lift <= 0 or chance >= PROBABLE * DRAWS:
            continue
        better = [other.place for other in table if other is not column and gain(table, other) >= lift]
        evidence = (
            others,
            f"That is weak evidence: {len(better)} other columns gain as much by one of the orders tried"
            + (f" ({'; '.join(better)})" if better else "")
            + ", and no other paper here prints this method.",
            f"Stronger, from outside: {own.known_from} {label_of(own.category)}, {own.value}. Here that category has "
            f"{column.number(own.category)} as printed, {read[own.category]} in {own.order}.",
            own.basis,
        )
        yield misplaced(column, own.order, evidence)


def orders_of(column: PrintedColumn) -> dict[str, tuple[str, ...]]:
    """The named orders that have exactly its rows."""
    return {name: order for name, order in ORDERS.items() if set(order) == set(column.rows)}


def profile_evidence(
    table: Sequence[PrintedColumn], column: PrintedColumn, order: str, *, groups: bool
) -> tuple[int, str]:
    """How well a reordered column fits: the number of random orders that fit as well, and a sentence."""
    printed, read = profile_fit(table, column), profile_fit(table, column, ORDERS[order])
    chance = chance_fits(ranks(column.printed()), profile(table, column), read, groups=groups)
    kept = " that keep textures and objects apart" if groups else ""
    return chance, fit_sentence("the mean rank of the other methods", printed, read, order, chance, kept)


def fit_sentence(what: str, printed: float, read: float, order: str, chance: int, kept: str = "") -> str:
    return (
        f"Correlation of ranks with {what}: {minus(printed)} as printed, {minus(read)} in {order}, "
        f"which {chance} of {DRAWS} random orders{kept} reach."
    )


def gain(table: Sequence[PrintedColumn], column: PrintedColumn) -> float:
    """How much the best order raises the rank correlation of an unrepaired column."""
    if not orders_of(column) or any(cell.comment for cell in column.cells.values()):
        return 0.0
    others = profile(table, column)
    fits = [fit(ranks(column.read(order)), others) for order in (column.rows, *orders_of(column).values())]
    return max(fits) - fits[0]


def misplaced(
    column: PrintedColumn, order: str, evidence: tuple[str, ...], witness: PrintedColumn | None = None
) -> Finding:
    """The finding of a shuffled column; only probable without a witness."""
    read = column.read(ORDERS[order])
    header = ("category", "printed", f"in {order}", *([witness.place] if witness else []))
    rows = [
        (label_of(row), str(column.number(row)), str(read[row]), *([str(witness.number(row))] if witness else []))
        for row in column.rows
    ]
    return Finding(
        "shuffled",
        f"{column.place}: its {column.metric} {'stands' if witness else 'probably stands'} in {order}, the rows do not",
        max(abs(float(column.number(row) - read[row])) for row in column.rows),
        evidence,
        tuple(column.cells.values()),
        (header, *rows),
        sure=witness is not None,
    )


def fit(one: Mapping[str, Decimal | float], other: Mapping[str, Decimal | float]) -> float:
    """Pearson's correlation over shared categories; 0 if either is constant."""
    rows = [row for row in one if row in other]
    left, right = [float(one[row]) for row in rows], [float(other[row]) for row in rows]
    return correlation(left, right) if len(set(left)) > 1 and len(set(right)) > 1 else 0.0


def ranks(numbers: Mapping[str, Decimal | float]) -> dict[str, float]:
    """Category -> rank from 1; ties share their mean rank."""
    values = sorted(numbers.values())
    return {name: values.index(value) + (values.count(value) + 1) / 2 for name, value in numbers.items()}


def profile(table: Iterable[PrintedColumn], column: PrintedColumn) -> dict[str, float]:
    """Category -> its mean rank among the categories, over the other methods with that metric (repaired values)."""
    methods: dict[str, list[dict[str, float]]] = defaultdict(list)
    for other in table:
        a, b = column.head, other.head
        whole = set(other.rows) == set(column.rows)
        if whole and a.method != b.method and (a.metric, a.dataset) == (b.metric, b.dataset):
            methods[b.method].append(ranks({row: other.cells[row].value or 0.0 for row in other.rows}))
    rows = column.rows if methods else ()
    return {row: fmean(fmean(each[row] for each in ranked) for ranked in methods.values()) for row in rows}


def profile_fit(table: Sequence[PrintedColumn], column: PrintedColumn, order: Sequence[str] | None = None) -> float:
    """Correlation of a column's ranks, read in an order, with those of the other methods."""
    return fit(ranks(column.read(order or column.rows)), profile(table, column))


def chance_fits(column: Mapping[str, float], witness: Mapping[str, float], reached: float, *, groups: bool) -> int:
    """How many of DRAWS random orders correlate as well; groups: textures and objects are shuffled separately.

    Reordering changes neither mean nor variance, so comparing sums of products suffices.
    """
    rows = sorted(column, key=lambda name: groups and name not in TEXTURES)
    left, right = [column[row] for row in rows], [witness[row] for row in rows]
    kept = sum(row in TEXTURES for row in rows) if groups else 0
    least = len(rows) * (fmean(left) * fmean(right) + reached * pstdev(left) * pstdev(right)) - 1e-6
    generator = random.Random(0)
    found = 0
    for _ in range(DRAWS):
        drawn = generator.sample(left[:kept], kept) + generator.sample(left[kept:], len(left) - kept)
        found += sum(map(mul, drawn, right)) >= least
    return found
