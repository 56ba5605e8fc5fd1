"""`compare a=DIR b=DIR fail_if='image_auroc drops 0.5'`: a gate for a project's CI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.comparison.significance import Difference

CONDITION = re.compile(r"(?P<any>any\s+)?(?P<metric>[^\s;]+)\s+drops\s+(?P<points>\d+(\.\d+)?)")
EXPECTED = (
    "expected METRIC drops POINTS, or any METRIC drops POINTS for single categories, such as image_auroc drops 0.5"
)


@dataclass(frozen=True)
class Condition:
    """True if b is at least `points` percentage points below a, on average or in a `single` category."""

    metric: str
    points: float
    single: bool

    def __str__(self) -> str:
        return f"{'any ' if self.single else ''}{self.metric} drops {self.points:g}"


def read_conditions(value: Any) -> list[Condition]:
    """The key `fail_if`: a list of conditions, or one string separated by semicolons.

    Raises:
        UsageError: an invalid condition.
    """
    if value is None:
        return []
    parts = [str(part).strip() for part in (value.split(";") if isinstance(value, str) else value)]
    if not any(parts):
        raise UsageError(f"fail_if={value}: no condition; {EXPECTED}")
    return [read_condition(part) for part in parts if part]


def read_condition(text: str) -> Condition:
    found = CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(f"fail_if={text}: cannot be read; {EXPECTED}")
    points = float(found["points"])
    if not 0 < points <= 100:
        raise UsageError(f"fail_if={text}: found {points:g}, expected points above 0, at most 100")
    return Condition(found["metric"], points, found["any"] is not None)


def broken(condition: Condition, found: Sequence[Difference], where: str) -> Iterator[str]:
    """A line per pair that meets the condition, and per pair whose b lacks categories.

    Args:
        found: differences in the condition's metric; where: the setup's name.
    """
    for each in found:
        name = f"{each.pair.first.entry.name}, {where}"
        missing = [category for category in each.first if category not in each.second]
        if missing:
            yield f"{condition.metric}: no value in b of {', '.join(missing)} ({name})"
        if condition.single:
            falls = {category: -value for category, value in each.values.items() if -value >= condition.points}
            said = [f"{key} by {fall:.2f}, {from_to(each.first[key], each.second[key])}" for key, fall in falls.items()]
            if said:
                yield f"{condition}: {'; '.join(said)} ({name})"
        elif each.mean is not None and -each.mean >= condition.points:
            change = from_to(*each.means)
            yield f"{condition}: by {-each.mean:.2f}, {change} ({name}, mean of {len(each.values)} categories)"


def from_to(before: float | None, after: float | None) -> str:
    return f"from {before:.2f} to {after:.2f}"
