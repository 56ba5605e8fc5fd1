"""How the tasks of a run stand, and what the run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

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
