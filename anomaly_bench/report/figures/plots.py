"""Figures of the report, drawn by matplotlib."""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from anomaly_bench.comparison.significance import SIGNIFICANT
from anomaly_bench.report.figures.labels import Point, label_points, points_to_pixels, text_width
from anomaly_bench.report.figures.style import DASHES, FONT, INK, LINE, MARKERS, MUTED, PAPER, SERIES, styled
from anomaly_bench.report.figures.svg import clean

if TYPE_CHECKING:
    from anomaly_bench.comparison.significance import MeanRanks
    from anomaly_bench.tables.table import Table

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its font warnings do not help users


@dataclass(frozen=True)
class Curve:
    """One line of a panel; only the first of a series has markers and a legend entry."""

    x: Sequence[float]
    y: Sequence[float]
    label: str
    series: int
    first: bool = True


MOST_LABELS = 20  # of points: more cannot be told apart
CURVES = {
    "image_roc": ("image ROC", "false positive rate", "true positive rate", 1.0),
    "pixel_roc": ("pixel ROC", "false positive rate", "true positive rate", 1.0),
    "pro": ("PRO", "false positive rate", "per-region overlap", 0.3),
}


def latency(points: Sequence[Point], y_title: str) -> Figure:
    """Accuracy (in %) against latency (ms, logarithmic), with the line of the best at each latency."""
    with styled():
        figure, axes = _plane(5.2, 3.5)
        _labels(axes, "latency of one image (ms, median)", y_title)
        axes.set_xscale("log")
        axes.set_xlim(min(point.x for point in points) / 1.6, max(point.x for point in points) * 1.9)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _y_range(axes, points)
        front = pareto_front(points)
        line = [*((point.x, point.y) for point in front), (axes.get_xlim()[1], front[-1].y)] if front else []
        axes.step([x for x, _ in line], [y for _, y in line], where="post", color=MUTED.light, linewidth=1, zorder=1)
        _scatter(axes, points)
        label_points(axes, points if len(points) <= MOST_LABELS else front)
    return figure


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, by latency; of means over the same categories only."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not point.share and (not front or point.y > front[-1].y):
            front.append(point)
    return front


