"""Metrics from kept anomaly maps, without a model: the work and its results. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_bench.errors import UsageError, reason

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter
    from anomaly_bench.metrics.metrics import Evaluation


@dataclass(frozen=True)
class Result:
    """The metrics of one test set.

    Attributes:
        maker: whose maps at which size; each has a table of its own.
        task, category: of the dataset; the category is the test set's name in tables.
        images, defects: how many.
    """

    maker: str
    task: str
    category: str
    images: int
    defects: int
    evaluation: Evaluation


Work = tuple[str, Callable[[], list[Result]]]  # how its lines begin, and what is to be done


def carried_out(work: Sequence[Work], reporter: Reporter) -> tuple[list[Result], int]:
    """The results, and how many pieces of work failed: that is said, and does not stop the others."""
    results, failed = [], 0
    with reporter.stage("computing metrics", len(work)) as advance:
        for number, (name, task) in enumerate(work, 1):
            try:
                results += task()
            except UsageError:
                raise
            except Exception as error:  # one's failure is its own
                failed += 1
                reporter.fail(f"[{number}/{len(work)}] {name}: {reason(error)}", error)
            advance(1)
    return results, failed
