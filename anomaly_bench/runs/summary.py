"""How the tasks of a run stand, and what the run came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_bench.config.settings import Settings
    from anomaly_bench.records.record import Record


class State(StrEnum):
    """The state of a task."""

    DONE = "done"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Standing:
    """A task's state according to the results folder, with its records if done, the reason if failed."""

    state: State
    why: str = ""
    records: Sequence[Record] = ()


@dataclass
class Summary:
    """The outcome of a run: records in the order of the categories, and why the others have none.

    `busy`: categories that other runs are working on (only with wait=false); `stopped`: by fail_fast.
    `cells`: the metrics to show; None: those of each table.
    """

    settings: Settings
    records: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    stopped: bool = False
    cells: list[str] | None = None


def headline(done: list[Record]) -> str:
    """The main metrics of one category, in %."""
    parts = []
    for record in done:
        names = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("pro", "PRO"))
        values = [(title, record.value(name)) for name, title in names]
        shown = ", ".join(f"{title} {'-' if value is None else f'{100 * value:.1f}'}" for title, value in values)
        parts.append(shown if len(done) == 1 else f"{record.test}: {shown}")
    return "; ".join(parts) + f"; fit {done[0].cost['fit_s']:.1f} s"


def speed_setting(key: Mapping[str, Any]) -> str:
    """'EPYC, 2 threads, batch 32, fp32'."""
    return f"{key['device']}, {key['threads']} threads, batch {key['batch_size']}, {key['precision']}"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
