"""Which records were made from the same images, as far as they tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import shorten

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

SETS = {"test": "test images", "fit": "training images"}  # keys of `Record.hashes`
UNKNOWN = "an older record, which does not tell which of the unlike images it was made from"


def selection(record: Record) -> str:
    """What selects images on purpose: the planes that the method reads and the dataset's draw; "" for the defaults."""
    planes = (record.config.get("method") or {}).get("planes")
    return ", ".join([*([f"planes {planes}"] if planes else []), *([f"draw {record.draw}"] if record.draw else [])])


class ImageVersions:
    """The versions of each category's images among some records, numbered from the most common one, 0."""

    def __init__(self, records: Iterable[Record]) -> None:
        counts: dict[tuple[str, str, str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
        for record in records:
            if record.hashes:
                counts[self._place(record)][record.hashes["fit"], record.hashes["test"]] += 1
        self.known = {place: sorted(found, key=lambda pair: (-found[pair], pair)) for place, found in counts.items()}

    def _place(self, record: Record) -> tuple[str, str, str, str]:
        return record.dataset, record.category, selection(record), str(record.regime)

    def number(self, record: Record) -> int:
        """Of the record's images; those of an older record count as the most common ones, see `note`."""
        if not record.hashes:
            return 0
        return self.known[self._place(record)].index((record.hashes["fit"], record.hashes["test"]))

    def note(self, records: Iterable[Record]) -> str:
        """'other test images of bottle, cable than unmarked values' of one method's records; "" if there are none."""
        unlike: dict[str, dict[str, Any]] = {name: {} for name in SETS}
        unknown = False
        for record in records:
            usual, *others = self.known.get(self._place(record), [()])
            unknown |= bool(others) and not record.hashes
            for name, expected in zip(("fit", "test"), usual, strict=False):
                if record.hashes and record.hashes[name] != expected:
                    unlike[name][record.category] = None
        parts = [f"{title} of {shorten(list(unlike[name]), 3)}" for name, title in SETS.items() if unlike[name]]
        said = f"other {' and other '.join(parts)} than unmarked values" if parts else ""
        return "; ".join(filter(None, (said, UNKNOWN if unknown else "")))
