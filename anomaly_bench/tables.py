"""Tables: records -> grid -> console text, Markdown, LaTeX. A pure function of records and a layout.

A layout (conf/table/<name>.yaml) puts two of three axes in rows and columns:
    categories   of the dataset, in their groups, with means
    methods      one line for each method, backbone and set of hyper-parameters (and speed setting)
    cells        one line for each of the layout's numbers
Where categories are no axis a value is their mean; where cells are none they stand as a tuple in one cell.
Records of unlike setups never share a grid, and what a value leaves out stands in a footnote.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from anomaly_bench.errors import UsageError, closest

if TYPE_CHECKING:
    from anomaly_bench.metrics import Metric
    from anomaly_bench.records import Record

T = TypeVar("T")
DASH = "–"
AXES = ("categories", "methods", "cells")
SPEED = ("fps", "latency_ms", "backbone_fps", "backbone_latency_ms")
SIZE = ("extra_params", "extra_mb", "stored_mb")
COST = ("fit_s", "score_s", "peak_ram_mb", "peak_gpu_mb")


# ---------------------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Measure:
    """One number of a record: a metric, or a field of its speed entries, size or cost.

    Attributes:
        value: its name in the record.
        title: heads its column; a metric has its own.
        over: a second header over neighbouring columns.
        scale, digits: multiplied by, then printed with so many decimals.
        best: which value is set in bold: "highest", "lowest" or "" (none).
    """

    value: str
    title: str
    over: str = ""
    scale: float = 1.0
    digits: int = 1
    best: str = ""


@dataclass(frozen=True)
class Layout:
    """What `conf/table/<name>.yaml` says.

    Attributes:
        caption: with {dataset}, {setup} and {cells} filled in.
        rows, columns: two of `AXES`, one of them "methods".
        cells: metric names, or mappings with the keys of `Measure`.
        scale, digits: of the cells that do not say their own.
        notes: printed under every table.
    """

    name: str
    caption: str
    rows: str
    columns: str
    cells: list[Any]
    scale: float = 1.0
    digits: int = 1
    notes: list[str] = field(default_factory=list)

    def measure(self, cell: Any) -> Measure:
        """One of `cells`, with the layout's scale and digits; a metric has a title, and higher is better."""
        content = {"value": cell} if isinstance(cell, str) else cell
        name = content.get("value") if isinstance(content, dict) else None
        metric = _metric(str(name))
        known = {"title": metric.title if metric else str(name), "scale": self.scale, "digits": self.digits}
        known["best"] = "" if name in (*SPEED, *SIZE, *COST) else "highest"
        made: Measure = _make(Measure, {**known, **content} if isinstance(content, dict) else content, self.name)
        return made


def load_layout(name: str, folders: Iterable[Path]) -> Layout:
    """Read `<name>.yaml` from the first folder that has it.

    Raises:
        UsageError: no such layout, no YAML, or a key that is unknown, missing or without effect.
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
    """A layout from a YAML's content; `where` it stands, for errors. See `load_layout`."""
    layout: Layout = _make(Layout, content, where)
    _check(layout, where)
    return layout


def _make(kind: type[Any], content: Any, where: str) -> Any:
    """A dataclass from a mapping whose keys and types must be its own."""
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
    types: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "list": list}
    return isinstance(value, types[kind]) and not isinstance(value, bool)


def _check(layout: Layout, where: str) -> None:
    """Refuse a layout whose axes, caption or cells cannot be printed."""
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
    if not layout.cells:
        raise UsageError(f"{where}: cells is empty, expected at least one metric")
    for measure in map(layout.measure, layout.cells):
        if measure.over and "cells" not in axes:
            raise UsageError(f"{where}: over: {measure.over} has no effect unless rows or columns is cells")
        if measure.best not in ("", "highest", "lowest"):
            raise UsageError(f"{where}: best is {measure.best}{closest(measure.best, ('highest', 'lowest'))}")


