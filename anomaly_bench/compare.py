"""`anomaly-bench compare`: is one better than the other, or do they differ by chance? No torch here.

    a=DIR b=DIR      each method of one results folder with the same method of another: before and after a change
    results=DIR      every pair of the methods in one folder

See `differences` for the tests, and `gate` for `fail_if`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench import records, report, tables
from anomaly_bench.config import truth
from anomaly_bench.differences import LEAST_CATEGORIES, Difference, Pair, Side, differences, metric_title, ranking
from anomaly_bench.entries import Entry, all_categories, describe, entries, plain, settings_of, setup_name, setups
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.gate import Condition, broken, read_conditions
from anomaly_bench.grid import DASH, Cell, Grid, Head, Value
from anomaly_bench.layouts import Layout
from anomaly_bench.metrics import METRICS
from anomaly_bench.renderers import draw
from anomaly_bench.values import seeds_fact

if TYPE_CHECKING:
    from anomaly_bench.records import Record

DONE, FAILED = 0, 1
DIGITS = 2
PAIRS = ("Metric", "Difference")
COUNTS = {"test images": "test", "defective test images": "defects"}
MEAN = "mean of those in both"
PICTURES = (".svg", ".pdf", ".png")
MIX = "; allow_mixed=true compares them all the same"
TEST = (
    "p: Wilcoxon's signed-rank test over categories, two-sided, of means over seeds (scipy). Categories without a "
    "difference are left out, equal differences share their rank; exact, but beyond 13 categories with either, and "
    "beyond 50, the normal approximation."
)
TOO_FEW = (
    f"No p-value under {LEAST_CATEGORIES} categories: with {LEAST_CATEGORIES - 1} the smallest that the test can give "
    f"is {2 ** (2 - LEAST_CATEGORIES):g}, whatever the numbers."
)


@dataclass(frozen=True)
class Comparison:
    """What is compared with what in one setup.

    Attributes:
        name: of the setup; title: of dataset and setup, above a table.
        records: of all sides; mixed: of several setups.
        notes: what is to be said below the tables; missing: what a has and b has not, for the gate.
    """

    name: str
    title: str
    records: Sequence[Record]
    mixed: bool
    pairs: Sequence[Pair]
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def sides(self) -> list[Side]:
        return list({side.name: side for pair in self.pairs for side in (pair.first, pair.second)}.values())


def compare(config: Any) -> int:
    """Print the comparison, draw the figure, hold the gate; the exit status.

    Raises:
        UsageError: folders, names, metrics or conditions that cannot be used, or nothing to compare.
    """
    conditions = read_conditions(config["fail_if"])
    folders = config["a"] is not None or config["b"] is not None
    if conditions and not folders:
        raise UsageError(f"fail_if={config['fail_if']} needs a=DIR b=DIR: it is about b, held against a")
    for key, usual in (("figure", None), ("results", "results")):
        if folders and config[key] != usual:
            raise UsageError(f"{key}={config[key]} has no effect with a=DIR b=DIR; give one or the other")
    shown = report.names(config["metric"]) or []
    metrics = {*shown, *(condition.metric for condition in conditions)}
    found = list(between(config, metrics) if folders else within(config, metrics))
    check_shown(shown, found)
    if config["figure"] is not None:
        draw_figure(Path(str(config["figure"])).expanduser(), found, shown)
    made = [grid for each in found for grid in grids(each, shown, folders)]
    report.show(draw(made, str(config["format"]), color=report.in_color(config["out"])), config["out"])
    failed = list(held(conditions, found))
    for line in dict.fromkeys(failed):
        print(f"failed: {line}", file=sys.stderr)
    return FAILED if failed else DONE


def held(conditions: Sequence[Condition], found: Sequence[Comparison]) -> Iterator[str]:
    """A line for all that makes the gate fail; what b lacks does so whatever the condition.

    Raises:
        UsageError: a or b has no value at all of a condition's metric.
    """
    for condition in conditions:
        check_metric(condition.metric, "fail_if", found)
        compared = {each.name: differences(each.pairs, condition.metric) for each in found}
        listed = [each for part in compared.values() for each in part]
        for key, some in (("a", any(each.first for each in listed)), ("b", any(each.second for each in listed))):
            if not some:
                raise UsageError(f"fail_if={condition}: no record in {key} has a value of {condition.metric}")
        for each in found:
            yield from each.missing
        for where, part in compared.items():
            yield from broken(condition, part, where)


def check_shown(shown: Sequence[str], found: Sequence[Comparison]) -> None:
    """UsageError: a metric to show is unknown, or none of them has a value in any record."""
    if not shown:
        raise UsageError("metric=[]: expected at least one, such as metric=image_auroc")
    for name in shown:
        check_metric(name, "metric", found)
    have = {name for each in found for record in each.records for name in record.metrics if has(record, name)}
    if have.isdisjoint(shown):
        raise UsageError(f"metric={','.join(shown)}: no record has a value of it; recorded: {', '.join(sorted(have))}")


def has(record: Record, metric: str) -> bool:
    return record.value(metric) is not None


def check_metric(name: str, key: str, found: Sequence[Comparison]) -> None:
    """UsageError: neither a metric of ours nor of the records."""
    known = METRICS.keys() | {name for each in found for record in each.records for name in record.metrics}
    if name not in known:
        raise UsageError(f"{key}={name}: no such metric{closest(name, known)}")


# ------------------------------------------------------------------------------------- what is compared with what


def selected(config: Any, key: str) -> list[Record]:
    """The records of the folders of a key that `only` and `setup` leave."""
    known = report.joined(report.folders(config[key], key), records.outlines, key)
    try:
        return report.wanted(known, [], config)[0]
    except UsageError as error:
        raise UsageError(f"{key}={config[key]}: {error}") from error


def within(config: Any, metrics: Set[str]) -> Iterator[Comparison]:
    """Every pair of the methods in one setup; a setup of a single method is passed over.

    Raises:
        UsageError: no setup has two methods, or their test images are unlike.
    """
    mixed = truth(config, "allow_mixed")
    parts = {part_name(part, mixed): part for part in setups(selected(config, "results"), mixed)}
    found = {name: entries(part, with_speed=False) for name, part in parts.items()}
    if all(len(each) < 2 for each in found.values()):
        listed = "; ".join(f"{name}: {', '.join(entry.name for entry in each)}" for name, each in found.items())
        raise UsageError(
            f"results={config['results']}: nothing to compare; expected two methods, backbones or settings in one "
            f"setup, found {listed}" + MIX * (not mixed and len(found) > 1)
        )
    for name, part in parts.items():
        sides = [Side(entry.name, entry) for entry in found[name]]
        pairs = [Pair(f"{two.name} − {one.name}", one, two) for one, two in itertools.combinations(sides, 2)]
        if pairs:
            yield Comparison(name, title(part, mixed), part, mixed, pairs, unlike(pairs, metrics, mixed))


def between(config: Any, metrics: Set[str]) -> Iterator[Comparison]:
    """The methods of `a` with those of `b`, setup by setup.

    Raises:
        UsageError: they share no setup or no method, or their test images are unlike.
    """
    for key in ("a", "b"):
        if config[key] is None:
            raise UsageError(
                f"{key}=DIR is missing: expected two results folders, or results=DIR for the methods in one"
            )
    mixed = truth(config, "allow_mixed")
    ours, theirs = (
        {part_name(part, mixed): part for part in setups(selected(config, key), mixed)} for key in ("a", "b")
    )
    shared = [name for name in ours if name in theirs]
    if not shared:
        have = f"a has {', '.join(ours)}; b has {', '.join(theirs)}"
        raise UsageError(f"no {'dataset' if mixed else 'setup'} in both: {have}" + MIX * (not mixed))
    lost = [f"{name}: no record in b" for name in ours if name not in theirs]
    extra = [f"{name}: in b only" for name in theirs if name not in ours]
    for name in shared:
        one, two = entries(ours[name], with_speed=False), entries(theirs[name], with_speed=False)
        pairs, missing, remarks = matched(one, two, name)
        said = [
            f"a: {config['a']}, b: {config['b']}",
            *lost,
            *missing,
            *extra,
            *remarks,
            *unlike(pairs, metrics, mixed),
        ]
        both = [*ours[name], *theirs[name]]
        yield Comparison(name, title(both, mixed), both, mixed, pairs, said, [*lost, *missing])


def part_name(part: Sequence[Record], mixed: bool) -> str:
    return part[0].dataset if mixed else setup_name(part[0])


def title(part: Sequence[Record], mixed: bool) -> str:
    """'MVTec AD, input 256×256, protocol unified'."""
    dataset = part[0].titles.get("dataset") or part[0].dataset
    return f"{dataset}, {'several setups' if mixed else describe(part[0])}"


def matched(ours: Sequence[Entry], theirs: Sequence[Entry], where: str) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs of equal method, backbone and settings; what only a has; and other remarks.

    Where one of a method is left on both sides, these are a pair of unlike settings; and where a and b have one
    method each, whatever it is, these are.

    Raises:
        UsageError: nothing fits.
    """
    left, right = list(ours), list(theirs)
    found: list[tuple[Entry, Entry]] = []
    alone = len(ours) == len(theirs) == 1
    rules: list[Callable[[Entry, Entry], bool]] = [same_settings, same_method, lambda one, two: alone]
    for rule in rules:
        for one in list(left):
            fits = [two for two in right if rule(one, two)]
            if len(fits) == 1 and sum(rule(other, fits[0]) for other in left) == 1:
                found.append((one, fits[0]))
                left.remove(one)
                right.remove(fits[0])
    if not found:
        have = [", ".join(entry.name for entry in part) for part in (ours, theirs)]
        raise UsageError(f"{where}: a has {have[0]}; b has {have[1]}: no two fit; choose one by method= and backbone=")
    found.sort(key=lambda pair: ours.index(pair[0]))
    remarks = [f"{two.name}: in b only" for two in right]
    remarks += [said for one, two in found if (said := changed(one, two))]
    return [paired(one, two) for one, two in found], [f"{one.name}: no record in b" for one in left], remarks


