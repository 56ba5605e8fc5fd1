"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from anomaly_bench.comparison.significance import LEAST_CATEGORIES, metric_title, paired_differences
from anomaly_bench.records.setups import all_categories
from anomaly_bench.tables.aggregate import seeds_fact
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.layout import Layout
from anomaly_bench.tables.table import DASH, Header, Table

if TYPE_CHECKING:
    from anomaly_bench.comparison.pairing import Comparison
    from anomaly_bench.comparison.significance import Difference

DIGITS = 2
MEAN = "mean of shared categories"
TEST = (
    "p: Wilcoxon's signed-rank test over categories, two-sided, on means over seeds (scipy). Zero differences are "
    "dropped, ties share their rank. Exact, except beyond 13 categories with zeros or ties, or beyond 50 categories, "
    "where the normal approximation is used."
)
TOO_FEW = (
    f"No p-value below {LEAST_CATEGORIES} categories: with {LEAST_CATEGORIES - 1} the smallest the test can give "
    f"is {2 ** (2 - LEAST_CATEGORIES):g}, whatever the numbers."
)
UNLIKE = "No p-value where only one of two methods was trained as published."


def comparison_tables(found: Comparison, metrics: Sequence[str], folders: bool) -> Iterator[Table]:
    """Per metric a table by category, with a and b side by side or all methods; then the table of pairs."""
    values = {metric: paired_differences(found.pairs, metric) for metric in metrics}
    for metric, compared in values.items():
        if compared:
            yield folders_table(found, metric, compared) if folders else methods_table(found, metric)
    yield pairs_table(found, values)


def methods_table(found: Comparison, metric: str) -> Table:
    """All methods by category, as `anomaly-bench tables` prints them."""
    caption = "{dataset}, {setup}: {cells} (in %)"
    layout = Layout(f"compare-{metric}", caption, "categories", "methods", [metric], scale=100, digits=DIGITS)
    (table,) = build_tables(found.records, layout, mixed=found.mixed)
    return table


def folders_table(found: Comparison, metric: str, values: Sequence[Difference]) -> Table:
    """a, b and b − a of every pair; means are over shared categories."""
    heads: list[tuple[str, ...]] = []
    columns: list[Mapping[str, str]] = []
    for each in values:
        names = [each.pair.first.entry.name, each.pair.second.entry.name]
        heads += zip((*names, names[0] if names[0] == names[1] else ""), ("a", "b", "b − a"), strict=True)
        for part, mean in zip((each.first, each.second), each.means, strict=True):
            columns.append({**{name: number(value) for name, value in part.items()}, MEAN: number(mean)})
        columns.append({**{name: signed(value) for name, value in each.values.items()}, MEAN: signed(each.mean)})
    categories = [name for name in all_categories(found.records) if any(name in column for column in columns)]
    rows = [
        (Header((name,), opens=name == MEAN, mean=name == MEAN), [column.get(name, DASH) for column in columns])
        for name in (*categories, MEAN)
    ]
    caption = f"{found.title}: {metric_title(metric, found.records)} (in %)"
    return Table.of_rows(f"compare-{metric}", caption, ("Category",), heads, rows, sentences(seed_notes(values)))


def seed_notes(values: Sequence[Difference]) -> list[str]:
    """Which seeds are averaged; per side if they differ."""
    sides = {side.name: side.seeds(each.metric) for each in values for side in (each.pair.first, each.pair.second)}
    facts = {name: seeds_fact(seeds) if seeds else "no value" for name, seeds in sides.items()}
    if len(set(facts.values())) == 1:
        fact = next(iter(facts.values()))
        return [fact[:1].upper() + fact[1:]]
    return [f"{name}: {fact}" for name, fact in facts.items()]


def pairs_table(found: Comparison, values: Mapping[str, Sequence[Difference]]) -> Table:
    """Every pair's mean difference, number of categories where it is higher or lower, and p-value."""
    tests = max(sum(each.p is not None for each in part) for part in values.values())
    heads = [("", "Mean"), *(("Categories", name) for name in ("all", "higher", "equal", "lower")), ("", "Seeds")]
    heads += [("Wilcoxon", "p"), *([("Wilcoxon", "p (Holm)")] if tests > 1 else [])]
    rows: list[tuple[Header, Sequence[str]]] = []
    titles = {metric: metric_title(metric, found.records) for metric in values}
    for metric, part in values.items():
        for place, each in enumerate(each for each in part if each.values):
            head = Header((titles[metric], each.pair.name), opens=place == 0 and bool(rows))
            rows.append((head, pair_texts(each)[: len(heads)]))
    caption = f"{found.title}: mean differences (in %)"
    notes = sentences([*test_notes({titles[metric]: part for metric, part in values.items()}, tests), *found.notes])
    return Table.of_rows("compare-pairs", caption, ("Metric", "Difference"), heads, rows, notes)


def pair_texts(each: Difference) -> list[str]:
    """A row of `pairs_table`."""
    signs = [(value > 0) - (value < 0) for value in each.values.values()]
    counts = [len(signs), *(signs.count(sign) for sign in (1, 0, -1))]
    return [signed(each.mean), *map(str, counts), seed_counts(each), *map(probability, (each.p, each.corrected))]


def test_notes(values: Mapping[str, Sequence[Difference]], tests: int) -> Iterator[str]:
    """How p-values are computed, and why some are missing; `tests`: the maximum number of tested pairs per metric."""
    if tests:
        yield f"{TEST} Holm: corrected for the {tests} pairs of a metric." if tests > 1 else TEST
    untested = [each for part in values.values() for each in part if each.values and each.p is None]
    if any(len(each.values) < LEAST_CATEGORIES for each in untested):
        yield TOO_FEW
    if any(each.pair.unlike for each in untested):
        yield UNLIKE
    for title, part in values.items():
        if not any(each.values for each in part):
            yield f"{title}: no pair shares a category with values"


def seed_counts(each: Difference) -> str:
    """Seeds per category on each side: '3', '3, 1', '1–3, 3'."""
    said = []
    for side in (each.pair.first, each.pair.second):
        counts = [len(seeds) for name, seeds in side.seeds(each.metric).items() if name in each.values]
        said.append("–".join(map(str, dict.fromkeys((min(counts), max(counts))))))
    return ", ".join(dict.fromkeys(said))


def sentences(texts: Sequence[str]) -> list[str]:
    return [f"{text.rstrip('.')}." for text in texts]


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.{DIGITS}f}"


def signed(value: float | None) -> str:
    """'+0.52', '−0.10', '0.00'."""
    if value is None:
        return DASH
    text = f"{value:+.{DIGITS}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def probability(p: float | None) -> str:
    return DASH if p is None else f"{p:.3g}"
