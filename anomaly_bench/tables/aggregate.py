"""What stands in a cell: measured means over categories and seeds, published numbers, and which of them is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from anomaly_bench.records.setups import describe
from anomaly_bench.tables import papers
from anomaly_bench.tables.entries import place
from anomaly_bench.tables.layout import COST, SPEED, TEXTS, TIMES, metric_of
from anomaly_bench.tables.table import BEST, DASH, SECOND, Value

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.axes import AxisItem
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.layout import Column

EXTRACTION = "fit: the backbone's part was timed when features were put into the cache"


@dataclass
class Found:
    """An entry of a cell before it is printed.

    Attributes:
        number: in the table's unit, as precise as printed; None where there is none, or a text.
        covered: the categories that it is a mean of.
        facts: by kind, for the footnotes.
    """

    measure: Column
    text: str = DASH
    number: float | None = None
    covered: frozenset[str] = frozenset()
    facts: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    published: str = ""
    gap: str = ""
    grade: str = ""

    @property
    def value(self) -> Value:
        return Value(self.text, self.rank, self.published, self.gap, self.grade)


def measured(measure: Column, line: AxisItem, wanted: Sequence[str], averaged: bool) -> Found:
    """The mean over categories of the mean over seeds, of what was measured."""
    entry = line.entry
    if entry is None or measure.value in TEXTS:
        return Found(measure) if entry is None else Found(measure, entry.text(measure.value))
    values, used = by_seed(entry, measure.value, wanted)
    if not used:
        return Found(measure)
    mean = fmean(fmean(seeds.values()) for seeds in values.values()) * measure.scale
    facts = {"count": _count_fact(values, wanted, averaged), "seeds": seeds_fact(values)}
    facts |= _source_facts(measure.value, used, line)
    text = f"{mean:.{measure.digits}f}"
    return Found(measure, text + _deviation(measure, values), float(text), frozenset(values), facts)


def by_seed(entry: ResultGroup, name: str, wanted: Iterable[str]) -> tuple[dict[str, dict[int, float]], list[Record]]:
    """Category -> seed -> one number of an entry's records, where they have it; and these records."""
    values: dict[str, dict[int, float]] = {}
    used: list[Record] = []
    for category in wanted:
        for record in entry.records.get(category, ()):
            number = entry.read(record, name)
            if number is not None:
                values.setdefault(category, {})[record.seed] = number
                used.append(record)
    return values, used


def _deviation(measure: Column, values: Mapping[str, Mapping[int, float]]) -> str:
    """' ± 0.3': the sample standard deviation over seeds of the mean over categories, where these share their seeds."""
    seeds = set.intersection(*(set(each) for each in values.values()))
    if not measure.deviation or len(seeds) < 2 or any(len(each) != len(seeds) for each in values.values()):
        return ""
    means = [fmean(each[seed] for each in values.values()) for seed in seeds]
    return f" ± {stdev(means) * measure.scale:.{measure.digits}f}"


def _count_fact(covered: Iterable[str], wanted: Sequence[str], averaged: bool) -> str:
    """'mean of 2 of 15 categories', with names where no row shows which; '' for a full mean among rows."""
    names, missing = list(covered), [name for name in wanted if name not in covered]
    mean = "mean of " * (len(names) > 1)
    if not missing:
        return f"{mean}{len(names)} categories" if averaged and mean else ""
    which = f" ({', '.join(names)})" if len(names) <= 3 else ""
    which = f" (without {', '.join(missing)})" if len(missing) <= 2 < len(names) else which
    return f"{mean}{len(names)} of {len(wanted)} categories{which * averaged}"


def seeds_fact(values: Mapping[str, Mapping[int, float]]) -> str:
    """'mean of 3 seeds (0, 1, 2)', or that categories have different ones."""
    kinds = {tuple(sorted(seeds)) for seeds in values.values()}
    least, most = min(map(len, kinds)), max(map(len, kinds))
    if len(kinds) == 1:
        listed = ", ".join(map(str, *kinds))
        return f"seed {listed}" if most == 1 else f"mean of {most} seeds ({listed})"
    if least == most:
        return "seeds differ between categories" + (f" ({most} each)" if most > 1 else "")
    return f"mean of {least} to {most} seeds, which differ between categories"


