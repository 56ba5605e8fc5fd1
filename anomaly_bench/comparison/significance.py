"""Paired differences over categories and their significance tests. Does not import torch.

Categories are the observations (Demšar, JMLR 7, 2006): each metric is averaged over seeds, the differences over the
categories that a pair shares are tested by Wilcoxon's signed-rank test (two-sided), and the p-values of all pairs of
one metric are adjusted by Holm's method.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.records.setups import all_categories
from anomaly_bench.tables.aggregate import BySeed, by_seed

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup

LEAST_CATEGORIES, LEAST_METHODS = 6, 3  # for a p-value; for a ranking
PERMUTED = 13  # categories up to which scipy enumerates all signs if there are zeros or ties
SIGNIFICANT = 0.05
EXACTLY = 9  # digits to round to, so equal values tie whatever the summation order


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name and records."""

    name: str
    entry: ResultGroup
    _kept: dict[str, dict[str, BySeed]] = field(default_factory=dict, init=False, repr=False)

    @property
    def records(self) -> list[Record]:
        return [record for part in self.entry.records.values() for record in part]

    def seeds(self, metric: str) -> dict[str, BySeed]:
        """Category -> seed and draw -> value in % (of one's own metric in its unit), in the dataset's order."""
        if metric not in self._kept:
            found, _ = by_seed(self.entry, metric, all_categories(self.records))
            told = find_metric(metric, (record.metrics for record in self.records))
            scale = told.scale if told else 1.0
            points = {name: {seed: scale * value for seed, value in each.items()} for name, each in found.items()}
            self._kept[metric] = points
        return self._kept[metric]

    def points(self, metric: str) -> dict[str, float]:
        """Category -> mean over seeds, in %."""
        return {name: round(fmean(each.values()), EXACTLY) for name, each in self.seeds(metric).items()}


class Pair(NamedTuple):
    """Differences are `second` minus `first`."""

    name: str
    first: Side
    second: Side

    @property
    def unlike(self) -> bool:
        """Whether one side was trained as published, and the other for less: such pairs are not tested."""
        return bool(self.first.entry.budget) != bool(self.second.entry.budget)


@dataclass(frozen=True)
class Difference:
    """The difference of one pair in one metric.

    Attributes:
        first, second: category -> value in %, averaged over seeds.
        values: category -> second minus first, over the shared categories.
        p: the test's p-value; None with too few categories. corrected: Holm-adjusted.
    """

    pair: Pair
    metric: str
    first: Mapping[str, float]
    second: Mapping[str, float]
    values: Mapping[str, float] = field(init=False)
    p: float | None = None
    corrected: float | None = None

    def __post_init__(self) -> None:
        shared = [name for name in self.first if name in self.second]
        values = {name: round(self.second[name] - self.first[name], EXACTLY) for name in shared}
        object.__setattr__(self, "values", values)

    @property
    def mean(self) -> float | None:
        """In %; None if the sides share no category."""
        return round(fmean(self.values.values()), EXACTLY) if self.values else None

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Of both sides, over the shared categories."""
        first, second = ([part[name] for name in self.values] for part in (self.first, self.second))
        return (fmean(first), fmean(second)) if self.values else (None, None)


def metric_title(name: str, records: Iterable[Record]) -> str:
    """'image AUROC'; the name where no record describes the metric."""
    metric = find_metric(name, (record.metrics for record in records))
    return metric.title if metric else name


def paired_differences(pairs: Sequence[Pair], metric: str) -> list[Difference]:
    """Tested differences of all pairs in which a side has the metric; p-values corrected over them."""
    points = {side.name: side.points(metric) for pair in pairs for side in (pair.first, pair.second)}
    found = [Difference(pair, metric, points[pair.first.name], points[pair.second.name]) for pair in pairs]
    found = [
        replace(each, p=None if each.pair.unlike else p_value([*each.values.values()]))
        for each in found
        if each.first or each.second
    ]
    corrected = iter(holm([each.p for each in found if each.p is not None]))
    return [each if each.p is None else replace(each, corrected=next(corrected)) for each in found]


def p_value(values: Sequence[float]) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test; None below `LEAST_CATEGORIES` differences.

    As `scipy.stats.wilcoxon(values)`: zeros are dropped, ties share their rank.
    """
    if len(values) < LEAST_CATEGORIES:
        return None
    if not any(values):
        return 1.0
    from scipy.stats import wilcoxon

    distinct = {abs(value) for value in values} - {0.0}
    if len(distinct) < len(values) <= PERMUTED:
        return permuted_p_value(np.array([value for value in values if value]))
    return float(wilcoxon(values).pvalue)


