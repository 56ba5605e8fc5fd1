"""What became of the jobs that failed: one JSON file each below <results>/failed, gone when the job succeeds."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly_bench import speed
from anomaly_bench.errors import reason
from anomaly_bench.records import Record, write_atomically

FOLDER = "failed"


def path(results: Path, record: Record) -> Path:
    """Where the failure of what would have made this record is told."""
    return results / FOLDER / record.path.relative_to("records")


def save(results: Path, record: Record, error: Exception, config: Mapping[str, Any]) -> None:
    """Write cause, traceback and resolved configuration of a failed job; a full disk is not another failure."""
    content = {
        "date": speed.today(),
        **{name: getattr(record, name) for name in ("dataset", "task", "method", "backbone", "seed", "fingerprint")},
        "reason": reason(error),
        "traceback": "".join(traceback.format_exception(error)),
        "config": config,
    }
    with contextlib.suppress(OSError):
        write_atomically(path(results, record), json.dumps(content, indent=1) + "\n")


def load(results: Path, record: Record) -> str | None:
    """Why the job failed when it was last tried; None: it did not, or has succeeded since."""
    try:
        content = json.loads(path(results, record).read_bytes())
        return str(content["reason"]) if content["fingerprint"] == record.fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(results: Path, record: Record) -> None:
    """The job has succeeded: its file goes, and the folders that it leaves empty."""
    file = path(results, record)
    with contextlib.suppress(OSError):
        file.unlink()
        for folder in list(file.parents)[: len(file.relative_to(results).parts) - 1]:
            folder.rmdir()
