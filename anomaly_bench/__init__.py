"""anomaly-bench: unsupervised image anomaly detection under one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anomaly_bench.version import __version__ as __version__

if TYPE_CHECKING:
    import os

    from pandas import DataFrame

    from anomaly_bench.records.record import Record


def evaluate(*overrides: str, **keys: Any) -> list[Record]:
    """Fit and score as `anomaly-bench run` does and return one Record per category.

    Args:
        overrides: as on the command line, such as `"input.crop=224"`.
        keys: keys without a dot, such as `method="padim"` or `category=["bottle", "screw"]`.

    Raises:
        anomaly_bench.errors.UsageError: a wrong key, choice or value.
    """
    from anomaly_bench.config.compose import as_override, compose
    from anomaly_bench.errors import UsageError
    from anomaly_bench.runs.runner import execute

    summary = execute(compose("config", [*overrides, *(f"{key}={as_override(value)}" for key, value in keys.items())]))
    if summary.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in summary.failed.items())
        raise UsageError(f"{len(summary.failed)} categories failed, {len(summary.records)} were written: {reasons}")
    return summary.records


def load_results(results: str | os.PathLike[str] = "results", long: bool = False) -> DataFrame:
    """The records of a results folder as a tidy pandas DataFrame; see `anomaly_bench.records.frame.load_results`.

    Args:
        long: one row per record and metric instead of one per record.
    """
    from anomaly_bench.records.frame import load_results

    return load_results(results, long)
