"""What the report begins with: the best, the fastest among the good, and the smallest method of a setup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_bench.tables.layout import Column
from anomaly_bench.tables.table import CellValue

if TYPE_CHECKING:
    from anomaly_bench.report.sections import Section

NEAR = 1.0  # points below the best: still good, so that the fastest of them is worth naming
LATENCY = Column("latency_ms", "latency (ms)")
SIZES = (Column("extra_mb", "parameters"), Column("stored_mb", "statistics"))


@dataclass(frozen=True)
class Rival:
    """A method in the comparison by one metric; number: of its series."""

    number: int
    label: str
    value: CellValue

    @property
    def points(self) -> float:
        return self.value.number or 0.0


def rivals(section: Section, metric: str) -> tuple[list[Rival], list[str]]:
    """The methods that one metric may compare, and the names of the others that have it.

    As in tables: means of the most, and the same, categories; methods trained for less than published only among
    themselves.
    """
    found = [Rival(number, label, section.value(number, metric)) for number, label in enumerate(section.labels)]
    found = [each for each in found if each.value.number is not None]
    trained = [each for each in found if not section.entries[each.number].budget] or found
    widest = max((each.value.covered for each in trained), key=len, default=frozenset())
    compared = [each for each in trained if each.value.covered == widest]
    return compared, [each.label for each in found if each not in compared]


def conclusion(section: Section) -> Iterator[tuple[str, str]]:
    """(what, who and by how much) for each sentence."""
    for metric in ("image_auroc", "pro"):
        compared, left_out = rivals(section, metric) if metric in section.metrics else ([], [])
        if compared:
            yield _best(section.metrics[metric], compared, left_out)
    good, _ = rivals(section, "image_auroc")
    if len(good) > 1:
        yield from _fastest(section, good)
        yield from _smallest(section, good)


def _best(title: str, compared: Sequence[Rival], left_out: Sequence[str]) -> tuple[str, str]:
    top = max(each.points for each in compared)
    first = [each for each in compared if each.points == top]
    text = f"{_names(first)}, {first[0].value.text} % ({_basis(first[0])})"
    text += f", of {len(compared)} methods" if len(compared) > 1 else ""
    if left_out:
        why = "as they cover other categories or were trained for less than published"
        text += f". Not compared, {why}: {', '.join(left_out)}"
    return f"{'Best' if len(compared) > 1 else 'Only method'} by {title}", text


def _basis(rival: Rival) -> str:
    """'mean of 2 of 15 categories (bottle, transistor), mean of 3 seeds (0, 1, 2)'."""
    facts = rival.value.facts
    count = facts.get("count") or f"{len(rival.value.covered)} categor{'y' if len(rival.value.covered) == 1 else 'ies'}"
    return f"{count}, {facts['seeds']}"


def _names(tied: Sequence[Rival]) -> str:
    return " and ".join(each.label for each in tied)


def _fastest(section: Section, good: Sequence[Rival]) -> Iterator[tuple[str, str]]:
    """On each machine that timed several methods, one of them near the best."""
    best = max(each.points for each in good)
    near = {each.number: each for each in good if best - each.points <= NEAR}
    for place, points in section.latency("image_auroc"):
        timed = [point for point in points if point.series in near]
        if timed and len(points) > 1:
            first = min(timed, key=lambda point: point.x)
            rival = near[first.series] if first.series is not None else good[0]
            speed = f"{first.x:.3g} ms an image on {place}"
            text = f"{rival.label}, {speed}, image AUROC {rival.value.text} % ({_basis(rival)})"
            yield f"Fastest within {NEAR:g} point of the best image AUROC", text


def _smallest(section: Section, good: Sequence[Rival]) -> Iterator[tuple[str, str]]:
    sized: list[tuple[float, Rival]] = []
    for rival in good:
        parts = [section.number(rival.number, size) for size in SIZES]
        known = [part for part in parts if part is not None]
        if len(known) == len(SIZES):
            sized.append((sum(known), rival))
    if sized:
        size, rival = min(sized, key=lambda pair: pair[0])
        kept = f"{size:.3g} MB of parameters and statistics beside the backbone"
        yield "Smallest", f"{rival.label}, {kept}, image AUROC {rival.value.text} % ({_basis(rival)})"
