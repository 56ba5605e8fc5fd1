"""Table layouts (`conf/table/`), read from YAML and checked.

A layout puts two of three axes in rows and columns:
    categories   of the dataset, in their groups, with means
    methods      one line per method, backbone and set of hyper-parameters (and speed setting)
    cells        one line per number of the layout
Without a categories axis, values are means over categories; without a cells axis, numbers form a tuple in one cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import UsageError, closest
from anomaly_bench.metrics.registry import find_metric, packaged_metrics
from anomaly_bench.published import TABLES, load_references

if TYPE_CHECKING:
    from anomaly_bench.metrics.registry import Entries
    from anomaly_bench.published import Reference

AXES = ("categories", "methods", "cells")
SPEEDS = ("fps", "latency_ms", "backbone_fps", "backbone_latency_ms")
SIZES = ("extra_params", "extra_mb", "stored_mb")
TIMES = ("fit_s", "score_s")
COSTS = (*TIMES, "peak_ram_mb", "peak_gpu_mb")
TEXTS = ("backbone", "input_size")
CORRECTED = "corrected_"  # before a metric: its value under corrected labels
TOTALS = ("images_changed",)  # by corrected labels, over all categories
MARKS = ("bold", "bold+underline", "none")
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Column:
    """One value of a record: a metric, a field of its speed, size or cost, or one of `TEXTS`.

    Attributes:
        value: its name in the record.
        title: column header; defaults to the metric's title.
        over: a second header spanning neighbouring columns.
        published: its name among the published numbers, if different.
        scale, digits: factor, and number of decimals.
        best: which value is set in bold: "highest", "lowest" or "" (none).
        deviation: print the standard deviation over seeds.
        holdout: only in tables of records with thresholds from held-out images.
    """

    value: str
    title: str
    over: str = ""
    published: str = ""
    scale: float = 1.0
    digits: int = 1
    best: str = ""
    deviation: bool = False
    holdout: bool = False


@dataclass(frozen=True)
class Variant:
    """What the columns of one variant of a paper's table are here, such as those of "3d only/voxel".

    Attributes:
        dataset: its name in records.
        methods: name in the paper's header -> our method, where `published/aliases.csv` has another.
    """

    dataset: str
    methods: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The content of `conf/table/<name>.yaml`.

    Attributes:
        caption: with {dataset}, {setup} and {cells} filled in.
        rows, columns: two of `AXES`, one of them "methods".
        cells: metric names, or mappings with the keys of `Column`.
        published: a key of `published.TABLES`: rows and columns are those of this paper's table.
        variants: which dataset and methods a variant's columns are, if not the paper's: its name -> keys of `Variant`.
        groups: headers over columns of a paper's table: title -> printed method names, or categories.
        labels: category, or mean as in `published.MEANS` -> label in the paper's table.
        best: how the best is marked, one of `MARKS`.
        joined: what stands between the numbers of a cell, "/"; "": they are a tuple.
        capitals: categories begin with a capital letter.
        caption_below: in LaTeX, as in the paper.
        scale, digits, deviation: defaults for cells.
        holdout: only of records with thresholds from held-out images; corrected: with values under corrected labels.
        notes: printed under every table of measured values.
    """

    name: str
    caption: str
    rows: str
    columns: str
    cells: list[Any]
    published: str = ""
    variants: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    best: str = "bold"
    joined: str = ""
    capitals: bool = False
    caption_below: bool = False
    scale: float = 1.0
    digits: int = 1
    deviation: bool = False
    holdout: bool = False
    corrected: bool = False
    notes: list[str] = field(default_factory=list)

    def measure(self, cell: Any, entries: Entries = ()) -> Column:
        """One of `cells` with the layout's defaults; for metrics, higher is better.

        A user's own metric brings its scale and digits in the records.
        """
        content = {"value": cell} if isinstance(cell, str) else cell
        name = content.get("value") if isinstance(content, dict) else None
        metric = find_metric(str(name).removeprefix(CORRECTED), entries)
        known = {name: getattr(self, name) for name in ("scale", "digits", "deviation")}
        if metric and metric.name not in packaged_metrics():
            known |= {"scale": metric.scale, "digits": metric.digits}
        known["title"] = metric.title if metric else str(name)
        unranked = name in (*SPEEDS, *SIZES, *COSTS, *TEXTS, *TOTALS)
        known["best"] = metric.best if metric else "" if unranked else "highest"
        made: Column = _make(Column, {**known, **content} if isinstance(content, dict) else content, self.name)
        return made

    def variant(self, name: str) -> Variant:
        """One of `variants`; for others, the dataset of the paper's table and no method instead of its own."""
        content = self.variants.get(name, {"dataset": TABLES[self.published].dataset})
        made: Variant = _make(Variant, content, f"{self.name}: variants: {name}")
        return made

    def datasets(self, variant: str) -> tuple[str, ...]:
        """Names in records of what a variant's columns are measured on: the dataset itself first, then its copies."""
        paper, dataset = TABLES[self.published], self.variant(variant).dataset
        return (dataset, *(paper.copies if dataset == paper.dataset else ()))

    def references(self) -> list[Reference]:
        """The cells of the paper's table, with the methods of `variants`."""
        methods = {
            (name, printed): ours for name in self.variants for printed, ours in self.variant(name).methods.items()
        }
        return [
            replace(cell, method=methods.get((cell.variant, cell.printed_name), cell.method))
            for cell in load_references(self.published)
        ]

    def header(self, axis: str) -> dict[str, str]:
        """Method or category -> the group header above it, if that axis is the columns."""
        found = self.groups.items() if axis == self.columns else ()
        return {name: title for title, members in found for name in members}

    def measures(self, cells: Iterable[str] | None, entries: Collection[Mapping[str, Any]]) -> list[Column]:
        """The layout's numbers, or the given ones if the layout has no cells axis.

        Args:
            entries: the records' metrics; a user's own may be among them.

        Raises:
            UsageError: a metric that is neither known nor recorded.
        """
        chosen = None if "cells" in (self.rows, self.columns) else cells
        own = {measure.value: measure for measure in (self.measure(cell, entries) for cell in self.cells)}
        names = list(own if chosen is None else chosen)
        metrics = {*packaged_metrics(), *set().union(*entries)}
        other = {*SPEEDS, *SIZES, *COSTS, *TEXTS, *TOTALS} | {CORRECTED + name for name in metrics}
        valid = metrics | (other if chosen is None else set())
        if not names:
            raise UsageError("cells is empty, expected at least one metric")
        for name in names:
            if name not in valid:
                raise UsageError(f"cells: unknown metric {name}{closest(name, valid)}")
        return [own.get(name) or self.measure(name, entries) for name in names]


