"""What share of its published schedule a method was trained for, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.parts import packaged_node

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

UNKNOWN = "trained for an unknown share of the published schedule"


def reduced_budget(records: Sequence[Record]) -> str:
    """'trained for 25 of 200 epochs, 12.5 %'; '' if all of one method's records were trained as published, or longer.

    Also '' for a method that does not train, or has no published schedule.
    """
    if any(record.training is None and has_schedule(record) for record in records):
        return UNKNOWN
    known = [record.training for record in records if record.training]
    shares = [each["share"] for each in known if each["share"] is not None]
    return f"trained for {length(known)}" if shares and min(shares) < 1 else ""


def length(known: Sequence[Mapping[str, Any]]) -> str:
    """'25 of 200 epochs, 12.5 %', of trainings by one published schedule; with steps where the paper counts those."""
    published = known[0]["published"]
    if "steps" in published:
        done, total, unit = [each["steps"] for each in known], published["steps"], "steps"
    elif "samples" in published:
        done, total = [each["samples"] for each in known], published["epochs"] * published["samples"]
        unit = "samples"
    else:
        done, total, unit = [each["epochs"] for each in known], published["epochs"], "epochs"
    shares = [100 * each["share"] for each in known]
    return f"{span(done)} of {total:,} {unit}, {span(shares)} %"


def span(numbers: Iterable[float]) -> str:
    """'12.5', or '7.86 to 8' for different numbers."""
    ordered = sorted(numbers)
    texts = [f"{number:,.0f}" if number >= 1000 else f"{number:.3g}" for number in (ordered[0], ordered[-1])]
    return " to ".join(dict.fromkeys(texts))


def has_schedule(record: Record) -> bool:
    """Whether the YAML of the record's method has a published schedule."""
    about = (record.config.get("method") or {}).get("about") or packaged_node("method", record.method).get("about")
    return bool(about and about.get("schedule"))
