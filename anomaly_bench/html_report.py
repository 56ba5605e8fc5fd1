"""`anomaly-bench report`: everything that records hold on one HTML page that fetches nothing. No torch here.

Records that no table may compare (another dataset, protocol or input) get sections of their own. Every number comes
through `tables`, so that page and tables agree, footnotes included; the figures are those of `figures`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image as PILImage

import anomaly_bench
from anomaly_bench import figures, gallery, references, report, tables
from anomaly_bench.errors import UsageError
from anomaly_bench.figures import Curve, Point
from anomaly_bench.gallery import Case
from anomaly_bench.records import Record, csv_row, legal, load_all, write_atomically
from anomaly_bench.references.methods import publications
from anomaly_bench.tables import Entry, Grid, Layout, Measure

METRICS = ("image_auroc", "pixel_auroc", "pro")  # of heat maps and accuracy axes
PUBLISHED = {"image_auroc": "zheng2022_1", "pixel_auroc": "zheng2022_2"}  # the tables behind Figure 1 of Zheng et al.
LEADING = {"category": "Category", "method": "Method", "backbone": "Backbone"}  # columns of the table of records
TRAILING = {"dataset": "Dataset", "input": "Input", "protocol": "Protocol", "record": "Record"}
CHOSEN = ("category", "method", "backbone", "dataset", "input", "protocol")  # those with a choice of their values
NUMBERS = (
    Measure("seed", "Seed", digits=0),
    *(Measure(name, title, scale=100, digits=2) for name, title in zip(METRICS, ("image AUROC", "pixel AUROC", "PRO"), strict=True)),
    Measure("image_ap", "image AP", scale=100, digits=2),
    Measure("pixel_ap", "pixel AP", scale=100, digits=2),
    Measure("latency_ms", "latency (ms)"),
    Measure("fps", "FPS"),
    Measure("fit_s", "fit (s)"),
    Measure("extra_params", "extra params (M)", scale=1e-6, digits=2),
    Measure("stored_mb", "stored (MB)"),
    Measure("peak_ram_mb", "peak RAM (MB)", digits=0),
)
KINDS = {"alarm": "False alarms: normal images of highest score", "miss": "Misses: defective images of lowest score"}


def write(config: Any) -> None:
    """Write `out`, and the figures into the folder `figures` if one is named.

    Raises:
        UsageError: no records, or none of a wanted name.
    """
    found = read([Path(name).expanduser() for name in report.names(config["results"]) or []])
    for key in ("dataset", "method", "backbone"):
        wanted = {record.path for record in report.keep([each.record for each in found], key, report.names(config[key]))}
        found = [each for each in found if each.record.path in wanted]
    sections = [Section(f"s{number}", part) for number, part in enumerate(split(found), 1)]
    out = Path(str(config["out"])).expanduser()
    text = page(found, sections).encode("utf-8", "replace")  # half a surrogate pair in a file name becomes "?"
    write_atomically(out, text)
    print(f"{out}: {len(found)} records, {len(text) / 1e6:.1f} MB")
    if config["figures"] is not None:
        folder = Path(str(config["figures"])).expanduser()
        drawn = [(name, figure) for section in sections for name, figure in section.drawings()]
        for name, figure in drawn:
            figures.save(figure, folder / name)
        print(f"{folder}: {len(drawn)} figures, each as SVG and PDF")


@dataclass(frozen=True)
class Found:
    """A record, and the folder of its pictures (which need not be there)."""

    record: Record
    pictures: Path


def read(folders: Sequence[Path]) -> list[Found]:
    """The records of all folders; one that lies in several counts once, with the speeds of all.

    Raises:
        UsageError: a folder without a record.
    """
    found: dict[Path, Found] = {}
    for folder in folders:
        loaded, damaged = load_all(folder)
        for message in damaged:
            print(f"warning: {message}", file=sys.stderr)
        if not loaded:
            raise UsageError(f"results={folder}: no records there; anomaly-bench results={folder} ... makes some")
        for record in loaded:
            pictures = folder / record.path.with_suffix("")
            known = found.get(record.path)
            if known is not None:
                speeds = [*known.record.speed, *(each for each in record.speed if each not in known.record.speed)]
                pictures = known.pictures if known.pictures.is_dir() else pictures
                record = replace(known.record, speed=speeds)
            found[record.path] = Found(record, pictures)
    return list(found.values())


def split(found: Sequence[Found]) -> list[list[Found]]:
    """What one table may compare; see `tables.setups`."""
    places = {each.record.path: each for each in found}
    return [[places[record.path] for record in part] for part in tables.setups(each.record for each in found)]


# -------------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class View:
    """What one method makes of an image: its map (a data URI, or empty), and its place among the images."""

    series: int
    map: str
    case: Case


@dataclass
class Doubt:
    """An image that is among the worst of some methods, by all of them together.

    image, mask: data URIs, or empty where no picture was kept or there is no mask.
    """

    kind: str
    file: str
    defect: str | None
    image: str = ""
    mask: str = ""
    views: list[View] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How many of the methods put it on the wrong side of at least one image of the other label."""
        return sum(view.case.crossed > 0 for view in self.views)

    def order(self) -> tuple[float, ...]:
        """Of the gallery: wrong for most methods first, then by how far it is on the wrong side."""
        shares = [view.case.crossed / max(view.case.others, 1) for view in self.views]
        return -self.wrong, -len(self.views), -sum(shares)


