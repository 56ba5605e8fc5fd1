"""Where the published tables contradict themselves and each other.

Printed values are compared; a finding's `cells` show how the CSV treats them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from statistics import fmean
from typing import TYPE_CHECKING

from anomaly_bench.published import MEANS, TABLES
from anomaly_bench.published.audit.columns import Finding, agree, column_pairs, copies, label_of, minus, printed_columns
from anomaly_bench.published.audit.orders import own_orders, shuffled

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.published.audit.columns import PrintedColumn

OWN_COUNTS = {  # million trained parameters without the backbone's, counted in networks built like the official code
    "cflow_ad": Decimal("81.65"),
    "cs_flow": Decimal("275.2"),
    "differnet": Decimal("172.08"),
    "fastflow": Decimal("41.34"),  # after the paper; there is no official code
}
SIGMAS = 3  # of the rows' rounding error, allowed for a printed mean


def find_contradictions(references: Iterable[Reference]) -> list[Finding]:
    """All findings in the order of CONTRADICTIONS; within a group certain ones first, then by weight."""
    cells = list(references)
    table = printed_columns(cells)
    findings = [
        *shuffled(table),
        *own_orders(table),
        *contradicting(table),
        *times(cells),
        *parameters(cells),
        *texts(table),
    ]
    findings += means(table, {cell for finding in findings if finding.group == "papers" for cell in finding.cells})
    order = list(CONTRADICTIONS)
    return sorted(findings, key=lambda finding: (order.index(finding.group), not finding.sure, -finding.weight))


CONTRADICTIONS = {
    "shuffled": "Shuffled columns",
    "papers": "Values that papers contradict each other in",
    "means": "Means that do not follow from their rows",
    "units": "Units",
    "text": "Text against table",
}


def contradicting(table: Sequence[PrintedColumn]) -> Iterator[Finding]:
    """Cells that differ between copies of one column."""
    clusters: dict[tuple[str, str, str], dict[str, PrintedColumn]] = defaultdict(dict)
    copied = [pair for pair in column_pairs(table) if copies(*pair)]
    wrong = {
        (one.head.method, one.head.metric, category)
        for one, other in copied
        for category in one.cells
        if category in other.cells and not agree(one, other, category)
    }
    for column in itertools.chain.from_iterable(copied):
        for category in column.cells:
            if (column.head.method, column.head.metric, category) in wrong:
                clusters[column.head.method, column.head.metric, category][column.place] = column
    for (_, _, category), places in clusters.items():
        yield contradiction(category, list(places.values()))


def contradiction(category: str, printing: Sequence[PrintedColumn]) -> Finding:
    """One cell, in all columns that print it."""
    values: dict[Decimal, list[PrintedColumn]] = defaultdict(list)
    for column in printing:
        values[column.number(category)].append(column)
    numbers = sorted(values, key=lambda number: (len(values[number]), -number))  # rarest first
    evidence = [f"{number}: {'; '.join(column.place for column in values[number])}" for number in numbers]
    rarest = len(values[numbers[0]])
    for column in [each for number in numbers if len(values[number]) == rarest for each in values[number]]:
        if category in MEANS:
            evidence.append(f"{column.place}: its rows give {column.mean(category):.2f}.")
        elif "mean:all" in column.cells:
            rest = column.mean("mean:all") - column.number(category) / len(column.rows)
            would = ", ".join(f"{rest + number / len(column.rows):.2f} with {number}" for number in numbers)
            evidence.append(f"{column.place}: it prints a mean of {column.number('mean:all')}; its rows give {would}.")
    shortest = min((column.head.printed_name for column in printing), key=len)
    return Finding(
        "papers",
        f"{shortest}, {printing[0].metric} of {label_of(category)}: {' or '.join(map(str, numbers))}",
        float(max(numbers) - min(numbers)),
        tuple(evidence),
        tuple(column.cells[category] for column in printing),
    )


def other_runs(table: Sequence[PrintedColumn]) -> list[tuple[PrintedColumn, PrintedColumn]]:
    """Columns of one method in two papers that are not copies of each other, nor of a neighbour in those tables."""
    found = list(column_pairs(table))
    copied = {(one.head.table, other.head.table, one.head.method) for one, other in found if copies(one, other)}
    return [pair for pair in found if (pair[0].head.table, pair[1].head.table, pair[0].head.method) not in copied]


def means(table: Iterable[PrintedColumn], known: set[Reference]) -> Iterator[Finding]:
    """Printed means that differ from the mean of the printed rows; `known` cells are left out."""
    last_digit: list[tuple[str, Reference]] = []
    for column in table:
        wrong: list[tuple[float, str, Reference]] = []
        for mean, cell in column.cells.items():
            if mean not in MEANS or cell in known or not column.averaged(mean):
                continue
            off = float(abs(column.mean(mean) - column.number(mean)))
            rounding = float(column.step(mean)) / 2
            given = f"{column.mean(mean):.{column.digits(mean) + 1}f}"
            text = f"{label_of(mean)} printed {column.number(mean)}, rows give {given}"
            if off > tolerance(column, mean):
                wrong.append((off - rounding, text, cell))
            elif off > rounding:
                last_digit.append((f"{column.place}, {column.metric}: {text}", cell))
        if wrong:
            yield Finding(
                "means",
                f"{column.place}: {column.metric}, {'; '.join(text for _, text, _ in wrong)}",
                max(off for off, _, _ in wrong),
                tuple(
                    f"{label_of(mean)}: rounding explains a difference of {tolerance(column, mean):.2g}."
                    for mean in (cell.category for _, _, cell in wrong)
                ),
                tuple(cell for _, _, cell in wrong),
            )
    if last_digit:
        lines, cells = zip(*last_digit, strict=True)
        yield Finding("means", f"{len(cells)} means are off in the last digit, as rounded rows allow", 0, lines, cells)


def tolerance(column: PrintedColumn, mean: str) -> float:
    """Half of the mean's last digit, plus SIGMAS standard deviations of the rows' rounding error."""
    rows = column.averaged(mean)
    return float(column.step(mean)) / 2 + SIGMAS * float(column.step(rows[0])) / math.sqrt(12 * len(rows))


def times(references: Iterable[Reference]) -> Iterator[Finding]:
    """Tables whose times are 1000/FPS for some methods only."""
    measured: dict[str, dict[str, dict[str, Reference]]] = defaultdict(lambda: defaultdict(dict))
    for cell in references:
        if cell.metric in ("fps", "time_ms") and cell.number:
            measured[cell.table][cell.printed_name][cell.metric] = cell
    for table, methods in measured.items():
        rests = {name: remainder(cells["fps"], cells["time_ms"]) for name, cells in methods.items() if len(cells) == 2}
        part = [name for name, (least, _, most) in rests.items() if not least <= 0 <= most]
        if not part or len(part) == len(rests):
            continue
        usual = fmean(rests[name][1] for name in part)
        either = [name for name in rests if name not in part and rests[name][0] <= usual <= rests[name][2]]
        whole = [name for name in rests if name not in (*part, *either)]
        lines = [
            f"{name}: 1000/{methods[name]['fps'].printed} − {methods[name]['time_ms'].printed} = "
            f"{minus(middle, 1)} ms (with rounding {minus(least, 1)} to {minus(most, 1)})."
            for name, (least, middle, most) in rests.items()
        ]
        yield Finding(
            "units",
            f"{TABLES[table].title}: Time (ms) is {usual:.0f} ms less than 1000/FPS for {', '.join(part)}, and just "
            f"1000/FPS for {', '.join(whole)}" + (f" ({', '.join(either)}: too coarse to tell)" if either else ""),
            math.inf,
            (*lines, "A rest that does not depend on the method can be the backbone's time: it is in one column only."),
            tuple(methods[name]["time_ms"] for name in rests),
        )


def remainder(fps: Reference, time: Reference) -> tuple[float, float, float]:
    """1000/FPS - time in ms: the minimum that rounding allows, the printed value, the maximum."""
    images, milliseconds = Decimal(fps.printed), Decimal(time.printed)
    half, slack = half_digit(fps.printed), half_digit(time.printed)
    return (
        float(1000 / (images + half) - milliseconds - slack),
        float(1000 / images - milliseconds),
        float(1000 / (images - half) - milliseconds + slack),
    )


def half_digit(printed: str) -> Decimal:
    """Half of the last digit of a number such as "5.00"."""
    return Decimal("0.5").scaleb(-len(printed.partition(".")[2]))


def parameters(references: Iterable[Reference]) -> Iterator[Finding]:
    """Tables that print millions of parameters under a header that says MB."""
    counted: dict[str, list[Reference]] = defaultdict(list)
    for cell in references:
        if cell.metric == "extra_params" and cell.method in OWN_COUNTS and cell.number:
            counted[cell.table].append(cell)
    for table, cells in counted.items():
        near = [cell for cell in cells if abs((cell.number or 0) - OWN_COUNTS[cell.method]) < Decimal("0.5")]
        far = [cell for cell in cells if cell not in near]
        if near:
            yield Finding(
                "units",
                f"{TABLES[table].title}: Extra parameters (MB) are millions of parameters",
                math.inf,
                tuple(
                    f"{cell.printed_name}: printed {cell.printed}; the network has {OWN_COUNTS[cell.method]} million "
                    f"trained parameters, {4 * OWN_COUNTS[cell.method]:.1f} MB in fp32"
                    + (": it is neither." if cell in far else ".")
                    for cell in (*near, *far)
                ),
                tuple(cells),
            )


def texts(table: Sequence[PrintedColumn]) -> Iterator[Finding]:
    """Statements in the papers that their own tables contradict (after repair)."""
    yield from lead(_columns_of(table, "padim2020_IV", "pixel_auroc"), "", "PaDiM-R18-Rd100", Decimal("2.1"))
    yield from lead(_columns_of(table, "padim2020_III", "pixel_auroc"), "mean:all", "PaDiM-R18-Rd100", Decimal("0.2"))
    yield from beaten(_columns_of(table, "npad2022_1", "pixel_auroc"), "N-pad", ("carpet", "grid", "screw"))
    yield from beaten(_columns_of(table, "npad2022_2", "pro"), "N-pad", ("carpet", "grid", "screw", "zipper"))
    yield from variant_ahead(_columns_of(table, "zheng2022_5", "image_auroc"), "RGB only")


def _columns_of(table: Iterable[PrintedColumn], name: str, metric: str) -> dict[str, PrintedColumn]:
    """Printed name and variant -> column, of one table."""
    wanted = [column for column in table if (column.head.table, column.head.metric) == (name, metric)]
    return {f"{column.head.printed_name} {column.head.variant}".strip(): column for column in wanted}


def value(cell: Reference) -> Decimal:
    """The repaired value."""
    return Decimal(str(cell.value))


def lead(table: dict[str, PrintedColumn], category: str, winner: str, said: Decimal) -> Iterator[Finding]:
    """The text says by how much the winner is ahead of all other methods."""
    if winner not in table:
        return
    own = table[winner].cells[category]
    second = max((c.cells[category] for c in table.values() if c.head.method != own.method), key=value)
    found = value(own) - value(second)
    if found != said:
        repaired = f" (printed {second.printed})" if second.comment else ""
        yield Finding(
            "text",
            f"{TABLES[own.table].title}: the text has {winner} lead by {said} points, the table by {found}",
            float(abs(found - said)),
            (f"{winner} {value(own)}, next {second.printed_name} {value(second)}{repaired}.",),
            (own, second),
        )


def beaten(table: dict[str, PrintedColumn], winner: str, said: Sequence[str]) -> Iterator[Finding]:
    """The text says in which categories another method is better."""
    if winner not in table:
        return
    own = table[winner].cells
    best = {row: max((column.cells[row] for column in table.values()), key=value) for row in table[winner].rows}
    behind = {row: value(top) - value(own[row]) for row, top in best.items() if value(top) > value(own[row])}
    unsaid = [row for row in behind if row not in said]
    if unsaid or len(behind) < len(said):
        yield Finding(
            "text",
            f"{TABLES[table[winner].head.table].title}: the text has {winner} beaten in {', '.join(said)} only; "
            f"in the table it is in {', '.join(behind)}",
            float(max((behind[row] for row in unsaid), default=Decimal())),
            (
                *(
                    f"{label_of(row)}: {best[row].printed_name} {best[row].printed}, {winner} {own[row].printed}."
                    for row in unsaid
                ),
                *(f"{label_of(row)}: {winner}'s {own[row].printed} is the best." for row in said if row not in behind),
            ),
        )


def variant_ahead(table: dict[str, PrintedColumn], variant: str) -> Iterator[Finding]:
    """The text says that every method of a variant is better on average than all the others of the table."""
    means = {name: column.cells["mean:all"] for name, column in table.items()}
    top = max((cell for cell in means.values() if cell.variant != variant), key=value, default=None)
    for cell in means.values():
        if top is not None and cell.variant == variant and value(cell) < value(top):
            yield Finding(
                "text",
                f"{TABLES[cell.table].title}: the text has every method of {variant} above every baseline; "
                f"{cell.printed_name} is below one",
                float(value(top) - value(cell)),
                (f"Means: {cell.printed_name} {value(cell)}, {top.printed_name} ({top.variant}) {value(top)}.",),
            )
