"""Metrics from stored anomaly maps, without a model: the work and its results. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_bench.errors import UsageError, reason

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter
    from anomaly_bench.metrics.metrics import Evaluation
    from anomaly_bench.records.record import Record


POOLED = "pooled"  # the category of a result over the images of several


@dataclass(frozen=True)
class Result:
    """The metrics of one test set.

    Attributes:
        maker: the origin and size of the maps; each has its own table.
        task, category: of the dataset; the category is the test set's name in tables, or `POOLED`.
        images, defects: counts.
        corrected: a record with its values under corrected labels; None: none are given.
    """

    maker: str
    task: str
    category: str
    images: int
    defects: int
    evaluation: Evaluation
    corrected: Record | None = None


Work = tuple[str, Callable[[], list[Result]]]  # name for messages, and task


def carried_out(work: Sequence[Work], reporter: Reporter) -> tuple[list[Result], int]:
    """The results and the number of failures, which are reported and do not stop the others."""
    results, failed = [], 0
    with reporter.stage("computing metrics", len(work)) as advance:
        for number, (name, task) in enumerate(work, 1):
            try:
                results += task()
            except UsageError:
                raise
            except Exception as error:  # the others continue
                failed += 1
                reporter.fail(f"[{number}/{len(work)}] {name}: {reason(error)}", error)
            advance(1)
    return results, failed