@dataclass(frozen=True)
class Plot:
    """A figure on the page, and the numbers it shows as a table."""

    svg: Markup
    grid: Grid
    title: str
    text: str = ""


class Section:
    """The records of one setup, and the parts of the page made from them; `key` starts the ids of its elements."""

    def __init__(self, key: str, found: Sequence[Found]) -> None:
        self.key = key
        self.records = [each.record for each in found]
        self.pictures = {each.record.path: each.pictures for each in found}
        self.entries = {(entry.title, entry.backbone): entry for entry in tables.method_entries(self.records, with_speed=False)}
        self.series = {labels: number for number, labels in enumerate(self.entries)}
        self.labels = [" ".join(filter(None, labels)) for labels in self.entries]
        self.metrics = [name for name in METRICS if any(record.value(name) is not None for record in self.records)]
        self.heat = {name: self._grid("categories", "methods", [name]) for name in self.metrics}
        self.title = self._grid("categories", "methods", ["image_auroc"]).caption
        rows = self._grid("categories", "methods", ["image_auroc"]).rows
        self.categories = [row.labels[0] for row in rows if not row.mean]

    def _grid(self, rows: str, columns: str, cells: list[Any]) -> Grid:
        layout = Layout("report", "{dataset}, {setup}", rows, columns, cells, scale=100)
        return tables.grids(self.records, layout)[0]

    def metric_title(self, name: str) -> str:
        return next(measure.title for measure in NUMBERS if measure.value == name)

    def samples(self) -> list[Markup]:
        """The look of each series, for the legend."""
        return [self._inline(figures.sample(number), f"legend-{number}", "") for number in range(len(self.labels))]

    def _inline(self, figure: Figure, name: str, title: str) -> Markup:
        return Markup(figures.inline(figure, f"{self.key}-{name}", title))  # noqa: S704: escaped by the XML writer

    # accuracy against latency and against time

    def latency(self, metric: str) -> Iterator[tuple[str, Grid, list[Point]]]:
        """For each machine setting: its name, the grid of all, the points of its methods."""
        speed = {"value": "latency_ms", "title": "latency (ms)", "scale": 1, "digits": 1, "best": "lowest"}
        grid = self._grid("methods", "cells", [metric, speed])
        parts: dict[str, list[Point]] = {}
        place = ""
        for head, (accuracy, time) in zip(grid.rows, grid.cells, strict=True):
            place = head.above or place
            x, y = time.values[0].number, accuracy.values[0].number
            if x is not None and y is not None:
                number = self.series[head.labels[0], head.labels[1]]
                parts.setdefault(place, []).append(Point(x, 100 * y, self.labels[number], number))
        for place, points in parts.items():
            yield place, grid, points

    def latency_plots(self, metric: str) -> Iterator[Plot]:
        title = self.metric_title(metric)
        for number, (place, grid, points) in enumerate(self.latency(metric)):
            heading = f"{title} against latency" + (f" ({place})" if place else "")
            svg = self._inline(figures.latency(points, title), f"latency-{metric}-{number}", heading)
            yield Plot(svg, grid, heading)

    def timeline(self, metric: str) -> tuple[Grid, list[Point], list[Point]]:
        """The grid of measured values, published points, measured points; of methods with an arXiv number."""
        known = publications()
        months = {name: figures.month_number(*each.month) for name, each in known.items() if each.month}
        cells = references.load(PUBLISHED[metric]) if metric in PUBLISHED else []
        published = [
            Point(months[cell.method], cell.value, known[cell.method].title)
            for cell in cells
            if cell.dataset == self.records[0].dataset and cell.category == "mean:all" and cell.method in months
            if cell.value is not None
        ]
        grid = self._grid("methods", "cells", [metric])
        measured = []
        for head, (cell,) in zip(grid.rows, grid.cells, strict=True):
            number = self.series[head.labels[0], head.labels[1]]
            month, value = months.get(self._method(self.entries[head.labels[0], head.labels[1]])), cell.values[0].number
            if month is not None and value is not None:
                measured.append(Point(month, 100 * value, self.labels[number], number))
        return grid, published, measured

    def _method(self, entry: Entry) -> str:
        return next(iter(entry.records.values()))[0].method

    def timeline_plot(self, metric: str) -> Plot | None:
        """None where there is nothing to show, neither published nor measured."""
        grid, published, measured = self.timeline(metric)
        if not published and not measured:
            return None
        title = self.metric_title(metric)
        heading = f"{title} against the month of publication"
        svg = self._inline(figures.timeline(published, measured, title), f"timeline-{metric}", heading)
        source = references.TABLES[PUBLISHED[metric]].title if published else ""
        return Plot(svg, grid, heading, source)

    # curves

    def curves(self, category: str) -> dict[str, list[Curve]]:
        """Panel -> lines, one for each method and seed."""
        panels: dict[str, list[Curve]] = defaultdict(list)
        for kind in figures.CURVES:
            for number, entry in enumerate(self.entries.values()):
                drawn = [record.curves[kind] for record in entry.records.get(category, ()) if kind in record.curves]
                for order, curve in enumerate(drawn):
                    panels[kind].append(Curve(curve["x"], curve["y"], self.labels[number], number, order == 0))
        return panels

    def curve_panels(self, category: str) -> Iterator[Markup]:
        place = self.categories.index(category)
        for kind, lines in self.curves(category).items():
            title = f"{figures.CURVES[kind][0]} curves of {category}"
            yield self._inline(figures.curves({kind: lines}), f"curve-{place}-{kind}", title)

    # the worst cases

    def doubts(self, category: str) -> list[Doubt]:
        """The worst images of a category over all methods, of each method its first seed with pictures."""
        found: dict[tuple[str, str], Doubt] = {}
        for number, entry in enumerate(self.entries.values()):
            made = sorted(entry.records.get(category, ()), key=lambda record: record.seed)
            record = next((each for each in made if self.pictures[each.path].is_dir()), made[0] if made else None)
            for case in [] if record is None else gallery.cases(record, self.pictures[record.path]):
                doubt = found.setdefault((case.kind, case.file), Doubt(case.kind, case.file, case.defect))
                parts = gallery.squares(case.picture) if case.picture else {}
                doubt.image = doubt.image or ("image" in parts and data_uri(parts["image"])) or ""
                doubt.mask = doubt.mask or ("mask" in parts and data_uri(parts["mask"].convert("1"))) or ""
                doubt.views.append(View(number, data_uri(parts["map"]) if "map" in parts else "", case))
        return sorted(found.values(), key=lambda doubt: (doubt.kind, *doubt.order()))

    # for print

    def drawings(self) -> Iterator[tuple[str, Figure]]:
        """Every figure under a file name without suffix."""
        start = report.setup(self.records[0])
        for metric in self.metrics:
            title = self.metric_title(metric)
            yield f"{start}-heat-{metric}", figures.heat_map(self.heat[metric])
            for number, (_, _, points) in enumerate(self.latency(metric), 1):
                yield f"{start}-latency-{metric}" + (f"-{number}" if number > 1 else ""), figures.latency(points, title)
            _, published, measured = self.timeline(metric)
            if published or measured:
                yield f"{start}-timeline-{metric}", figures.timeline(published, measured, title)
        for category in self.categories:
            panels = self.curves(category)
            if panels:
                yield f"{start}-curves-{legal(category)}", figures.curves(panels, legend=True)


