"""The rows and columns of a table as items that select records and published numbers."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from anomaly_bench.published import MEANS, load_references
from anomaly_bench.records.setups import all_categories, dataset_title
from anomaly_bench.tables.entries import Setting, group_records
from anomaly_bench.tables.layout import SPEEDS, TEXTS
from anomaly_bench.tables.papers import match_methods, printed_methods, printed_of
from anomaly_bench.tables.table import Header

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.layout import Column, Layout
    from anomaly_bench.tables.papers import Printed

ALL = "mean:all"
EXTRA = "not in the paper"
OURS = "Ours"
CORNERS = {"categories": ("Category",), "methods": ("Method", "Backbone", "Categories"), "cells": ("", "Metric")}


@dataclass(frozen=True)
class AxisItem:
    """A row or column and what it selects; an empty field leaves the choice to the other axis, or selects all.

    Attributes:
        over: header lines above a column.
        section: values are ranked within a section.
        entry, printed: a method's records, and its cells in the paper.
        key: a category, or a mean as in `published.MEANS`; categories: those it averages.
    """

    head: Header
    over: tuple[str, ...] = ()
    section: str = ""
    entry: ResultGroup | None = None
    printed: Printed | None = None
    key: str = ""
    categories: tuple[str, ...] = ()
    measures: tuple[Column, ...] = ()


@dataclass(frozen=True)
class TableInput:
    """The data of one table.

    Attributes:
        records: of one setup, unless mixed on purpose; a paper's table has one for each of its datasets, or no records.
        references: published cells of the methods to show in a paper's table; they do not affect its rows.
        source: "measured", "reported", "ours_beside" or "gaps".
        ours: methods to show beside a paper's table; None: those that it lacks, or all if it lacks none.
        empty: whether to show our methods without any value beside a paper's.
        order: methods in the order to show them; others follow.
        repaired: published values are shown repaired.
    """

    layout: Layout
    measures: Sequence[Column]
    records: Sequence[Record]
    references: Sequence[Reference] = ()
    source: str = "measured"
    ours: Sequence[str] | None = None
    empty: bool = False
    order: Sequence[str] = ()
    repaired: bool = False

    @cached_property
    def categories(self) -> dict[str, str]:
        """Category -> group, in the dataset's order."""
        return all_categories(self.records)


def axis_items(axis: str, material: TableInput) -> list[AxisItem]:
    """The rows or columns of a table."""
    if axis == "cells":
        return [
            AxisItem(Header((measure.title,)), (measure.over,), measures=(measure,)) for measure in material.measures
        ]
    if material.layout.published:
        return _printed_categories(material) if axis == "categories" else _printed_methods(material)
    return _categories(material) if axis == "categories" else _methods(material)


def _categories(material: TableInput) -> list[AxisItem]:
    """Categories with records, each group followed by its mean, and the overall mean last."""
    everything = material.categories
    recorded = {record.category for record in material.records}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, group in everything.items():
        groups[group].append(name)
    made: list[AxisItem] = []
    for group, names in groups.items():
        shown = [name for name in names if name in recorded]
        shown += [f"mean:{group}"] if shown and group and len(groups) > 1 else []
        made += [_category(key, everything, over=group) for key in shown]
    return _ruled(_abbreviated([*made, *([_category(ALL, everything)] if len(everything) > 1 else [])]))


def _category(key: str, everything: Mapping[str, str], label: str = "", over: str = "") -> AxisItem:
    """The item of a category or mean; `everything` maps the dataset's categories to groups."""
    kind, colon, group = key.partition(":")
    mean = bool(colon) and kind == "mean" and key not in everything
    members = tuple(name for name in everything if key == ALL or everything[name] == group) if mean else (key,)
    plain = f"mean of {group}" if mean else key
    return AxisItem(Header((label or plain,), mean=mean), (over,), key=key, categories=members)


def _abbreviated(made: Sequence[AxisItem]) -> list[AxisItem]:
    """Give categories of more than five letters a short label: 'Carp.'; not where two would be alike."""
    labels = {item.head.labels[0] for item in made if not item.head.mean}
    short = {label: f"{label[:4].rstrip()}." for label in labels if len(label) > 5 and not label.endswith(".")}
    used = Counter(short.values())
    short = {label: text for label, text in short.items() if used[text] == 1 and text not in labels}
    return [replace(item, head=replace(item.head, short=short.get(item.head.labels[0], ""))) for item in made]


def _ruled(made: Sequence[AxisItem]) -> list[AxisItem]:
    """Put a rule before the overall mean, after other means, and between groups."""
    ruled = list(made[:1])
    for before, item in itertools.pairwise(made):
        opens = item.key == ALL or before.head.mean or item.over != before.over
        ruled.append(replace(item, head=replace(item.head, opens=opens)))
    return ruled


