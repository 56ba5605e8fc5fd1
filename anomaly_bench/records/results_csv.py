"""results.csv: one flat row per record, derived from the records and never read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from anomaly_bench.files import safe_cell, write_atomically
from anomaly_bench.metrics.registry import own_names

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

CSV_COLUMNS = (
    *("dataset", "category", "method", "backbone", "seed", "image_auroc", "pixel_auroc", "pro"),
    *("image_ap", "pixel_ap", "image_f1_max", "pixel_f1_max"),
    *("image_f1", "image_recall", "image_false_alarms", "image_f1_floor", "pixel_f1"),
    *("fps", "latency_ms", "extra_params", "extra_mb", "stored_mb", "fit_s", "peak_ram_mb", "peak_gpu_mb"),
    *("device", "threads", "batch_size", "protocol", "resize", "crop", "filter", "oracle", "precision"),
    *("holdout", "max_false_alarms", "image_threshold", "pixel_threshold", "fit_images", "held_out_images"),
    *("test_images", "train_steps", "train_samples", "train_share", "fingerprint"),
)


def columns_of(records: Iterable[Record]) -> list[str]:
    """The columns of results.csv: `CSV_COLUMNS`, then the user's own metrics."""
    return [*CSV_COLUMNS, *(name for name in own_names(record.metrics for record in records))]


def csv_row(record: Record, columns: Iterable[str] = CSV_COLUMNS) -> Mapping[str, Any]:
    """The flat row of one record in results.csv, with its latest speed, and any further `columns`."""
    own = [entry for entry in record.speed if "runtime" not in entry]
    speed, limits = own[-1] if own else {}, record.thresholds or {}
    flat: dict[str, Any] = {
        **vars(record),
        **{name: record.value(name) for name in record.metrics},
        **record.size,
        **record.cost,
        **{name: speed[name] for name in ("fps", "latency_ms", "batch_size", "device", "threads") if name in speed},
        **{f"train_{name}": (record.training or {}).get(name) for name in ("steps", "samples", "share")},
        "category": record.category,
        "resize": "x".join(map(str, record.input["resize"])),
        "crop": "x".join(map(str, record.input["crop"] or [])),
        "filter": record.input["filter"],
        "fit_images": record.counts["fit"],
        "max_false_alarms": limits.get("max_false_alarms"),
        "image_threshold": limits.get("image"),
        "pixel_threshold": limits.get("pixel"),
        "held_out_images": limits.get("images"),
        "test_images": record.counts["test"],
    }
    return {name: flat.get(name) for name in dict.fromkeys((*CSV_COLUMNS, *columns))}


def write_csv(records: Iterable[Record], results: Path) -> Path:
    """Rebuild results.csv from records, under a lock, by one atomic rename."""
    path = results / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    found = list(records)
    columns = columns_of(found)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: safe_cell(value) for name, value in csv_row(record, columns).items()} for record in found)
    with FileLock(path.with_name(".results.csv.lock")):
        write_atomically(path, text.getvalue())
    return path
