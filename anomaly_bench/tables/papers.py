"""Published numbers next to measured ones: their origin, and whether the two are comparable.

A gap is meaningful only if method, backbone, input and categories agree; footnotes name what differs.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.settings import describe_input
from anomaly_bench.published import ORIGINS, TABLES, ZHENG_INPUTS, load_references
from anomaly_bench.records.setups import dataset_title, regime_words
from anomaly_bench.tables.layout import COSTS, SPEEDS

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.layout import Column, Layout

DISAGREEMENTS = ("dataset", "backbone", "input", "machine", "oracle", "task", "holdout")


@dataclass(frozen=True)
class Printed:
    """A method in a paper: its printed name, our names for it and its backbone, its cells.

    Attributes:
        datasets: names in records of what it was measured on, see `Layout.datasets`.
        cells: by (category, metric).
        repairs: comment -> the corrected values of the cells that share it; misprints: the printed ones.
    """

    name: str
    method: str
    backbone: str
    variant: str
    datasets: Sequence[str]
    cells: Mapping[tuple[str, str], Reference]
    repairs: Mapping[str, str]
    misprints: Mapping[str, str]

    def find(self, category: str, measure: Column) -> Reference | None:
        """The cell of a category, or the only one in a table without categories."""
        metric = measure.published or measure.value
        return self.cells.get((category, metric)) or self.cells.get(("", metric))


def printed_methods(references: Iterable[Reference], layout: Layout, labels: Mapping[str, str]) -> list[Printed]:
    """The methods of one table in the paper's order; `labels`: those of its categories."""
    parts: dict[tuple[str, str, str, str], list[Reference]] = defaultdict(list)
    for cell in references:
        parts[cell.printed_name, cell.method, cell.backbone, cell.variant].append(cell)
    return [
        Printed(
            *key,
            layout.datasets(variant=key[-1]),
            {(cell.category, cell.metric): cell for cell in part},
            *_repairs(part, labels),
        )
        for key, part in parts.items()
    ]


def _repairs(cells: Sequence[Reference], labels: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Comment -> 'carpet 98.7, grid 99.6', or just the value for a single cell: repaired, and as printed."""
    changed = [cell for cell in cells if is_repaired(cell)]
    return _listed(changed, labels, lambda cell: f"{cell.value:g}"), _listed(changed, labels, lambda c: c.printed)


def _listed(cells: Sequence[Reference], labels: Mapping[str, str], text: Callable[[Reference], str]) -> dict[str, str]:
    changed: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in cells:
        changed[cell.comment][labels.get(cell.category, cell.category)] = text(cell)
    return {
        comment: ", ".join(values.values() if len(values) == 1 else (f"{name} {text}" for name, text in values.items()))
        for comment, values in changed.items()
    }


def is_repaired(cell: Reference) -> bool:
    """Whether the value used differs from the printed one."""
    return cell.value is not None and cell.number is not None and cell.value != float(cell.number)


def match_methods(
    printed: Sequence[Printed], entries: Sequence[ResultGroup]
) -> list[tuple[Printed | None, ResultGroup | None]]:
    """The paper's methods in its order, each with our entries for it, then entries the paper lacks.

    An entry is matched by method, dataset and backbone, else by method and dataset alone (the last match).
    """
    found: list[tuple[Printed | None, ResultGroup | None]] = []
    for each in printed:
        own = [entry for entry in entries if printed_of(entry, printed) is each]
        found += [(each, entry) for entry in own or (None,)]
    return [*found, *((None, entry) for entry in entries if printed_of(entry, printed) is None)]


def printed_of(entry: ResultGroup, printed: Sequence[Printed]) -> Printed | None:
    """The paper's method for an entry, see `match_methods`."""
    sample = entry.sample
    named = [each for each in printed if each.method == sample.method and sample.dataset in each.datasets]
    exact = [each for each in named if each.backbone == sample.backbone]
    return (exact or named)[-1] if named else None


def number_of(cell: Reference, measure: Column, repaired: bool = True) -> float | None:
    """The repaired or the printed value in the table's unit."""
    value = cell.value if repaired else cell.number
    if value is None:
        return None
    return float(value) * measure.scale / 100 if cell.unit == "points" else float(value)


def text_of(cell: Reference, measure: Column, repaired: bool) -> str:
    """The cell as printed, or with the repaired value in as many digits."""
    number = number_of(cell, measure)
    if not repaired or number is None or not is_repaired(cell):
        return cell.printed
    return f"{number:.{len(cell.printed.partition('.')[2])}f}"


def facts_of(printed: Printed, cell: Reference, repaired: bool) -> dict[str, str]:
    """Footnotes by kind: where the number is from, and how it was repaired."""
    values = (printed.misprints if repaired else printed.repairs).get(cell.comment)
    said = f"printed {values}" if repaired else values
    repair = f"{cell.comment} ({said})" if values and values not in cell.comment else cell.comment
    return {"origin": ORIGINS[cell.origin], "repair": repair}


def disagreements(printed: Printed, cell: Reference, sample: Record, measure: Column) -> dict[str, str]:
    """Footnotes by kind: why a published value is not comparable with records like `sample`."""
    found = {"oracle": "measured with settings chosen on the test images"} if sample.oracle else {}
    if sample.holdout:
        found["holdout"] = f"fitted without the {sample.holdout:g} of the training images that thresholds are made from"
    if words := regime_words(sample):
        found["task"] = f"task {' '.join(words)} (published: one model for each category)"
    if sample.dataset != printed.datasets[0]:
        found["dataset"] = f"{dataset_title(sample)} (published: {printed.datasets[0]})"
    if (printed.backbone or "none") != sample.backbone:
        found["backbone"] = f"backbone {sample.backbone} (published: {printed.backbone or 'not stated'})"
    shape = _published_input(cell, sample)
    if shape is None:
        found["input"] = "input (published: not stated)"
    elif describe_input(shape) != describe_input(sample.input):
        found["input"] = f"input {describe_input(sample.input)} (published: {describe_input(shape)})"
    if measure.value in (*SPEEDS, *COSTS):
        found["machine"] = "published on another machine"
    return found


def _published_input(cell: Reference, sample: Record) -> Mapping[str, Any] | None:
    """The table's, else that in the method's YAML, also for quoted values; unknown for other values that are re-run."""
    table = TABLES[cell.table]
    side = table_sides(table.protocol).get(cell.method, table.side)
    if side:
        return {"resize": side}
    about: Mapping[str, Any] = (sample.config.get("method") or {}).get("about") or {}
    shape = about.get("input") if cell.origin != "re-run" else None
    return shape if isinstance(shape, Mapping) else None


@functools.cache
def table_sides(protocol: str) -> Mapping[str, int]:
    """Method -> side of its input in pixels, where a table of inputs is the protocol: of several sizes the first."""
    cells = load_references(protocol) if protocol == ZHENG_INPUTS else []
    sizes = {cell.method: re.search(r"\d+", cell.printed) for cell in cells if cell.metric == "input_size"}
    return {method: int(size[0]) for method, size in sizes.items() if size}
