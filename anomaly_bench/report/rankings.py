"""The rankings of a leaderboard: records that may be compared, trained alike or not at all, the best method first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from anomaly_bench.files import safe_filename
from anomaly_bench.records.setups import dataset_title, describe, regime_words, setup_name, setups
from anomaly_bench.report.sections import known_metrics
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.entries import group_records
from anomaly_bench.tables.layout import Layout
from anomaly_bench.tables.schedule import reduced_budget
from anomaly_bench.tables.table import DASH, Cell, CellValue, Header

if TYPE_CHECKING:
    from anomaly_bench.metrics.registry import Metric
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.table import Table

SHORT = "trained for less than published"


@dataclass(frozen=True)
class Ranking:
    """Records of one setup that were all trained as published (or do not train), or all for less.

    Attributes:
        short: for less, or for an unknown share.
    """

    records: Sequence[Record]
    short: bool

    @property
    def page(self) -> str:
        """The name of the page of its dataset and regime, without suffix."""
        return safe_filename("-".join([self.records[0].dataset, *regime_words(self.records[0])]))

    @property
    def page_title(self) -> str:
        """'MVTec AD, few_shot 4'."""
        return ", ".join(filter(None, (dataset_title(self.records[0]), " ".join(regime_words(self.records[0])))))

    @property
    def key(self) -> str:
        """Its anchor on that page."""
        return setup_name(self.records[0]) + ("-short" if self.short else "")

    @property
    def title(self) -> str:
        return describe(self.records[0]) + (f", {SHORT}" if self.short else "")

    @cached_property
    def groups(self) -> list[ResultGroup]:
        """Its lines, in the order of tables."""
        return group_records(self.records, with_speed=False)

    def anchor(self, number: int) -> str:
        """Of a group's records on the page of its method."""
        return f"{self.key}-{number}"

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Those with values."""
        known = known_metrics(self.records).items()
        return {name: metric for name, metric in known if any(each.value(name) is not None for each in self.records)}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Metric -> its ranking, with links as seen from a page in a folder of the site."""
        return {name: self._table(metric) for name, metric in self.metrics.items()}

    def titles(self) -> list[tuple[str, str]]:
        """Name and title of each metric."""
        return [(name, metric.title) for name, metric in self.metrics.items()]

    @property
    def categories(self) -> int:
        """How many have records."""
        return len({record.category for record in self.records})

    @property
    def leader(self) -> str:
        """'PatchCore Lite0: image AUROC 99.1', by the first metric."""
        for name, table in self.tables.items():
            mean = table.cells[0][-1].values[0].text
            return f"{' '.join(filter(None, table.rows[0].labels))}: {self.metrics[name].title} {mean}"
        return DASH

    def _table(self, metric: Metric) -> Table:
        layout = Layout(f"{self.key}-{metric.name}", "", "methods", "categories", [metric.name], scale=100)
        (made,) = build_tables(self.records, layout)
        order, places = ranked([row[-1].values[0] for row in made.cells], metric.best)
        blank = ("",) * (len(made.columns[0].labels) - 1)
        columns = [Header((*blank, "Place")), *made.columns]
        rows = [replace(head, link=self._method(group)) for head, group in zip(made.rows, self.groups, strict=True)]
        cells = [[Cell((CellValue(places[line]),)), *self._linked(made, line, metric)] for line in range(len(rows))]
        caption = f"{metric.title}, {self.title}"
        return replace(made, caption=caption, columns=columns, rows=rows, cells=cells).in_order(order)

    def _method(self, group: ResultGroup) -> str:
        return f"../{method_page(group.sample.method)}"

    def _linked(self, made: Table, line: int, metric: Metric) -> Iterator[Cell]:
        """The cells of a line: one record's lead to it, means to the list of their records."""
        group = self.groups[line]
        for head, cell in zip(made.columns, made.cells[line], strict=True):
            if cell.values[0].text == DASH:
                yield cell
                continue
            found = [] if head.mean else group.records[head.labels[-1]]
            used = [record for record in found if group.read(record, metric.name) is not None]
            several = f"{self._method(group)}#{self.anchor(line)}"
            yield replace(cell, link=f"../{record_page(used[0])}" if len(used) == 1 else several)


def ranked(means: Sequence[CellValue], best: str) -> tuple[list[int], list[str]]:
    """The order of lines by their mean, those of most categories first, and the place of each.

    Only means over the most, and the same, categories have a place; equal ones as printed share it.
    """
    sign = 1 if best == "lowest" else -1

    def key(line: int) -> tuple[float, float]:
        number = means[line].number
        return -len(means[line].covered), float("inf") if number is None else sign * number

    order = sorted(range(len(means)), key=key)
    widest = means[order[0]].covered
    compared = [line for line in order if means[line].number is not None and means[line].covered == widest]
    numbers = [means[line].number for line in compared]
    places = dict.fromkeys(range(len(means)), DASH)
    if best:
        places |= {line: str(1 + numbers.index(means[line].number)) for line in compared}
    return order, [places[line] for line in range(len(means))]


def rankings(records: Iterable[Record]) -> list[Ranking]:
    """All rankings, by dataset and setup, records trained as published first."""
    found = []
    for part in setups(records):
        for short in (False, True):
            chosen = [record for record in part if bool(reduced_budget([record])) == short]
            found += [Ranking(chosen, short)] if chosen else []
    return found


def method_page(name: str) -> str:
    return f"methods/{safe_filename(name)}.html"


def record_page(record: Record) -> str:
    return record.path.with_suffix(".html").as_posix()