def same_method(one: Entry, two: Entry) -> bool:
    return (one.sample.method, one.sample.backbone) == (two.sample.method, two.sample.backbone)


def same_settings(one: Entry, two: Entry) -> bool:
    return same_method(one, two) and settings_of(one.sample) == settings_of(two.sample)


def paired(one: Entry, two: Entry) -> Pair:
    name = f"{one.name}: b − a" if one.name == two.name else f"{two.name} in b − {one.name} in a"
    return Pair(name, Side(f"{one.name} in a", one), Side(f"{two.name} in b", two))


def changed(one: Entry, two: Entry) -> str:
    """'PaDiM on R18: dimensions 100 in a, 50 in b' of one method with unlike settings; else nothing."""
    ours, theirs = settings_of(one.sample), settings_of(two.sample)
    if not same_method(one, two) or ours == theirs:
        return ""
    paths = [path for path in dict.fromkeys((*ours, *theirs)) if ours.get(path, ...) != theirs.get(path, ...)]
    said = (f"{path} {plain(ours.get(path, ...))} in a, {plain(theirs.get(path, ...))} in b" for path in paths)
    return f"{one.name}: {'; '.join(said)}"


def unlike(pairs: Sequence[Pair], metrics: Set[str], mixed: bool) -> list[str]:
    """What makes the numbers of two sides no numbers of the same: other test images, another revision of a metric.

    Raises:
        UsageError: something does, and `mixed` does not allow it.
    """
    found: dict[str, None] = {}
    for pair in pairs:
        first, second = pair.first.entry.records, pair.second.entry.records
        for category in (name for name in first if name in second):
            for what, ours, theirs in unequal(first[category], second[category], metrics):
                found[f"{category}: {what} {ours} of {pair.first.name}, {theirs} of {pair.second.name}"] = None
    if found and not mixed:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        raise UsageError(f"numbers that cannot be compared: {next(iter(found))}{more}; run the older again" + MIX)
    return list(found)