def data_uri(picture: PILImage.Image) -> str:
    """A picture as text for `src`: PNG in black and white, JPEG in colours."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "1" else "jpeg"
    picture.save(buffer, kind, optimize=True, **({} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------------------ page


@dataclass(frozen=True)
class Column:
    """Of the table of records; `measure` where it holds numbers, `choices` where rows can be chosen by its value."""

    title: str
    measure: Measure | None = None
    choices: tuple[str, ...] = ()


def columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of some `table_row`s; one that holds a single value everywhere offers no choice."""
    values = {name: sorted({row[name] for row in rows}) for name in (*LEADING, *TRAILING)}
    choices = {name: tuple(values[name]) if len(values[name]) > 1 else () for name in (*CHOSEN,)}
    made = {name: Column(title, choices=choices.get(name, ())) for name, title in (LEADING | TRAILING).items()}
    numbers = [Column(measure.title, measure) for measure in NUMBERS]
    return [*(made[name] for name in LEADING), *numbers, *(made[name] for name in TRAILING)]


def table_row(found: Found) -> dict[str, Any]:
    """The cells of one record by name: text, or (sort key, text) of a number; and its `path`."""
    row = csv_row(found.record)
    size = " crop ".join(filter(None, (str(row["resize"]), str(row["crop"]))))
    numbers = {measure.value: (row[measure.value], printed(measure, row[measure.value])) for measure in NUMBERS}
    texts = {name: str(row[name]) for name in ("category", "method", "backbone", "dataset", "protocol")}
    return {**numbers, **texts, "input": size, "record": row["fingerprint"][:8], "path": found.record.path.as_posix()}


def printed(measure: Measure, value: float | None) -> str:
    return tables.DASH if value is None else f"{value * measure.scale:.{measure.digits}f}"


def page(found: Sequence[Found], sections: Sequence[Section]) -> str:
    """The whole file as text; equal records give equal text."""
    rows = [table_row(each) for each in found]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly_bench", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.loader.get_source(environment, "report.js")[0]  # type: ignore[union-attr]
    return environment.get_template("report.html").render(
        version=anomaly_bench.__version__,
        variables=figures.VARIABLES,
        series_count=len(figures.SERIES),
        script=Markup(script),  # noqa: S704: our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=columns(rows),
        rows=rows,
        names=[*LEADING, *(measure.value for measure in NUMBERS), *TRAILING],
        sections=sections,
        heat_shares=figures.heat_shares,
        kinds=KINDS,
        dash=tables.DASH,
    )
