"""Records as a pandas DataFrame."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.registry import own_names, packaged_metrics
from anomaly_bench.records.outlines import outlines
from anomaly_bench.records.results_csv import columns_of, csv_row
from anomaly_bench.records.setups import setup_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from anomaly_bench.records.record import Record

FACTS = ("setup", "task", "task_kind", "test", "group", "method_title", "backbone_title", "defects", "score_s", "path")


def load_results(results: str | os.PathLike[str] = "results", long: bool = False) -> DataFrame:
    """The records of a results folder as a tidy table.

    Args:
        long: one row per record and metric, with the columns metric, value and revision, instead of one per record.

    Returns:
        The columns of results.csv, then setup (what one table may compare), task and its kind, test set, group, titles,
        defective test images, scoring time in seconds, and the record's path. Metrics are fractions, NaN if undefined.

    Raises:
        UsageError: no such folder.
    """
    import pandas as pd

    folder = Path(results).expanduser()
    if not folder.is_dir():
        raise UsageError(f"results={folder}: no such folder; expected one written by anomaly-bench")
    found, damaged = outlines(folder)
    for message in damaged:
        warnings.warn(message, stacklevel=2)
    names = [*packaged_metrics(), *own_names(record.metrics for record in found)]
    columns = [*columns_of(found), *FACTS]
    rows = [{**csv_row(record, columns), **facts(record)} for record in found]
    if not long:
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({name: float for name in names if name in columns})
    shared = [name for name in columns if name not in names]
    each = [
        {**row, "metric": name, "value": entry["value"], "revision": entry["revision"]}
        for row, record in zip(rows, found, strict=True)
        for name, entry in record.metrics.items()
    ]
    return pd.DataFrame(each, columns=[*shared, "metric", "value", "revision"]).astype({"value": float})


def facts(record: Record) -> dict[str, Any]:
    """What results.csv lacks of a record."""
    return {
        "setup": setup_name(record),
        "task": record.task,
        "task_kind": record.regime["name"] if record.regime else None,
        "test": record.test,
        "group": record.group,
        "method_title": record.titles.get("method"),
        "backbone_title": record.titles.get("backbone"),
        "defects": record.counts["defects"],
        "score_s": record.cost.get("score_s"),
        "path": record.path.as_posix(),
    }