def unequal(ours: Sequence[Record], theirs: Sequence[Record], metrics: Set[str]) -> Iterator[tuple[str, str, str]]:
    """What is counted or computed otherwise in two sets of records of one category, and how in each."""
    facts: list[dict[str, set[Any]]] = []
    for part in (ours, theirs):
        facts.append({name: {each.counts[key] for each in part} for name, key in COUNTS.items()})
        for name in sorted(metrics):
            facts[-1][f"revision of {name}"] = {each.metrics[name]["revision"] for each in part if name in each.metrics}
    for name in facts[0]:
        if facts[0][name] and facts[1][name] and facts[0][name] != facts[1][name]:
            ours_said, theirs_said = (" and ".join(map(str, sorted(part[name]))) for part in facts)
            yield name, ours_said, theirs_said


# --------------------------------------------------------------------------------------------------------- tables


def grids(found: Comparison, metrics: Sequence[str], folders: bool) -> Iterator[Grid]:
    """For each metric the categories, with a and b side by side or all methods; then all pairs."""
    values = {metric: differences(found.pairs, metric) for metric in metrics}
    for metric, compared in values.items():
        if compared:
            yield folders_grid(found, metric, compared) if folders else methods_grid(found, metric)
    yield pairs_grid(found, values)


def methods_grid(found: Comparison, metric: str) -> Grid:
    """The table of `tables`, of one metric."""
    caption = "{dataset}, {setup}: {cells} (points of 100)"
    layout = Layout(f"compare-{metric}", caption, "categories", "methods", [metric], scale=100, digits=DIGITS)
    (grid,) = tables.grids(found.records, layout, mixed=found.mixed)
    return grid