def timeline(published: Sequence[Point], measured: Sequence[Point], y_title: str, narrow: bool = False) -> Figure:
    """Accuracy (in %) against the month of publication (x: `month_number`).

    Published values are rings, and the line is their running best; dotted lines lead to measured values. `narrow`: for
    the width of a phone.
    """
    with styled():
        figure, axes = _plane(*((4.6, 6.0) if narrow else (8.0, 4.4)))
        _labels(axes, "month of the arXiv number", y_title)
        points = [*published, *measured]
        axes.set_xlim(min(point.x for point in points) - 45, _last_day(axes, points))
        locator = AutoDateLocator(minticks=2 if narrow else 3, maxticks=6 if narrow else 9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        _y_range(axes, points)
        best = list(itertools.accumulate(sorted(published, key=lambda point: (point.x, point.y)), _better))
        axes.step([point.x for point in best], [point.y for point in best], where="post", color=LINE.light, zorder=1)
        for point in measured:
            for told in published:
                if told.method == point.method:
                    axes.plot([told.x, point.x], [told.y, point.y], ":", color=MUTED.light, linewidth=1, zorder=1)
        _scatter(axes, points)
        label_points(axes, points if len(points) <= 2 * MOST_LABELS else published)
    return figure


def _last_day(axes: Axes, points: Sequence[Point]) -> float:
    """The end of the timeline, leaving room for the latest point's label."""
    latest, first = max(points, key=lambda point: point.x), min(point.x for point in points) - 45
    share = min(0.4, (text_width(latest.text) + 16) / (axes.get_window_extent().width / points_to_pixels(axes)))
    return first + max(latest.x - first, 90) / (1 - share)


def _better(best: Point, point: Point) -> Point:
    return Point(point.x, max(best.y, point.y), point.label)


def month_number(year: int, month: int) -> float:
    """The middle of a month on the timeline's axis, in days."""
    return float(date2num(datetime.date(year, month, 15)))


def curves(panels: Mapping[str, Sequence[Curve]], legend: bool = False) -> Figure:
    """ROC and PRO curves side by side; `panels`: name in `CURVES` -> lines."""
    with styled():
        figure = Figure(figsize=(3.4 * len(panels), 3.0 + 0.2 * legend))
        for number, (kind, lines) in enumerate(panels.items()):
            left, width = (number + 0.17) / len(panels), 0.77 / len(panels)
            bottom = 0.24 if legend else 0.16
            _curve_panel(figure.add_axes((left, bottom, width, 0.9 - bottom)), kind, lines)
        if legend:
            firsts = {line.label: line for lines in panels.values() for line in lines if line.first}
            handles = [_line(line.series, [], [], label=clean(line.label)) for line in firsts.values()]
            figure.legend(handles=handles, loc="lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def learning_curves(panels: Mapping[str, Sequence[Curve]]) -> Figure:
    """The loss against optimiser steps, one panel per method; `panels`: title -> a line per seed."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with styled():
        figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout=ConstrainedLayoutEngine())
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            _labels(axes, "optimiser steps", "loss")
            axes.set_title("\n".join(textwrap.wrap(clean(title), 38)))
            for line in lines:
                axes.add_line(_line(line.series, line.x, line.y, markevery=[], alpha=1 if line.first else 0.5))
            axes.autoscale_view()
        for axes in itertools.islice(figure.axes, len(panels), None):
            axes.set_visible(False)
    return figure


def _curve_panel(axes: Axes, kind: str, lines: Sequence[Curve]) -> None:
    title, x_title, y_title, limit = CURVES[kind]
    _labels(axes, x_title, y_title)
    axes.set_title(title)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 1.02)
    for line in lines:
        drawn = _line(line.series, line.x, line.y, markevery=0.17 if line.first else [], alpha=1 if line.first else 0.5)
        axes.add_line(drawn)


def _line(series: int, x: Sequence[float], y: Sequence[float], size: float = 5, **more: Any) -> Line2D:
    look: dict[str, Any] = {"linewidth": 1.3, "markersize": size, "markeredgewidth": 0.6, "clip_on": False}
    edge, dashes = PAPER.light, DASHES[series // len(SERIES) % len(DASHES)]
    line = Line2D(x, y, **look, **_look(series), markeredgecolor=edge, linestyle=dashes, **more)
    line.set_gid(f"series-{series}")
    return line


def sample(series: int) -> Figure:
    """A short line in the style of a series, for a legend."""
    with styled():
        figure = Figure(figsize=(0.45, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(-1, 1))
        axes.add_line(_line(series, [0, 0.5, 1], [0, 0, 0], markevery=[1], size=7))
    return figure


def critical_difference(rankings: Sequence[MeanRanks], title: str) -> Figure:
    """Mean ranks of methods per metric; bars join methods without a significant difference (Demšar 2006).

    Raises:
        ModuleNotFoundError: scikit-posthocs is not installed.
    """
    import pandas
    from scikit_posthocs import critical_difference_diagram

    heights = [0.9 + 0.2 * len(each.ranks) for each in rankings]  # inches: half of the labels per side, and bars
    with styled({"axes.grid": False}):
        figure = Figure((7.5, 0.8 + sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08))
        figure.suptitle(_ranked_caption(rankings, title), x=0.02, ha="left", fontsize=FONT)
        panels = figure.subplots(len(rankings), squeeze=False, height_ratios=heights)[:, 0]
        for axes, each in zip(panels, rankings, strict=True):
            names = [clean(name) for name in each.ranks]
            critical_difference_diagram(
                dict(zip(names, each.ranks.values(), strict=True)),
                pandas.DataFrame(each.p, names, names),
                alpha=SIGNIFICANT,
                ax=axes,
                label_fmt_left="{label}  {rank:.2f} ",
                label_fmt_right=" {rank:.2f}  {label}",
                color_palette=[INK.light] * len(names),
                crossbar_props={"color": SERIES[1].light, "linewidth": 3},
                elbow_props={"linewidth": 0.8},
                text_h_margin=0.02 * len(names),
            )
            axes.spines["top"].set_visible(True)
            axes.spines["top"].set_bounds(1, len(names))
            axes.set_xlim(1 - 0.03 * len(names), 1.03 * len(names))
            axes.set_xticks(range(1, len(names) + 1))
            axes.set_title(_ranked_title(each), loc="left", pad=20)
    return figure


BARS = (
    "Mean ranks over categories, 1 is best. Bars join methods that do not differ significantly "
    f"(Wilcoxon's signed-rank test, p ≥ {SIGNIFICANT:g} after Holm's correction)."
)


def _ranked_caption(rankings: Sequence[MeanRanks], title: str) -> str:
    """What the diagrams show, the test used, and which methods some of them lack."""
    lacking = [f"{each.title}: without {', '.join(each.left_out)}." for each in rankings if each.left_out]
    return "\n".join(line for text in (title, BARS, *lacking) for line in textwrap.wrap(clean(text), 96))


def _ranked_title(ranking: MeanRanks) -> str:
    """The metric, the number of categories, and Friedman's test."""
    nothing = " (no difference found)" if ranking.friedman >= SIGNIFICANT else ""
    return clean(f"{ranking.title}, {ranking.categories} categories, Friedman p = {ranking.friedman:.2g}{nothing}")


def heat_map(table: Table) -> Figure:
    """A table of one metric, each cell shaded from the lowest value (light) to the highest."""
    shares = heat_shares(table)
    with styled({"axes.grid": False}):
        wide, high = 2.2 + 0.95 * len(table.columns), 1.1 + 0.27 * len(table.rows)
        figure = Figure(figsize=(wide, high))
        axes = figure.add_axes(
            (2.0 / wide, 0.1 / high, 0.95 * len(table.columns) / wide, 0.27 * len(table.rows) / high)
        )
        axes.set(xlim=(0, len(table.columns)), ylim=(len(table.rows), 0))
        for row, column in itertools.product(range(len(table.rows)), range(len(table.columns))):
            share, value = shares[row][column], table.cells[row][column].values[0]
            face = "none" if share is None else _mix(PAPER.light, SERIES[0].light, 0.08 + 0.5 * share)
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor=PAPER.light))
            weight = "bold" if value.rank == 1 else "normal"
            axes.text(column + 0.5, row + 0.5, value.text, ha="center", va="center", weight=weight)
        axes.set_xticks([number + 0.5 for number in range(len(table.columns))])
        axes.set_xticklabels(["\n".join(clean(text) for text in head.labels if text) for head in table.columns])
        axes.set_yticks([number + 0.5 for number in range(len(table.rows))])
        axes.set_yticklabels([clean(" ".join(filter(None, head.labels))) for head in table.rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def heat_shares(table: Table) -> list[list[float | None]]:
    """The first value of each cell, scaled from the table's lowest (0) to its highest (1)."""
    values = [[cell.values[0] for cell in row] for row in table.cells]
    numbers = [[None if value.empty else float(value.text) for value in row] for row in values]
    known = [number for row in numbers for number in row if number is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    span = (high - low) or 1.0
    return [[None if number is None else (number - low) / span for number in row] for row in numbers]


def _mix(first: str, second: str, share: float) -> str:
    pairs = [(int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _plane(wide: float, high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(wide, high))
    return figure, figure.add_axes((0.8 / wide, 0.55 / high, 1 - 0.95 / wide, 1 - 0.7 / high))


def _labels(axes: Axes, x_title: str, y_title: str) -> None:
    axes.set_xlabel(clean(x_title))
    axes.set_ylabel(clean(y_title))


def _y_range(axes: Axes, points: Sequence[Point]) -> None:
    low, high = min(point.y for point in points), max(point.y for point in points)
    room = max(0.12 * (high - low), 0.5)
    axes.set_ylim(low - room, high + room)


def _look(series: int) -> dict[str, Any]:
    return {"color": SERIES[series % len(SERIES)].light, "marker": MARKERS[series % len(MARKERS)]}


def _scatter(axes: Axes, points: Sequence[Point]) -> None:
    for point in points:
        if point.series is None:
            axes.plot([point.x], [point.y], "o", markerfacecolor="none", markeredgecolor=MUTED.light, markersize=6)
        else:
            look = {**_look(point.series), "markeredgecolor": PAPER.light, "markeredgewidth": 0.8, "markersize": 9}
            if point.share:
                look |= {"markerfacecolor": PAPER.light, "markeredgecolor": look["color"], "markeredgewidth": 1.6}
            (mark,) = axes.plot([point.x], [point.y], linestyle="", **look)
            mark.set_gid(f"series-{point.series}")
