"""`anomaly-bench report`: everything that records hold on one HTML page that fetches nothing. No torch here.

Records that no table may compare (another dataset, protocol or input) get sections of their own. Every number comes
through `tables`, so that page and tables agree, footnotes included; the figures are those of `figures`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image as PILImage

import anomaly_bench
from anomaly_bench import figures, gallery, references, report, tables
from anomaly_bench.axes import Line
from anomaly_bench.entries import Entry, entries, setup_name, setups
from anomaly_bench.figures import Curve, Point
from anomaly_bench.gallery import Case
from anomaly_bench.grid import DASH, Grid, Head
from anomaly_bench.layouts import Layout, Measure
from anomaly_bench.metrics import METRICS
from anomaly_bench.records import Record, csv_row, legal, load_all, write_atomically
from anomaly_bench.references.methods import publications
from anomaly_bench.values import measured

ACCURACIES = ("image_auroc", "pixel_auroc", "pro")  # of heat maps and figures
PUBLISHED = {"image_auroc": "zheng2022_1", "pixel_auroc": "zheng2022_2"}  # the tables behind Figure 1 of Zheng et al.
KINDS = {"alarm": "False alarms: normal images of highest score", "miss": "Misses: defective images of lowest score"}
LEADING = {"category": "Category", "method": "Method", "backbone": "Backbone"}  # columns of the table of records
NUMBERS = (
    Measure("seed", "Seed", digits=0),
    *(Measure(name, METRICS[name].title, scale=100, digits=2) for name in (*ACCURACIES, "image_ap", "pixel_ap")),
    Measure("latency_ms", "latency (ms)"),
    Measure("fps", "FPS"),
    Measure("fit_s", "fit (s)"),
    Measure("extra_params", "extra params (M)", scale=1e-6, digits=2),
    Measure("stored_mb", "stored (MB)"),
    Measure("peak_ram_mb", "peak RAM (MB)", digits=0),
)
TRAILING = {"dataset": "Dataset", "input": "Input", "protocol": "Protocol", "record": "Record"}


def write(config: Any) -> None:
    """Write the page to `out`, and the figures into the folder `figures` if one is named.

    Raises:
        UsageError: a results folder without records, or no record of a wanted name.
    """
    folders = report.folders(config["results"])
    known, _ = report.wanted(report.joined(folders, load_all), [], config)
    sections = [Section(f"s{number}", part, folders) for number, part in enumerate(setups(known), 1)]
    out = Path(str(config["out"])).expanduser()
    text = page(known, sections).encode()
    write_atomically(out, text)
    print(f"{out}: {len(known)} records, {len(text) / 1e6:.1f} MB")
    if config["figures"] is not None:
        folder = Path(str(config["figures"])).expanduser()
        drawn = [drawing for section in sections for drawing in section.drawings()]
        for name, figure in drawn:
            figures.save(figure, folder / name)
        print(f"{folder}: {len(drawn)} figures, each as SVG and PDF")


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
    """A figure on the page, the grid whose numbers it shows, the table of its published ones, and who is missing."""

    title: str
    svg: Markup
    grid: Grid
    missing: list[str]
    source: str = ""


class Section:
    """The records of one setup, and the parts of the page made from them; `key` starts the ids of its elements."""

    def __init__(self, key: str, records: Sequence[Record], results: Sequence[Path]) -> None:
        self.key, self.records, self.results = key, records, results
        self.entries = entries(records, with_speed=False)
        self.labels = [" ".join(filter(None, (entry.full_title, entry.backbone))) for entry in self.entries]
        known = [name for name in ACCURACIES if any(record.value(name) is not None for record in records)]
        self.metrics = {name: METRICS[name].title for name in known}
        self.heat = {name: self._grid("categories", "methods", [name]) for name in ACCURACIES}
        self.title = self.heat["image_auroc"].caption
        self.categories = [row.labels[0] for row in self.heat["image_auroc"].rows if not row.mean]

    def _grid(self, rows: str, columns: str, cells: list[Any]) -> Grid:
        layout = Layout("report", "{dataset}, {setup}", rows, columns, cells, scale=100)
        return tables.grids(self.records, layout)[0]

    def legend(self) -> Iterator[tuple[str, Markup]]:
        """The name of each series and its look."""
        for number, label in enumerate(self.labels):
            yield label, self._inline(figures.sample(number), f"legend-{number}", "")

    def _inline(self, figure: Figure, name: str, title: str) -> Markup:
        return Markup(figures.inline(figure, f"{self.key}-{name}", title))  # escaped by the XML writer

    # accuracy against latency and against time

    def latency(self, metric: str) -> Iterator[tuple[str, list[Point]]]:
        """For each machine setting: its name, and the points of its methods."""
        parts: dict[str, list[Point]] = defaultdict(list)
        for entry in entries(self.records, with_speed=True):
            x, y = self._mean(entry, Measure("latency_ms", "")), self._mean(entry, Measure(metric, "", scale=100))
            if x is not None and y is not None:
                number = self._series(entry)
                parts[str(entry.setting)].append(Point(x, y, self.labels[number], number))
        yield from parts.items()

    def _mean(self, entry: Entry, measure: Measure) -> float | None:
        """As in a table, over categories and seeds, but with 6 decimals."""
        exact = replace(measure, digits=6)
        return measured(exact, Line(Head(()), entry=entry), list(entry.records), averaged=True).number

    def _series(self, entry: Entry) -> int:
        names = [(each.full_title, each.backbone) for each in self.entries]
        return names.index((entry.full_title, entry.backbone))

    def latency_plots(self, metric: str) -> Iterator[Plot]:
        title = self.metrics[metric]
        speed = {"value": "latency_ms", "title": "latency (ms)", "scale": 1, "digits": 1, "best": "lowest"}
        grid = self._grid("methods", "cells", [metric, speed])
        for number, (place, points) in enumerate(self.latency(metric)):
            heading = f"{title} against latency ({place})"
            svg = self._inline(figures.latency(points, title), f"latency-{metric}-{number}", heading)
            yield Plot(heading, svg, grid, self._missing(points))

    def timeline(self, metric: str) -> tuple[list[Point], list[Point]]:
        """Published and measured points of methods with an arXiv number."""
        known = publications()
        months = {name: figures.month_number(*each.month) for name, each in known.items() if each.month}
        cells = references.load(PUBLISHED[metric]) if metric in PUBLISHED else []
        published = [
            Point(months[cell.method], cell.value, known[cell.method].title, method=cell.method)
            for cell in cells
            if cell.dataset == self.records[0].dataset and cell.category == "mean:all" and cell.method in months
            if cell.value is not None
        ]
        found = []
        for number, entry in enumerate(self.entries):
            method, value = entry.sample.method, self._mean(entry, Measure(metric, "", scale=100))
            if method in months and value is not None:
                found.append(Point(months[method], value, self.labels[number], number, method))
        return published, found

    def timeline_plot(self, metric: str) -> Plot | None:
        """None where there is nothing to show, neither published nor measured."""
        published, found = self.timeline(metric)
        if not published and not found:
            return None
        title = self.metrics[metric]
        heading = f"{title} against the month of publication"
        svg = self._inline(figures.timeline(published, found, title), f"timeline-{metric}", heading)
        source = references.TABLES[PUBLISHED[metric]].title if published else ""
        return Plot(heading, svg, self._grid("methods", "cells", [metric]), self._missing(found), source)

    def _missing(self, points: Sequence[Point]) -> list[str]:
        return [label for number, label in enumerate(self.labels) if number not in {point.series for point in points}]

    # curves

    def curves(self, category: str) -> dict[str, list[Curve]]:
        """Panel -> lines, one for each method and seed."""
        panels: dict[str, list[Curve]] = defaultdict(list)
        for kind in figures.CURVES:
            for number, entry in enumerate(self.entries):
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
        for number, entry in enumerate(self.entries):
            made = sorted(entry.records.get(category, ()), key=lambda record: record.seed)
            places = [(record, folder / record.path.with_suffix("")) for record in made for folder in self.results]
            for case in gallery.cases(*next((each for each in places if each[1].is_dir()), places[0])) if made else ():
                doubt = found.setdefault((case.kind, case.file), Doubt(case.kind, case.file, case.defect))
                parts = gallery.squares(case.picture) if case.picture else {}
                doubt.image = doubt.image or ("image" in parts and data_uri(parts["image"])) or ""
                doubt.mask = doubt.mask or ("mask" in parts and data_uri(parts["mask"].convert("1"))) or ""
                doubt.views.append(View(number, data_uri(parts["map"]) if "map" in parts else "", case))
        return sorted(found.values(), key=lambda doubt: (doubt.kind, *doubt.order()))

    # for print

    def drawings(self) -> Iterator[tuple[Path, Figure]]:
        """Every figure, and its path below the folder of figures without a suffix."""
        folder = Path(setup_name(self.records[0]))
        for metric, title in self.metrics.items():
            yield folder / f"heat-{metric}", figures.heat_map(self.heat[metric])
            for number, (_, points) in enumerate(self.latency(metric), 1):
                yield folder / f"latency-{metric}-{number}", figures.latency(points, title)
            published, found = self.timeline(metric)
            if published or found:
                yield folder / f"timeline-{metric}", figures.timeline(published, found, title)
        for category in self.categories:
            if panels := self.curves(category):
                yield folder / f"curves-{legal(category)}", figures.curves(panels, legend=True)


def data_uri(picture: PILImage.Image) -> str:
    """A picture as text for `src`: PNG in black and white, JPEG in colours."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "1" else "jpeg"
    picture.save(buffer, kind, optimize=True, **({} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------------------ page


@dataclass(frozen=True)
class Column:
    """Of the table of records; choices: the values by which rows can be chosen."""

    name: str
    title: str
    number: bool = False
    choices: tuple[str, ...] = ()


def columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of some `table_row`s; one that holds a single value everywhere offers no choice."""

    def texts(titles: Mapping[str, str]) -> Iterator[Column]:
        for name, title in titles.items():
            values = sorted({row[name] for row in rows})
            yield Column(name, title, choices=tuple(values) if len(values) > 1 and name != "record" else ())

    numbers = (Column(measure.value, measure.title, number=True) for measure in NUMBERS)
    return [*texts(LEADING), *numbers, *texts(TRAILING)]


def table_row(record: Record) -> dict[str, Any]:
    """The cells of one record by name: text, or (number or None, text); and its `path`."""
    row = csv_row(record)
    size = " crop ".join(filter(None, (str(row["resize"]), str(row["crop"]))))
    numbers = {measure.value: (row[measure.value], printed(measure, row[measure.value])) for measure in NUMBERS}
    texts = {name: str(row[name]) for name in ("category", "method", "backbone", "dataset", "protocol")}
    return {**numbers, **texts, "input": size, "record": row["fingerprint"][:8], "path": record.path.as_posix()}


def printed(measure: Measure, value: float | None) -> str:
    return DASH if value is None else f"{value * measure.scale:.{measure.digits}f}"


def page(known: Sequence[Record], sections: Sequence[Section]) -> str:
    """The whole file as text; equal records give equal text."""
    rows = [table_row(record) for record in known]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly_bench", "templates"),
        autoescape=True,
        finalize=lambda value: figures.clean(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.loader.get_source(environment, "report.js")[0]  # type: ignore[union-attr]
    return environment.get_template("report.html").render(
        version=anomaly_bench.__version__,
        variables=figures.VARIABLES,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=columns(rows),
        rows=rows,
        sections=sections,
        heat_shares=figures.heat_shares,
        numbered=enumerate,
        kinds=KINDS,
    )