def folders_grid(found: Comparison, metric: str, values: Sequence[Difference]) -> Grid:
    """a, b and b − a of every pair; the means are of the categories that both have."""
    heads: list[Head] = []
    columns: list[Mapping[str, str]] = []
    for each in values:
        names = [each.pair.first.entry.name, each.pair.second.entry.name]
        above = (*names, names[0] if names[0] == names[1] else "")
        heads += [Head(labels) for labels in zip(above, ("a", "b", "b − a"), strict=True)]
        sides = zip((each.first, each.second), each.means, strict=True)
        columns += [
            {**{name: number(value) for name, value in part.items()}, MEAN: number(mean)} for part, mean in sides
        ]
        columns.append({**{name: signed(value) for name, value in each.values.items()}, MEAN: signed(each.mean)})
    categories = [name for name in all_categories(found.records) if any(name in column for column in columns)]
    rows = [*(Head((name,)) for name in categories), Head((MEAN,), opens=True, mean=True)]
    texts = [[column.get(name, DASH) for column in columns] for name in (*categories, MEAN)]
    caption = f"{found.title}: {metric_title(metric)} (points of 100)"
    said = seed_notes(values)
    return Grid(f"compare-{metric}", caption, ("Category",), heads, rows, cells(texts), ("",), said)


def seed_notes(values: Sequence[Difference]) -> list[tuple[str, str]]:
    """Which seeds are averaged; by side where these are not alike."""
    sides = {side.name: side.seeds(each.metric) for each in values for side in (each.pair.first, each.pair.second)}
    facts = {name: seeds_fact(seeds) if seeds else "no value" for name, seeds in sides.items()}
    if len(set(facts.values())) == 1:
        fact = next(iter(facts.values()))
        return notes([fact[:1].upper() + fact[1:]])
    return notes([f"{name}: {fact}" for name, fact in facts.items()])