def _metric(name: str) -> Metric | None:
    from anomaly_bench.metrics import METRICS

    return METRICS.get(name)


# ----------------------------------------------------------------------------------------------------- grids


@dataclass(frozen=True)
class Value:
    """One printed number; rank 1 is the best of those that it is compared with, 0 is compared with none."""

    number: float | None
    text: str
    rank: int = 0


@dataclass(frozen=True)
class Cell:
    """One value or a tuple of them, and the letters of footnotes."""

    values: tuple[Value, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """What a row or column is called.

    Attributes:
        labels: header lines from the top, or label columns from the left.
        opens: a rule stands before it.
        above: a title printed between that rule and the row.
        mean: a row of means.
        notes: letters of footnotes.
    """

    labels: tuple[str, ...]
    opens: bool = False
    above: str = ""
    mean: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table as plain data: cells[row][column], and footnotes as (letter or "", text)."""

    name: str
    caption: str
    corner: tuple[str, ...]
    columns: list[Head]
    rows: list[Head]
    cells: list[list[Cell]]
    notes: list[tuple[str, str]]

    @property
    def paired(self) -> bool:
        """Whether cells are tuples."""
        return any(len(cell.values) > 1 for row in self.cells for cell in row)


def grids(records: Iterable[Record], layout: Layout, cells: Sequence[str] | None = None) -> list[Grid]:
    """One grid for each setup of the records.

    Args:
        cells: metrics to show instead of the layout's, where these are a tuple; where they are rows or columns
            the layout's stay.

    Raises:
        UsageError: a metric that is not known and in no record.
    """
    found = list(records)
    tuples = "cells" not in (layout.rows, layout.columns)
    measures = _measures(layout, cells if tuples else None, {name for record in found for name in record.metrics})
    parts = setups(found)
    names = [layout.name, *(f"{layout.name}-{number}" for number in range(2, len(parts) + 1))]
    return [_grid(part, layout, measures, name) for name, part in zip(names, parts, strict=False)]


def _measures(layout: Layout, cells: Sequence[str] | None, recorded: set[str]) -> list[Measure]:
    """The layout's numbers, or those that are named instead of them."""
    from anomaly_bench.metrics import METRICS

    own = {measure.value: measure for measure in map(layout.measure, layout.cells)}
    names = list(own if cells is None else cells)
    valid = {*METRICS, *recorded} | ({*SPEED, *SIZE, *COST} if cells is None else set())
    if not names:
        raise UsageError("cells is empty, expected at least one metric")
    for name in names:
        if name not in valid:
            raise UsageError(f"cells: unknown metric {name}{closest(name, valid)}")
    return [own.get(name) or layout.measure(name) for name in names]


def setups(records: Iterable[Record]) -> list[list[Record]]:
    """The records by dataset, protocol, input, oracle and precision: what one table may compare."""
    parts: dict[tuple[Any, ...], dict[tuple[Any, ...], Record]] = defaultdict(dict)
    for record in records:
        shape = json.dumps(record.input, sort_keys=True)
        key = (record.dataset, record.protocol, shape, record.oracle, record.precision)
        parts[key][record.method, record.backbone, record.task, record.test, record.seed, record.fingerprint] = record
    return [[parts[key][each] for each in sorted(parts[key])] for key in sorted(parts)]


def _describe(record: Record) -> str:
    """'input 256×256, crop 224×224, protocol unified', and what else sets it apart."""
    sizes = [(name, record.input.get(part)) for name, part in (("input", "resize"), ("crop", "crop"))]
    parts = [f"{name} {'×'.join(map(str, size))}" for name, size in sizes if size]
    parts.append(f"protocol {record.protocol}")
    if record.precision != "fp32":
        parts.append(record.precision)
    if record.oracle:
        parts.append("oracle (settings chosen on the test images)")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------------ axes


class Setting(NamedTuple):
    """What a speed depends on besides the method."""

    device: str
    threads: int | None
    batch_size: int | None
    precision: str

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Setting:
        return cls(entry["device"], entry.get("threads"), entry.get("batch_size"), entry.get("precision") or "")

    def order(self) -> tuple[str, int, int, str]:
        return self.device, self.threads or 0, self.batch_size or 0, self.precision

    def __str__(self) -> str:
        batch = "" if self.batch_size is None else f"batch {self.batch_size}"
        return ", ".join(filter(None, (_place(self.device, self.threads), batch, self.precision)))


def _place(device: str, threads: int | None) -> str:
    return device if threads is None else f"{device}, {threads} thread{'s' * (threads != 1)}"


@dataclass(frozen=True)
class Entry:
    """A method with one backbone, one set of hyper-parameters and, where speed is shown, one speed setting."""

    title: str
    backbone: str
    records: Mapping[str, Sequence[Record]]  # by category
    setting: Setting | None = None


@dataclass(frozen=True)
class Line:
    """A row or column and what it picks; an empty pick leaves the choice to the other axis, or takes all.

    Values are compared with those of the same section; as columns, sections have a header of their own.
    """

    head: Head
    section: str = ""
    entry: Entry | None = None
    categories: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()


def _category(record: Record) -> str:
    """The row of a record: its task, or its test set where one task has several."""
    if record.test == "test" or record.test in (each["name"] for each in record.categories):
        return record.task if record.test == "test" else record.test
    return f"{record.task}/{record.test}"


def _all_categories(records: Sequence[Record]) -> dict[str, str]:
    """Category -> group or "", in the dataset's order, each task's named test sets in its place."""
    listed: dict[str, str] = {}
    for record in sorted(records, key=lambda record: -len(record.categories)):
        for each in record.categories:
            listed.setdefault(each["name"], each.get("group") or "")
    tested = {_category(record): record for record in records}
    order: dict[str, str] = {}
    for name, group in listed.items():
        own = sorted(category for category, record in tested.items() if record.task == name)
        order |= dict.fromkeys(own or [name], group)
    return {**order, **{name: tested[name].group or "" for name in sorted(tested.keys() - order.keys())}}


def _category_lines(records: Sequence[Record]) -> list[Line]:
    """Categories with records, each group followed by its mean, and the mean of all at the end."""
    everything = _all_categories(records)
    recorded = {_category(record) for record in records}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, group in everything.items():
        groups[group].append(name)
    lines: list[Line] = []
    for group, names in groups.items():
        shown = [name for name in names if name in recorded]
        opening = bool(lines)
        for name in shown:
            lines.append(Line(Head((name,), opens=opening and name == shown[0]), group, categories=(name,)))
        if shown and group and len(groups) > 1:
            lines.append(Line(Head((f"mean of {group}",), mean=True), group, categories=tuple(names)))
    if len(everything) > 1:
        lines.append(Line(Head(("mean of all",), opens=True, mean=True), categories=tuple(everything)))
    return lines


def _method_lines(records: Sequence[Record], with_speed: bool) -> list[Line]:
    """Methods by title and backbone; with several speed settings, in a section for each."""
    entries = method_entries(records, with_speed)
    settings = {entry.setting for entry in entries if entry.setting}
    if len(settings) < 2:
        return [Line(Head((entry.title, entry.backbone)), entry=entry) for entry in entries]
    lines: list[Line] = []
    for setting in (*sorted(settings, key=Setting.order), None):
        section = str(setting or "speed not measured")
        for entry in entries:
            if entry.setting == setting:
                first = not lines or lines[-1].section != section
                head = Head((entry.title, entry.backbone), bool(lines) and first, section if first else "")
                lines.append(Line(head, section, entry))
    return lines


def method_entries(records: Sequence[Record], with_speed: bool) -> list[Entry]:
    pairs: dict[tuple[str, str], list[Record]] = defaultdict(list)
    methods, backbones = _titles(records, "method"), _titles(records, "backbone")
    for record in records:
        pairs[methods[record.method], backbones[record.backbone]].append(record)
    entries = []
    for title, backbone in sorted(pairs, key=lambda pair: (pair[0].casefold(), pair[1].casefold(), pair)):
        for label, part in _variants(pairs[title, backbone]):
            categories: dict[str, list[Record]] = defaultdict(list)
            for record in part:
                categories[_category(record)].append(record)
            speeds = {Setting.of(each) for record in part for each in record.speed} if with_speed else set()
            full = f"{title} ({label})" if label else title
            entries += [Entry(full, backbone, categories, setting) for setting in (speeds or (None,))]
    return entries


def _titles(records: Sequence[Record], part: str) -> dict[str, str]:
    """Name -> title of methods or backbones; two with one title are told apart by their names."""
    names = {getattr(record, part): record for record in records}
    titles = {name: record.titles.get(part) or name for name, record in names.items()}
    shared = Counter(titles.values())
    full = {name: title if shared[title] == 1 else f"{title} ({name})" for name, title in titles.items()}
    return {**full, "none": ""} if part == "backbone" else full


def _variants(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records of one method and backbone by hyper-parameters, labelled 'dims=50'; one part has the label ''."""
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        parts[json.dumps(_settings(record), sort_keys=True, default=str)].append(record)
    settings = {key: _settings(part[0]) for key, part in parts.items()}
    paths = sorted({path for each in settings.values() for path in each})
    differing = [path for path in paths if len({_plain(each.get(path, ...)) for each in settings.values()}) > 1]
    found = []
    for key in sorted(parts, key=lambda key: [_natural(settings[key].get(path)) for path in differing]):
        label = [f"{path}={_plain(settings[key].get(path, ...))}" for path in differing]
        found += [(", ".join(label + mark), part) for mark, part in _unmixed(parts[key])]
    return found


def _unmixed(records: Sequence[Record]) -> list[tuple[list[str], list[Record]]]:
    """Records that claim the same category and seed with equal settings, by the start of their fingerprints."""
    places = Counter((_category(record), record.seed) for record in records)
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        clash = places[_category(record), record.seed] > 1
        parts[record.fingerprint[:8] if clash else ""].append(record)
    return [([mark] if mark else [], parts[mark]) for mark in sorted(parts)]


def _settings(record: Record) -> dict[str, Any]:
    """Dotted path -> value of what the configuration says of method and backbone, as far as it can change a score."""
    method = dict(record.config.get("method") or {})
    about, _ = method.pop("about", {}), method.pop("seed", None)  # the seed is the record's own
    method |= {"revision": about["revision"]} if "revision" in about else {}
    return dict((*_flat(method, ""), *_flat(record.config.get("backbone"), "backbone.")))


def _flat(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{path}{key}.")
    else:
        yield path.rstrip("."), content


def _plain(value: Any) -> str:
    """A configured value as one would type it; of a hash the first 8 digits."""
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{64}", value) else value
    return "unset" if value is ... else json.dumps(value, default=str)


def _natural(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers by size, then texts."""
    number = isinstance(value, int | float)
    return (0, value, "") if number else (1, 0, _plain(value))


def _lines(axis: str, records: Sequence[Record], measures: Sequence[Measure]) -> list[Line]:
    if axis == "categories":
        return _category_lines(records)
    if axis == "methods":
        return _method_lines(records, any(measure.value in SPEED for measure in measures))
    return [Line(Head((measure.over, measure.title)), measures=(measure,)) for measure in measures]


# ----------------------------------------------------------------------------------------------------- values


@dataclass
class Found:
    """A number, the categories it is a mean of, and facts about it (by kind) for the footnotes."""

    measure: Measure
    number: float | None
    covered: frozenset[str]
    facts: dict[str, str]
    rank: int = 0

    @property
    def text(self) -> str:
        return DASH if self.number is None else f"{self.number * self.measure.scale:.{self.measure.digits}f}"


Matrix = list[list[list[Found]]]  # [row][column][value of the tuple]


def _find(measure: Measure, line: Line, wanted: Sequence[str], averaged: bool) -> Found:
    """The mean over categories of the mean over seeds, of what was measured."""
    entry = line.entry
    assert entry is not None
    values: dict[str, dict[int, float]] = {}
    used: list[Record] = []
    for category in wanted:
        for record in entry.records.get(category, ()):
            number = _read(record, measure.value, entry.setting)
            if number is not None:
                values.setdefault(category, {})[record.seed] = number
                used.append(record)
    if not used:
        return Found(measure, None, frozenset(), {})
    number = fmean(fmean(seeds.values()) for seeds in values.values())
    facts = {"count": _count_fact(values, wanted, averaged), "seeds": _seeds_fact(values)}
    return Found(measure, number, frozenset(values), facts | _source_facts(measure.value, used, line))


def _read(record: Record, name: str, setting: Setting | None) -> float | None:
    """One number of one record; None where it is undefined or was not measured."""
    source: Mapping[str, Any] = {name: record.value(name)}
    if name in SPEED:
        source = next((each for each in reversed(record.speed) if Setting.of(each) == setting), {})
    elif name in SIZE or name in COST:
        source = record.size if name in SIZE else record.cost
    number = source.get(name)
    return number if number is not None and math.isfinite(number) else None


def _count_fact(covered: Iterable[str], wanted: Sequence[str], averaged: bool) -> str:
    """'mean of 2 of 15 categories', with names where no row shows which; '' for a full mean among rows."""
    names, missing = list(covered), [name for name in wanted if name not in covered]
    mean = "mean of " * (len(names) > 1)
    if not missing:
        return f"{mean}{len(names)} categories" if averaged and mean else ""
    which = f" ({', '.join(names)})" if len(names) <= 3 else ""
    which = f" (without {', '.join(missing)})" if len(missing) <= 2 < len(names) else which
    return f"{mean}{len(names)} of {len(wanted)} categories{which * averaged}"


def _seeds_fact(values: Mapping[str, Mapping[int, float]]) -> str:
    """'mean of 3 seeds (0, 1, 2)', or that categories have different ones."""
    kinds = {tuple(sorted(seeds)) for seeds in values.values()}
    least, most = min(map(len, kinds)), max(map(len, kinds))
    if len(kinds) == 1:
        listed = ", ".join(map(str, *kinds))
        return f"seed {listed}" if most == 1 else f"mean of {most} seeds ({listed})"
    if least == most:
        return "seeds differ between categories" + (f" ({most} each)" if most > 1 else "")
    return f"mean of {least} to {most} seeds, which differ between categories"


def _source_facts(name: str, records: Sequence[Record], line: Line) -> dict[str, str]:
    """Where a speed or cost was measured; whether a metric was computed by an earlier revision."""
    if name in SPEED:
        return {} if line.section else {"speed": f"speed: {line.entry.setting}" if line.entry else ""}
    if name in COST:
        places = {_place(str(each.cost.get("device")), each.cost.get("threads")) for each in records}
        return {"cost": f"fit and memory: {'; '.join(sorted(places))}"}
    metric = _metric(name)
    if metric is None:
        return {}
    oldest = min(record.metrics[name]["revision"] for record in records)
    return {"metric": f"outdated (revision {oldest}, now {metric.revision})" if oldest < metric.revision else ""}


def _rank(lines: Sequence[Line], across: Sequence[Sequence[list[Found]]]) -> None:
    """Rank values over the methods of a section."""
    for cells in across:
        for section in {line.section for line in lines}:
            compared = [cell for line, cell in zip(lines, cells, strict=True) if line.section == section]
            for values in zip(*compared, strict=True):
                _rank_values([value for value in values if value.number is not None])


def _rank_values(values: Sequence[Found]) -> None:
    """As printed, so that equal prints tie; only what covers the most categories, and the same, on one machine."""
    widest = max((len(value.covered) for value in values), default=0)
    compared = [value for value in values if len(value.covered) == widest]
    alike = len({(value.covered, value.facts.get("cost")) for value in compared}) == 1
    if len(compared) < 2 or not alike or not compared[0].measure.best:
        return
    order = sorted({float(value.text) for value in compared}, reverse=compared[0].measure.best == "highest")
    for value in compared:
        value.rank = order.index(float(value.text)) + 1


# ------------------------------------------------------------------------------------------------- footnotes


def _label_shares(lines: Sequence[Line], across: Sequence[Sequence[list[Found]]]) -> list[Line]:
    """Mean lines whose values all leave out the same categories say so: 'mean of all (2 of 15)'."""
    labelled = []
    for line, cells in zip(lines, across, strict=True):
        values = [value for cell in cells for value in cell if value.number is not None]
        shares = {value.covered for value in values}
        if line.head.mean and len(shares) == 1 and len(values[0].covered) < len(line.categories):
            share = f" ({len(values[0].covered)} of {len(line.categories)})"
            line = replace(line, head=replace(line.head, labels=(line.head.labels[0] + share,)))
            for value in values:
                value.facts["count"] = ""
        labelled.append(line)
    return labelled


def _common_facts(matrix: Matrix) -> dict[str, tuple[str, bool]]:
    """Kind of fact -> what holds for most values, and whether for all; nothing where some need no footnote."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for value in (value for row in matrix for cell in row for value in cell):
        for kind, fact in value.facts.items():
            counts[kind][fact] += 1
    return {
        kind: ("" if "" in found else found.most_common(1)[0][0], len(found) == 1) for kind, found in counts.items()
    }


def _own_notes(cell: Sequence[Found], common: Mapping[str, tuple[str, bool]]) -> list[str]:
    """What is true of this cell and not of most; of one value of a tuple, after its title."""
    notes = []
    values = [value for value in cell if value.number is not None]
    for kind, (usual, _) in common.items():
        facts: dict[str, list[str]] = defaultdict(list)
        for value in values:
            facts[value.facts.get(kind, usual)].append(value.measure.title)
        for fact, titles in facts.items():
            if fact != usual:
                notes.append(fact if len(facts) == 1 else f"{', '.join(titles)}: {fact}")
    return notes


def _notes(by_method: Matrix, common: Mapping[str, tuple[str, bool]]) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Of each cell, and of each method: what every measured cell of a method says goes to its label."""
    notes, shared = [], []
    for cells in by_method:
        own = [_own_notes(cell, common) for cell in cells]
        measured = [each for each, cell in zip(own, cells, strict=True) if any(v.number is not None for v in cell)]
        everywhere = [note for note in measured[0] if all(note in each for each in measured)] if measured[1:] else []
        notes.append([[note for note in each if note not in everywhere] for each in own])
        shared.append(everywhere)
    return notes, shared


def _noted(line: Line, notes: Sequence[str]) -> Line:
    return replace(line, head=replace(line.head, notes=tuple(notes)))


# ------------------------------------------------------------------------------------------------- assembling

CORNERS = {"categories": ("Category",), "methods": ("Method", "Backbone"), "cells": ("", "Metric")}


def _grid(records: Sequence[Record], layout: Layout, measures: Sequence[Measure], name: str) -> Grid:
    """The table of one setup."""
    axes = {axis: _lines(axis, records, measures) for axis in (layout.rows, layout.columns)}
    matrix = _matrix(axes[layout.rows], axes[layout.columns], tuple(_all_categories(records)), measures)
    methods_down = layout.rows == "methods"
    across = _turned(matrix) if methods_down else matrix  # [category or cell][method]
    _rank(axes["methods"], across)
    if "categories" in axes:
        axes["categories"] = _label_shares(axes["categories"], across)
    common = _common_facts(matrix)
    notes, shared = _notes(_turned(across), common)
    axes["methods"] = [_noted(line, own) for line, own in zip(axes["methods"], shared, strict=True)]
    columns, _ = _without_empty(_column_heads(axes[layout.columns]), ())
    rows, corner = _without_empty([line.head for line in axes[layout.rows]], CORNERS[layout.rows])
    caption = layout.caption.format(
        dataset=records[0].titles.get("dataset") or records[0].dataset,
        setup=_describe(records[0]),
        cells=", ".join(measure.title for measure in measures),
    )
    cells = _cells(matrix, notes if methods_down else _turned(notes))
    return _lettered(Grid(name, caption, corner, columns, rows, cells, _general_notes(common, layout)))


def _turned(table: Sequence[Sequence[T]]) -> list[list[T]]:
    return [list(column) for column in zip(*table, strict=True)]


def _column_heads(lines: Sequence[Line]) -> list[Head]:
    """Where there are sections, they stand above."""
    if not any(line.section for line in lines):
        return [line.head for line in lines]
    return [replace(line.head, labels=(line.section, *line.head.labels)) for line in lines]


def _cells(matrix: Matrix, notes: Sequence[Sequence[list[str]]]) -> list[list[Cell]]:
    return [
        [
            Cell(tuple(Value(each.number, each.text, each.rank) for each in found), tuple(own))
            for found, own in zip(row, row_notes, strict=True)
        ]
        for row, row_notes in zip(matrix, notes, strict=True)
    ]


def _matrix(
    rows: Sequence[Line], columns: Sequence[Line], everything: tuple[str, ...], measures: Sequence[Measure]
) -> Matrix:
    """The values of every row and column; what neither picks is all categories, or all measures."""
    averaged = not any(line.categories for line in (*rows, *columns))

    def cell(row: Line, column: Line) -> list[Found]:
        line, wanted = row if row.entry else column, row.categories or column.categories or everything
        return [_find(each, line, wanted, averaged) for each in row.measures or column.measures or measures]

    return [[cell(row, column) for column in columns] for row in rows]


def _without_empty(heads: Sequence[Head], corner: tuple[str, ...]) -> tuple[list[Head], tuple[str, ...]]:
    """Drop the label levels that are empty in every head."""
    kept = [level for level, labels in enumerate(zip(*(head.labels for head in heads), strict=True)) if any(labels)]
    shorter = [replace(head, labels=tuple(head.labels[level] for level in kept)) for head in heads]
    return shorter, tuple(corner[level] for level in kept if corner)


def _general_notes(common: Mapping[str, tuple[str, bool]], layout: Layout) -> list[tuple[str, str]]:
    kinds = [common[kind] for kind in ("count", "seeds", "speed", "cost", "metric") if kind in common]
    facts = [fact + (" unless marked" if not unanimous else "") for fact, unanimous in kinds if fact]
    sentences = " ".join(f"{fact[:1].upper()}{fact[1:]}." for fact in facts)
    return [("", text) for text in (sentences, *layout.notes) if text]


def _lettered(grid: Grid) -> Grid:
    """Replace the texts of notes by letters in reading order, and list them below."""
    letters: dict[str, str] = {}

    def letter(notes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(letters.setdefault(note, _letter(len(letters))) for note in notes)

    columns = [replace(head, notes=letter(head.notes)) for head in grid.columns]
    rows, cells = [], []
    for head, row in zip(grid.rows, grid.cells, strict=True):
        rows.append(replace(head, notes=letter(head.notes)))
        cells.append([replace(cell, notes=letter(cell.notes)) for cell in row])
    marked = [(mark, text) for text, mark in letters.items()]
    return replace(grid, columns=columns, rows=rows, cells=cells, notes=grid.notes + marked)


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + tail)
