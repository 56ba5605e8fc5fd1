"""The sections of the HTML report."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from matplotlib.figure import Figure

from anomaly_bench.files import safe_filename
from anomaly_bench.metrics.registry import find_metric, own_names
from anomaly_bench.published import TABLES, load_references, publications
from anomaly_bench.records.record import DamagedRecord, load
from anomaly_bench.records.setups import all_categories, setup_name, setup_title
from anomaly_bench.report.figures import plots
from anomaly_bench.report.figures.labels import Point
from anomaly_bench.report.figures.plots import Curve
from anomaly_bench.report.figures.svg import inline
from anomaly_bench.report.traits import TRAITS, traits
from anomaly_bench.tables.aggregate import measured
from anomaly_bench.tables.axes import AxisItem
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.entries import group_records
from anomaly_bench.tables.layout import Column, Layout
from anomaly_bench.tables.table import Header

if TYPE_CHECKING:
    from anomaly_bench.metrics.registry import Metric
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.table import CellValue, Table

Panels = dict[str, list[Curve]]
MOST_COLUMNS = 12  # of a heat map: of more methods, each has a row
MOST_LINES = 60  # of a panel: more are neither told apart nor loaded by a browser
ACCURACIES = ("image_auroc", "pixel_auroc", "pro")  # of heat maps and figures
RECALL = "image_recall"  # at the threshold from held-out images, where there is one: behind the first of them
PUBLISHED = {"image_auroc": "zheng2022_1", "pixel_auroc": "zheng2022_2"}  # the tables behind Figure 1 of Zheng et al.


@dataclass(frozen=True)
class Plot:
    """A figure, the table of its numbers, the methods missing from it, and the source of published values.

    Attributes:
        narrow: the same figure for narrow screens, if this one is too wide for them.
        partial: some marks are hollow.
    """

    title: str
    svg: Markup
    table: Table
    missing: list[str]
    source: str = ""
    narrow: Markup | None = None
    partial: bool = False


def known_metrics(records: Sequence[Record]) -> dict[str, Metric]:
    """The metrics of heat maps, figures and rankings: accuracies, and those of the user's own."""
    entries = [record.metrics for record in records]
    recall = [RECALL] if any(record.holdout for record in records) else []
    names = (ACCURACIES[0], *recall, *ACCURACIES[1:], *own_names(entries))
    return {name: metric for name in names if (metric := find_metric(name, entries))}