def permuted_p_value(values: NDArray[np.float64]) -> float:
    """Exact over all signs of nonzero differences; scipy enumerates them one by one, which takes seconds."""
    from scipy.stats import rankdata

    ranks = np.rint(2 * rankdata(np.abs(values))).astype(int)  # tied ranks are multiples of 1/2
    ways = np.ones(1)  # of each sum of the ranks of positive differences
    for rank in ranks:
        ways = np.convolve(ways, np.eye(rank + 1)[0] + np.eye(rank + 1)[rank])
    found = ranks[values > 0].sum()
    tail = min(ways[: found + 1].sum(), ways[found:].sum())
    return float(min(1.0, 2 * tail / ways.sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, Scandinavian Journal of Statistics 6, 1979): the i-th smallest of m times m - i + 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(each) for each in adjusted]


@dataclass(frozen=True)
class MeanRanks:
    """The data of a critical-difference diagram: one metric, k methods.

    Attributes:
        title: the metric's.
        ranks: method -> mean rank over categories; 1 is best.
        p: (k, k) Holm-adjusted p-values of all pairs, in the order of `ranks`; 1 on the diagonal.
        friedman: p-value of Friedman's test that all methods are equal.
        left_out: methods without the metric, or trained for less than published where others were not.
    """

    title: str
    ranks: dict[str, float]
    p: NDArray[np.float64]
    friedman: float
    categories: int
    left_out: tuple[str, ...]


def mean_ranks(sides: Sequence[Side], metric: str) -> MeanRanks:
    """Rank methods on the categories they all share.

    Raises:
        UsageError: fewer than three methods have the metric, or they share fewer than six categories.
    """
    from scipy.stats import friedmanchisquare, rankdata

    ranked = [side for side in sides if not side.entry.budget] or sides
    points = {side.name: found for side in ranked if (found := side.points(metric))}
    shared = [name for name in next(iter(points.values()), {}) if all(name in each for each in points.values())]
    if len(points) < LEAST_METHODS or len(shared) < LEAST_CATEGORIES:
        raise UsageError(
            f"figure: {metric} of {len(points)} methods on {len(shared)} shared categories; expected at least "
            f"{LEAST_METHODS} methods and {LEAST_CATEGORIES} categories: choose others with metric= or method=, or run "
            "more of them"
        )
    values = np.array([[each[name] for each in points.values()] for name in shared])  # (categories, k)
    pairs = list(itertools.combinations(range(len(points)), 2))
    tested = [p_value(list((values[:, two] - values[:, one]).round(EXACTLY))) for one, two in pairs]
    matrix = np.eye(len(points))
    for (one, two), p in zip(pairs, holm([p for p in tested if p is not None]), strict=True):
        matrix[one, two] = matrix[two, one] = p
    alike = not np.ptp(values, axis=1).any()
    friedman = 1.0 if alike else float(friedmanchisquare(*values.T).pvalue)
    ranks = dict(zip(points, rankdata(-values, axis=1).mean(axis=0).tolist(), strict=True))
    left_out = tuple(side.name for side in sides if side.name not in points)
    return MeanRanks(
        metric_title(metric, (record for side in sides for record in side.records)),
        ranks,
        matrix,
        friedman,
        len(shared),
        left_out,
    )