def _source_facts(name: str, records: Sequence[Record], line: AxisItem) -> dict[str, str]:
    """The setup, where a speed or cost was measured, and whether a metric was computed by an earlier revision."""
    facts = {"setup": describe(records[0])}
    if name in SPEED:
        beside = any(line.entry and line.entry.timing(each).get("alone") is False for each in records)
        facts |= {"alone": "timed while other jobs computed on the machine" if beside else ""}
        return facts if line.section else {**facts, "speed": f"speed: {line.entry.setting}" if line.entry else ""}
    if name in COST:
        places = {place(str(each.cost.get("device")), each.cost.get("threads")) for each in records}
        facts["cost"] = f"fit and memory: {'; '.join(sorted(places))}"
        cached = any(each.cost.get("extraction", {}).get("cached") for each in records)
        return {**facts, "extraction": EXTRACTION * cached} if name in TIMES else facts
    metric = metric_of(name)
    if metric is None:
        return facts
    oldest = min(record.metrics[name]["revision"] for record in records)
    outdated = f"outdated (revision {oldest}, now {metric.revision})" if oldest < metric.revision else ""
    return {**facts, "metric": outdated}


def reported(measure: Column, line: AxisItem, key: str) -> Found:
    """What the paper prints."""
    cell = line.printed.find(key, measure) if line.printed else None
    if cell is None or line.printed is None:
        return Found(measure)
    facts = papers.facts_of(line.printed, cell)
    number = papers.number_of(cell, measure)
    return Found(measure, papers.text_of(cell), number, frozenset((key,)), facts if cell.printed != "-" else {})


def with_published(measure: Column, line: AxisItem, key: str, wanted: Sequence[str], averaged: bool) -> Found:
    """What was measured, what the paper prints (repaired), and the gap."""
    found, cell = measured(measure, line, wanted, averaged), line.printed.find(key, measure) if line.printed else None
    if cell is None or line.printed is None:
        return found
    number, theirs = papers.number_of(cell, measure), reported(measure, line, key)
    repaired = papers.is_repaired(cell)
    found.published = f"{number:.{measure.digits}f}" if repaired else theirs.text.replace(DASH, "")
    found.facts |= theirs.facts
    if found.number is not None and number is not None and line.entry is not None:
        differences = papers.differences(line.printed, cell, line.entry.sample, measure)
        found.facts |= {kind: differences.get(kind, "") for kind in papers.DIFFERENCES}
        gap = round(found.number - number, measure.digits)
        found.gap = f"{gap:+.{measure.digits}f}".replace("-", "−") if gap else f"±{0:.{measure.digits}f}"
        found.grade = "unlike" if differences or set(wanted) - found.covered else _grade(gap, measure.best)
    return found


def _grade(gap: float, best: str) -> str:
    if not gap or not best:
        return "even"
    return "better" if (gap > 0) == (best == "highest") else "worse"


def rank(lines: Sequence[AxisItem], across: Sequence[Sequence[list[Found]]], second: bool) -> None:
    """Rank values over the methods of a section; `second`: mark the second best too."""
    for cells in across:
        for section in {line.section for line in lines}:
            compared = [cell for line, cell in zip(lines, cells, strict=True) if line.section == section]
            for values in zip(*compared, strict=True):
                _rank([value for value in values if value.number is not None], second)


def _rank(values: Sequence[Found], second: bool) -> None:
    """As printed, so that equal prints tie; only what covers the most categories, and the same, on one machine."""
    widest = max((len(value.covered) for value in values), default=0)
    compared = [value for value in values if len(value.covered) == widest]
    kinds = ("cost", "speed", "setup")
    alike = len({(value.covered, *(value.facts.get(kind) for kind in kinds)) for value in compared}) == 1
    if len(compared) < 2 or not alike or not compared[0].measure.best:
        return
    numbers = [value.number for value in compared if value.number is not None]
    order = sorted(set(numbers), reverse=compared[0].measure.best == "highest")
    marked = order[: SECOND if second and len(numbers) > 2 else BEST]
    for value in compared:
        value.rank = marked.index(value.number) + 1 if value.number in marked else 0
