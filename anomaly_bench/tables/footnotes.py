"""The footnotes of a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from anomaly_bench import published
from anomaly_bench.tables.papers import DISAGREEMENTS

if TYPE_CHECKING:
    from anomaly_bench.tables.axes import AxisItem, TableInput
    from anomaly_bench.tables.table import CellValue

_GAP = "Gaps are meaningful only where backbone, input, training and categories match the paper's."
SHARES = "; in parentheses: of how many categories, where a mean leaves some out"
UNLIKE = "; not all over the same categories"
# their order below a table
_FACTS = (
    *("setup", "images", "status", "supervision", "revision", "budget", "settings", "count", "seeds"),
    *("speed", "alone", "cost", "extraction", "held_out", "lost", "metric", "corrected", *DISAGREEMENTS),
)
Matrix = list[list[list["CellValue"]]]  # [row][column][value of the tuple]


def label_shares(categories: Sequence[AxisItem], across: Sequence[Sequence[list[CellValue]]]) -> list[AxisItem]:
    """Label means whose values all leave out the same categories: 'mean of all (2 of 15)'."""
    labelled = []
    for item, cells in zip(categories, across, strict=True):
        values = [value for cell in cells for value in cell if value.number is not None]
        shares = {value.covered for value in values}
        if item.head.mean and len(shares) == 1 and len(values[0].covered) < len(item.categories):
            share = f" ({len(values[0].covered)} of {len(item.categories)})"
            item = replace(item, head=replace(item.head, labels=(item.head.labels[0] + share,)))
            for value in values:
                value.facts["count"] = ""
        labelled.append(item)
    return labelled


def mark_shares(wanted: Sequence[Sequence[str]], across: Sequence[Sequence[list[CellValue]]], named: bool) -> bool:
    """Say '1 of 15' in cells whose means leave out categories that others have; whether there are any.

    Args:
        named: the table names the categories, so that no footnote has to.
    """
    found = False
    for names, cells in zip(wanted, across, strict=True):
        numbers = [[value for value in cell if value.number is not None] for cell in cells]
        if len({value.covered for cell in numbers for value in cell}) < 2:
            continue
        for cell in numbers:
            shares = {value.covered for value in cell}
            if len(shares) == 1 and 0 < len(*shares) < len(names):
                found = True
                for value in cell:
                    value.share = f"{len(value.covered)} of {len(names)}"
                    if named:
                        value.facts.pop("count", None)
    return found


def share_methods(
    methods: Sequence[AxisItem], wanted: Sequence[Sequence[str]], across: Sequence[Sequence[list[CellValue]]]
) -> list[AxisItem]:
    """Say '2 of 15' beside each method instead of in its cells; in a cell only where it is another share."""
    labelled = []
    for item, column in zip(methods, zip(*across, strict=True), strict=True):
        values = [(value, names) for cell, names in zip(column, wanted, strict=True) for value in cell]
        values = [(value, names) for value, names in values if value.number is not None]
        shares = Counter(_share(value, names) for value, names in values)
        usual = shares.most_common(1)[0][0] if shares else ""
        for value, names in values:
            share = _share(value, names)
            value.share = "" if share == usual else share
        labelled.append(replace(item, head=replace(item.head, labels=(*item.head.labels, usual))))
    return labelled


def _share(value: CellValue, names: Sequence[str]) -> str:
    return f"{len(value.covered)} of {len(names)}"


def common_facts(matrix: Matrix) -> dict[str, tuple[str, bool]]:
    """Kind of fact -> the most common one, and whether all values share it; '' if some need no footnote."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for value in (value for row in matrix for cell in row for value in cell):
        for kind, fact in value.facts.items():
            counts[kind][fact] += 1
    own = {kind for kind, found in counts.items() if "" in found or (kind == "budget" and len(found) > 1)}
    usual = {kind: "" if kind in own else found.most_common(1)[0][0] for kind, found in counts.items()}
    return {kind: (usual[kind], len(found) == 1) for kind, found in counts.items()}


def _own_notes(cell: Sequence[CellValue], common: Mapping[str, tuple[str, bool]]) -> dict[str, list[str]]:
    """By kind, the facts that set this cell apart; prefixed with the title if only part of a tuple is meant."""
    notes: dict[str, list[str]] = {}
    for kind, (usual, _) in common.items():
        facts: dict[str, list[str]] = defaultdict(list)
        for value in cell:
            if kind in value.facts:
                facts[value.facts[kind]].append(value.title)
        if facts:
            unusual = {fact: titles for fact, titles in facts.items() if fact != usual}
            whole = len(facts) == 1
            notes[kind] = [fact if whole else f"{', '.join(titles)}: {fact}" for fact, titles in unusual.items()]
    return notes


def cell_notes(
    by_method: Matrix, common: Mapping[str, tuple[str, bool]]
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Notes of each cell, and of each method: notes that all its cells share go to its label."""
    notes, shared = [], []
    for cells in by_method:
        own = [_own_notes(cell, common) for cell in cells]
        everywhere = []
        for kind in common:
            said = [each[kind] for each in own if kind in each]
            everywhere += [note for note in said[0] if all(note in each for each in said)] if said[1:] else []
        listed = [[note for found in each.values() for note in found] for each in own]
        notes.append([[note for note in each if note not in everywhere] for each in listed])
        shared.append(everywhere)
    return notes, shared


def general_notes(common: Mapping[str, tuple[str, bool]], material: TableInput, mixed: bool) -> list[tuple[str, str]]:
    """Notes on the whole table: common facts, the source of published numbers, the layout's own notes."""
    facts = {
        kind: fact if alike else fact + (" (see marks)" if ";" in fact else " unless marked")
        for kind, (fact, alike) in common.items()
        if fact
    }
    kinds = _FACTS if mixed or material.layout.published else _FACTS[1:]  # a caption has the setup
    sentences = " ".join(f"{facts[kind][:1].upper()}{facts[kind][1:]}." for kind in kinds if kind in facts)
    texts = [sentences, *material.layout.notes]
    table = published.TABLES.get(material.layout.published)
    if table is not None and not table.printed:
        source = f"{table.title} ({published.PAPERS[table.paper]}): our sources name its methods, not its values."
        texts = [source] if material.source == "reported" else [sentences, source, *texts[1:]]
    elif table is not None and material.source != "measured":
        printed = "With repaired values" if material.repaired else "As printed"
        source = f"{'In parentheses' if material.source == 'gaps' else printed}: {table.title}"
        source += f" ({published.PAPERS[table.paper]})"
        source += f"; {facts['origin']}." if "origin" in facts else "."
        source += f" {_GAP}" if any(kind in common for kind in DISAGREEMENTS) else ""
        ours = f"Ours: {sentences}" if sentences and material.source == "ours_beside" else sentences
        texts = [source] if material.source == "reported" else [ours, source, *texts[1:]]
    return [("", text) for text in texts if text]