def load_layout(name: str, folders: Iterable[Path]) -> Layout:
    """Read `<name>.yaml` from the first folder that has it.

    Raises:
        UsageError: no such layout, invalid YAML, or a key that is unknown, missing or without effect.
    """
    from omegaconf import OmegaConf

    paths = {path.stem: path for folder in reversed(list(folders)) for path in folder.glob("*.yaml")}
    if name not in paths:
        raise UsageError(f"no table layout named {name}{closest(name, paths)}")
    where = str(paths[name])
    try:
        content = OmegaConf.to_container(OmegaConf.load(where), resolve=True)
    except Exception as error:  # the YAML parser's errors have no type that OmegaConf exports
        raise UsageError(f"{where}: cannot be read: {error}") from error
    layout = make_layout(content, where)
    if layout.name != name:
        raise UsageError(f"{where}: name is {layout.name}, expected {name} as the file's")
    return layout


def make_layout(content: Any, where: str) -> Layout:
    """A layout from parsed YAML; `where`: its location, for error messages. See `load_layout`."""
    layout: Layout = _make(Layout, content, where)
    _check(layout, where)
    return layout


def _make(kind: type[Any], content: Any, where: str) -> Any:
    """A dataclass from a mapping; keys and types must match."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}: found {content!r}, expected a mapping")
    valid = {entry.name: str(entry.type) for entry in fields(kind)}
    for key, value in content.items():
        if key not in valid:
            raise UsageError(f"{where}: unknown key {key}{closest(str(key), valid)}")
        parts = value if isinstance(value, list) and valid[key] == "list[str]" else []
        if not _is(value, valid[key].partition("[")[0]) or not all(_is(part, "str") for part in parts):
            raise UsageError(f"{where}: {key} is {value!r}, expected a value of type {valid[key]}")
    try:
        return kind(**content)
    except TypeError as error:  # a key is missing
        raise UsageError(f"{where}: {str(error).split('__init__() ')[-1]}") from error


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "bool")


def _check(layout: Layout, where: str) -> None:
    """Reject a layout whose axes, caption or cells cannot be printed."""
    axes = (layout.rows, layout.columns)
    for axis in axes:
        if axis not in AXES:
            raise UsageError(f"{where}: rows or columns is {axis}{closest(axis, AXES)}")
    if axes.count("methods") != 1:
        raise UsageError(f"{where}: rows: {axes[0]}, columns: {axes[1]}; exactly one of them must be methods")
    try:
        layout.caption.format(dataset="", setup="", cells="")
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(f"{where}: caption: {error!r}; valid: {{dataset}}, {{setup}}, {{cells}}") from error
    if layout.best not in MARKS:
        raise UsageError(f"{where}: best is {layout.best}{closest(layout.best, MARKS)}")
    if not layout.cells:
        raise UsageError(f"{where}: cells is empty, expected at least one metric")
    for measure in map(layout.measure, layout.cells):
        if measure.over and "cells" not in axes:
            raise UsageError(f"{where}: over: {measure.over} has no effect unless rows or columns is cells")
        if measure.best not in ("", "highest", "lowest"):
            raise UsageError(f"{where}: best is {measure.best}{closest(measure.best, ('highest', 'lowest'))}")
    _check_paper(layout, where)


def _check_paper(layout: Layout, where: str) -> None:
    """Reject keys that need a paper's table, and names that the paper does not have."""
    if not layout.published:
        for key in ("variants", "groups", "labels"):
            if getattr(layout, key):
                raise UsageError(f"{where}: {key} has no effect without published: TABLE")
        return
    if layout.published not in TABLES:
        raise UsageError(f"{where}: published: no table {layout.published}{closest(layout.published, TABLES)}")
    cells = load_references(layout.published)
    _check_names(layout.variants, {cell.variant for cell in cells} - {""}, f"{where}: variants")
    for name in layout.variants:
        methods, here = layout.variant(name).methods, f"{where}: variants: {name}: methods"
        _check_names(methods, {cell.printed_name for cell in cells if cell.variant == name}, here)
        _check_texts(methods, here)
    categories = {cell.category for cell in cells}
    for title, names in layout.groups.items():
        if not isinstance(names, list):
            raise UsageError(f"{where}: groups: {title} is {names!r}, expected a list of names")
        valid = categories if layout.columns == "categories" else {cell.printed_name for cell in cells}
        _check_names(names, valid, f"{where}: groups: {title}")
    _check_names(layout.labels, categories, f"{where}: labels")
    _check_texts(layout.labels, f"{where}: labels")


def _check_texts(content: Mapping[str, Any], where: str) -> None:
    for name, text in content.items():
        if not _is(text, "str"):
            raise UsageError(f"{where}: {name} is {text!r}, expected a text")


def _check_names(names: Iterable[Any], valid: set[str], where: str) -> None:
    for name in names:
        if name not in valid:
            raise UsageError(f"{where}: the paper's table has no {name}{closest(str(name), valid)}")