class Section:
    """The records of one setup and their part of the page.

    Args:
        key: prefixes its element ids.
        files: identity -> file of records that are outlines, see `records.outlines`.
    """

    def __init__(
        self,
        key: str,
        records: Sequence[Record],
        results: Sequence[Path],
        files: Mapping[tuple[Any, ...], Path] | None = None,
    ) -> None:
        self.key, self.records, self.results, self.files = key, records, results, files or {}
        self._lines: tuple[str, Panels, Panels] = ("", {}, {})
        self.entries = group_records(records, with_speed=False)
        self.labels = [" ".join(filter(None, (entry.full_title, entry.backbone))) for entry in self.entries]
        self.known = known_metrics(records)
        valued = [name for name in self.known if any(record.value(name) is not None for record in records)]
        self.metrics = {name: self.known[name].title for name in valued}
        self.title = setup_title(records)
        self.all_categories = tuple(all_categories(records))
        self.wide = len(self.entries) > MOST_COLUMNS
        axes = ("methods", "categories") if self.wide else ("categories", "methods")
        self.heat = {
            name: self._table(f"heat-{name}", f"{metric.title} by category", *axes, [name])
            for name, metric in self.known.items()
        }
        tested = {record.category for record in records}
        self.categories = [name for name in self.all_categories if name in tested]

    def _table(self, name: str, caption: str, rows: str, columns: str, cells: list[Any]) -> Table:
        layout = Layout(f"{self.key}-table-{name}", "", rows, columns, cells, scale=100)
        return replace(build_tables(self.records, layout)[0], caption=caption)

    def legend(self) -> Iterator[tuple[str, Markup, dict[str, str]]]:
        """The name, sample line and traits of each series."""
        for number, (label, entry) in enumerate(zip(self.labels, self.entries, strict=True)):
            yield label, self._inline(plots.sample(number), f"legend-{number}", ""), traits(entry.sample)

    def trait_values(self) -> dict[str, list[str]]:
        """The values to filter methods by, of each trait that has several; of few methods none."""
        if not self.wide:
            return {}
        found = [traits(entry.sample) for entry in self.entries]
        listed = {name: sorted({each[name] for each in found}) for name in TRAITS}
        return {name: values for name, values in listed.items() if len(values) > 1}

    def _inline(self, figure: Figure, name: str, title: str) -> Markup:
        return Markup(inline(figure, f"{self.key}-{name}", title))  # escaped by the XML writer

    # accuracy against latency and against time

    def latency(self, metric: str) -> Iterator[tuple[str, list[Point]]]:
        """For each machine setting, its name and its methods' points."""
        parts: dict[str, list[Point]] = defaultdict(list)
        shares = self.shares(metric)
        for entry in group_records(self.records, with_speed=True):
            x, y = (
                self._mean(entry, Column("latency_ms", "")),
                self._mean(entry, Column(metric, "", scale=self.known[metric].scale)),
            )
            if x is not None and y is not None:
                number = self._series(entry)
                parts[str(entry.setting)].append(Point(x, y, self.labels[number], number, share=shares[number]))
        yield from parts.items()

    def _mean(self, entry: ResultGroup, measure: Column) -> float | None:
        """The mean over categories and seeds as in tables, but with 6 decimals."""
        return self._measured(entry, replace(measure, digits=6)).number

    def _measured(self, entry: ResultGroup, measure: Column) -> CellValue:
        return measured(measure, AxisItem(Header(()), entry=entry), self.all_categories, averaged=True)

    def value(self, number: int, metric: str) -> CellValue:
        """A metric's mean over the categories and seeds of a series, in %, as tables print it."""
        known = self.known[metric]
        return self._measured(self.entries[number], Column(metric, known.title, scale=known.scale, digits=known.digits))

    def number(self, number: int, measure: Column) -> float | None:
        """The mean of any other number of a series."""
        return self._mean(self.entries[number], measure)

    @functools.cache  # noqa: B019 (a section lives as long as the page is made)
    def shares(self, metric: str) -> list[str]:
        """Of each series, '1 of 15' if its mean leaves out categories that others have; else ''."""
        covered = [self.value(number, metric).covered for number in range(len(self.entries))]
        widest = max(covered, key=len)
        count = len(self.all_categories)
        return [f"{len(each)} of {count}" if each not in (widest, frozenset()) else "" for each in covered]

    def _series(self, entry: ResultGroup) -> int:
        names = [(each.full_title, each.backbone) for each in self.entries]
        return names.index((entry.full_title, entry.backbone))

    def latency_plots(self, metric: str, kind: str = "latency") -> Iterator[Plot]:
        """One for each machine setting; `kind`: begins the ids of its elements, so that it can be shown twice."""
        title = self.metrics[metric]
        speed = {"value": "latency_ms", "title": "latency (ms)", "scale": 1, "digits": 1, "best": "lowest"}
        for number, (place, points) in enumerate(self.latency(metric)):
            name, heading = f"{kind}-{metric}-{number}", f"{title} against latency ({place})"
            svg = self._inline(plots.latency(points, title), name, heading)
            table = self._table(name, heading, "methods", "cells", [metric, speed])
            partial = any(point.share for point in points)
            yield Plot(heading, svg, table, self._missing(points), partial=partial)

    def timeline(self, metric: str) -> tuple[list[Point], list[Point]]:
        """Published and measured points of methods with an arXiv number."""
        known = publications()
        months = {name: plots.month_number(*each.month) for name, each in known.items() if each.month}
        cells = load_references(PUBLISHED[metric]) if metric in PUBLISHED else []
        published = [
            Point(months[cell.method], cell.value, known[cell.method].title, method=cell.method)
            for cell in cells
            if cell.dataset == self.records[0].dataset and cell.category == "mean:all" and cell.method in months
            if cell.value is not None
        ]
        found = []
        for number, entry in enumerate(self.entries):
            method, value = entry.sample.method, self._mean(entry, Column(metric, "", scale=self.known[metric].scale))
            if method in months and value is not None:
                share = self.shares(metric)[number]
                found.append(Point(months[method], value, self.labels[number], number, method, share))
        return published, found

    def timeline_plot(self, metric: str) -> Plot | None:
        """None if there are neither published nor measured values."""
        published, found = self.timeline(metric)
        if not published and not found:
            return None
        title = self.metrics[metric]
        heading = f"{title} against the month of publication"
        svg, narrow = (
            self._inline(plots.timeline(published, found, title, small), f"timeline-{metric}-{small}", heading)
            for small in (False, True)
        )
        table = self._table(f"timeline-{metric}", heading, "methods", "cells", [metric])
        source = TABLES[PUBLISHED[metric]].title if published else ""
        partial = any(point.share for point in found)
        return Plot(heading, svg, table, self._missing(found), source, narrow, partial)

    def _missing(self, points: Sequence[Point]) -> list[str]:
        return [label for number, label in enumerate(self.labels) if number not in {point.series for point in points}]

    # curves

    def whole(self, record: Record) -> Record:
        """The record with its curves and images; an outline whose file has been changed meanwhile stays one."""
        with contextlib.suppress(DamagedRecord, KeyError):
            return load(self.files[record.identity])
        return record

    @property
    def seeds(self) -> int:
        """How many seeds of each method the curves show."""
        return max(1, MOST_LINES // max(1, len(self.entries)))

    def more_seeds(self, category: str) -> bool:
        """Whether curves leave some out."""
        return any(len(entry.records.get(category, ())) > self.seeds for entry in self.entries)

    def lines(self, category: str) -> tuple[Panels, Panels]:
        """Metric curves, and learning curves, by panel, one line per method and seed; both from one reading."""
        if self._lines[0] != category:
            curves: Panels = {kind: [] for kind in plots.CURVES}
            learning: Panels = defaultdict(list)
            for number, entry in enumerate(self.entries):
                made = sorted(entry.records.get(category, ()), key=lambda record: record.seed)
                for record in map(self.whole, made[: self.seeds]):
                    for kind in record.curves.keys() & curves.keys():
                        curve = record.curves[kind]
                        self._add(curves[kind], curve["x"], curve["y"], number)
                    if record.training and (curve := record.training["curve"]):
                        title = f"{self.labels[number]} ({entry.budget})" if entry.budget else self.labels[number]
                        self._add(learning[title], curve["steps"], curve["loss"], number)
            self._lines = category, {kind: lines for kind, lines in curves.items() if lines}, learning
        return self._lines[1:]

    def _add(self, lines: list[Curve], x: Sequence[float], y: Sequence[float], number: int) -> None:
        first = not lines or lines[-1].series != number
        lines.append(Curve(x, y, self.labels[number], number, first))

    def curves(self, category: str) -> Panels:
        """Name of a metric's curve -> lines."""
        return self.lines(category)[0]

    def curve_panels(self, category: str) -> Iterator[Markup]:
        place = self.categories.index(category)
        for kind, lines in self.curves(category).items():
            title = f"{plots.CURVES[kind][0]} curves of {category}"
            yield self._inline(plots.curves({kind: lines}), f"curve-{place}-{kind}", title)

    def learning(self, category: str) -> Panels:
        """Method, with its share of the published schedule -> the losses of its seeds."""
        return self.lines(category)[1]

    def learning_panels(self, category: str) -> Iterator[tuple[int, Markup]]:
        """The series and the figure of each method with a learning curve."""
        place = self.categories.index(category)
        for title, lines in self.learning(category).items():
            series = lines[0].series
            name = f"learning-{place}-{series}"
            yield series, self._inline(plots.learning_curves({title: lines}), name, f"loss of {title} on {category}")

    # for print

    def drawings(self) -> Iterator[tuple[Path, Figure]]:
        """Every figure, with its path in the figures folder, without suffix."""
        folder = Path(setup_name(self.records[0]))
        for metric, title in self.metrics.items():
            yield folder / f"heat-{metric}", plots.heat_map(self.heat[metric])
            for number, (_, points) in enumerate(self.latency(metric), 1):
                yield folder / f"latency-{metric}-{number}", plots.latency(points, title)
            published, found = self.timeline(metric)
            if published or found:
                yield folder / f"timeline-{metric}", plots.timeline(published, found, title)
        for category in self.categories:
            if panels := self.curves(category):
                yield folder / f"curves-{safe_filename(category)}", plots.curves(panels, legend=True)
            if panels := self.learning(category):
                yield folder / f"learning-{safe_filename(category)}", plots.learning_curves(panels)
