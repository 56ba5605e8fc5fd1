"""What a method's numbers rest on, for its page of the leaderboard: see `tables.evidence`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import STATUSES
from anomaly_bench.published import Publication, Reference, load_references, publications
from anomaly_bench.tables.evidence import MEASURED, measured_cells, measurements, read_parity, small

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

REFERENCE = "mvtec"  # the dataset whose published numbers are compared


class Evidence:
    """Of one method.

    Args:
        records: its own; one made by code of its own tells nothing of a built-in method of that name.
        results: folders that may hold a parity.json, as `make parity` writes it.
    """

    def __init__(self, name: str, records: Sequence[Record], results: Sequence[Path] = ()) -> None:
        self.name, self.results = name, results
        self.records = [each for each in records if "_target_" not in (each.config.get("method") or {})]

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """`about.evidence` of its YAML; empty: it is none of ours."""
        about = packaged_node("method", self.name).get("about") or {} if self.records else {}
        return about.get("evidence") or {}

    @property
    def status(self) -> tuple[str, str]:
        """As printed, and what it says."""
        if not self.about:
            return "not a part of anomaly-bench", "nothing but its records is known here"
        return STATUSES[self.about["status"]]

    @property
    def publication(self) -> Publication | None:
        return publications().get(self.name) if self.about else None

    @cached_property
    def comparisons(self) -> list[Mapping[str, Any]]:
        """With implementations of others: mappings of part, quantity, peer, difference and remark."""
        files = [folder / "parity.json" for folder in self.results]
        rows = [row for file in files if file.is_file() for row in read_parity(file)["comparisons"]]
        return [row for row in rows if row["method"] == self.name] if self.about else []

    def differences(self) -> Iterator[Sequence[str]]:
        """`comparisons` as text."""
        for row in self.comparisons:
            yield row["part"], row["quantity"], row["peer"], small(row["difference"]), row["remark"] or ""

    @property
    def heads(self) -> Sequence[str]:
        """Of `measured`."""
        return MEASURED

    def measured(self) -> Iterator[Sequence[str]]:
        """Measurements beside the published numbers."""
        known = [each for each in self.records if each.dataset == REFERENCE and "revision" in about_of(each)]
        if self.about and known:
            yield from (measured_cells(each, self.name, references()) for each in measurements(known))


@cache
def references() -> list[Reference]:
    """Read once: all methods share them."""
    return load_references()


def about_of(record: Record) -> Mapping[str, Any]:
    return (record.config.get("method") or {}).get("about") or {}