def _methods(material: TableInput) -> list[AxisItem]:
    """Methods by title and backbone; one section per speed setting if there are several."""
    found = _entries(material)
    settings = {entry.setting for entry in found if entry.setting}
    if len(settings) < 2:
        return [AxisItem(Header((entry.full_title, entry.backbone)), entry=entry) for entry in found]
    made: list[AxisItem] = []
    for setting in (*sorted(settings, key=Setting.order), None):
        section = str(setting or "speed not measured")
        for entry in found:
            if entry.setting == setting:
                first = not made or made[-1].section != section
                head = Header((entry.full_title, entry.backbone), bool(made) and first, section if first else "")
                made.append(AxisItem(head, (section,), section, entry))
    return made


def _entries(material: TableInput) -> list[ResultGroup]:
    found = group_records(material.records, any(measure.value in SPEEDS for measure in material.measures))
    places = {name: place for place, name in enumerate(material.order)}
    return sorted(found, key=lambda entry: (entry.sample.dataset, places.get(entry.sample.method, len(places))))


def _printed_categories(material: TableInput) -> list[AxisItem]:
    """The paper's categories and means, in its order."""
    layout, everything = material.layout, material.categories
    keys = list(dict.fromkeys(cell.category or ALL for cell in load_references(layout.published)))
    over = layout.header("categories")
    labels = {key: _label(key, layout) for key in keys}
    return _ruled(_abbreviated([_category(key, everything, labels[key], over.get(key, "")) for key in keys]))


def _label(key: str, layout: Layout) -> str:
    """A category or mean as the paper prints it."""
    plain = key.replace("_", " ")
    return str({**MEANS, **layout.labels}.get(key, plain.capitalize() if layout.capitals else plain))


def _printed_methods(material: TableInput) -> list[AxisItem]:
    """The paper's methods in its order, then recorded methods that it lacks; or only ours beside the paper's."""
    labels = {cell.category: _label(cell.category, material.layout) for cell in material.references}
    printed = printed_methods(material.references, material.layout, labels)
    over = material.layout.header("methods")
    found = [each for each in _entries(material) if printed_of(each, printed) or _has_any(each, material.measures)]
    if material.source == "ours_beside":
        theirs = [AxisItem(Header((each.name, "")), _over(each, over), printed=each) for each in printed]
        return [*theirs, *_own_items(material, printed)]
    made: list[AxisItem] = []
    for each, entry in match_methods(printed, found):
        headers = _over(each, over) if each else _over_own(EXTRA, entry, material)
        first = each is None and bool(made) and made[-1].printed is not None
        head = Header(_names(each, entry, material.source), opens=first, above=EXTRA if first else "")
        made.append(AxisItem(head, headers, entry=entry, printed=each))
    return made


def _over(printed: Printed, groups: Mapping[str, str]) -> tuple[str, ...]:
    """The header lines above a method of the paper."""
    return tuple(filter(None, (groups.get(printed.name), *printed.variant.split("/"))))


def _over_own(title: str, entry: ResultGroup | None, material: TableInput) -> tuple[str, ...]:
    """The header lines above a method of ours: a title and, in a table of several datasets, its dataset."""
    several = len({record.dataset for record in material.records}) > 1
    return (title, dataset_title(entry.sample)) if entry and several else (title,)


def _own_items(material: TableInput, printed: Sequence[Printed]) -> list[AxisItem]:
    """Our methods beside the paper's: those chosen, else those that the paper lacks, else all."""
    found = [each for each in _entries(material) if material.empty or _has_any(each, material.measures)]
    if material.ours is None:
        found = [each for each in found if not printed_of(each, printed)] or found
    else:
        found = [each for each in found if each.sample.method in material.ours]
    made = []
    for place, entry in enumerate(found):
        name = f"{entry.full_title} ({entry.backbone})" if entry.backbone else entry.full_title
        head = Header((name, ""), opens=not place, above="" if place else OURS, divides=not place)
        made.append(AxisItem(head, _over_own(OURS, entry, material), entry=entry))
    return made


def _names(printed: Printed | None, entry: ResultGroup | None, source: str) -> tuple[str, str]:
    """A method's name and backbone: the paper's name, or ours if only our numbers are shown."""
    if entry is None:
        return (printed.name if printed else "", "")
    if printed is None or source == "measured":
        return (entry.full_title, entry.backbone)
    return (printed.name, ", ".join(filter(None, (entry.backbone, entry.label))))


def _has_any(entry: ResultGroup, measures: Sequence[Column]) -> bool:
    names = [measure.value for measure in measures]
    records = [record for part in entry.records.values() for record in part]
    return any(name in TEXTS or entry.read(record, name) is not None for name in names for record in records)