def pairs_grid(found: Comparison, values: Mapping[str, Sequence[Difference]]) -> Grid:
    """The mean difference of every pair, in how many categories it is higher or lower, and its p-value."""
    tests = max(sum(each.p is not None for each in part) for part in values.values())
    heads = [("", "Mean"), *(("Categories", name) for name in ("all", "higher", "equal", "lower")), ("", "Seeds")]
    heads += [("Wilcoxon", "p"), *([("Wilcoxon", "p (Holm)")] if tests > 1 else [])]
    rows: list[Head] = []
    texts = []
    for metric, part in values.items():
        for place, each in enumerate(each for each in part if each.values):
            rows.append(Head((metric_title(metric), each.pair.name), opens=place == 0 and bool(rows)))
            texts.append(pair_texts(each)[: len(heads)])
    caption = f"{found.title}: mean differences (points of 100)"
    said = notes([*test_notes(values, tests), *found.notes])
    return Grid("compare-pairs", caption, PAIRS, [*map(Head, heads)], rows, cells(texts), ("",), said)


def pair_texts(each: Difference) -> list[str]:
    """A row of `pairs_grid`."""
    signs = [(value > 0) - (value < 0) for value in each.values.values()]
    counts = [len(signs), *(signs.count(sign) for sign in (1, 0, -1))]
    return [signed(each.mean), *map(str, counts), seed_counts(each), *map(probability, (each.p, each.corrected))]


def test_notes(values: Mapping[str, Sequence[Difference]], tests: int) -> Iterator[str]:
    """How p-values are made, and why some are not; `tests`: the most pairs of one metric that have one."""
    if tests:
        yield TEST + f" Holm: corrected for the {tests} pairs of a metric." * (tests > 1)
    if any(each.values and each.p is None for part in values.values() for each in part):
        yield TOO_FEW
    for metric, part in values.items():
        if not any(each.values for each in part):
            yield f"{metric_title(metric)}: no pair has values of a common category"


def seed_counts(each: Difference) -> str:
    """How many seeds each side's categories have: '3', '3, 1', '1–3, 3'."""
    said = []
    for side in (each.pair.first, each.pair.second):
        counts = [len(seeds) for name, seeds in side.seeds(each.metric).items() if name in each.values]
        said.append("–".join(map(str, dict.fromkeys((min(counts), max(counts))))))
    return ", ".join(dict.fromkeys(said))


def notes(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Sentences below a table."""
    return [("", f"{text.rstrip('.')}.") for text in texts]


def cells(texts: Sequence[Sequence[str]]) -> list[list[Cell]]:
    return [[Cell((Value(text),)) for text in row] for row in texts]


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


# --------------------------------------------------------------------------------------------------------- figure


def draw_figure(path: Path, found: Sequence[Comparison], metrics: Sequence[str]) -> None:
    """The critical-difference diagram of each metric, one below the other.

    Raises:
        UsageError: several setups, too few methods or categories, another suffix, or scikit-posthocs is missing.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"figure={path}: expected a name that ends in {', '.join(PICTURES)}")
    if len(found) > 1:
        raise UsageError(
            f"figure: {len(found)} setups; choose one: {', '.join(f'setup={each.name}' for each in found)}"
        )
    rankings = [ranking(found[0].sides, metric) for metric in metrics]
    from anomaly_bench import figures

    try:
        drawn = figures.critical_difference(rankings, found[0].title)
    except ModuleNotFoundError as error:
        need = "pip install 'anomaly-bench-suite[compare]'"
        raise UsageError(f"figure={path}: needs {error.name}; {need}") from error
    try:
        figures.write(drawn, path)
    except OSError as error:
        raise UsageError(f"figure={path}: cannot be written ({error.strerror}); give another file") from error
    print(f"{path}: {', '.join(map(metric_title, metrics))}", file=sys.stderr)
