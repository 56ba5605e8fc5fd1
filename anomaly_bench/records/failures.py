"""Failed jobs: one JSON file each below <results>/failed, deleted when the job succeeds."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.documents import read_json
from anomaly_bench.errors import reason
from anomaly_bench.files import write_atomically
from anomaly_bench.hardware import timing

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

_FOLDER = "failed"


def failure_path(results: Path, record: Record) -> Path:
    """The file for the failure of the job that would have made this record."""
    return results / _FOLDER / record.path.relative_to("records")


def save_failure(results: Path, record: Record, error: Exception, config: Mapping[str, Any]) -> None:
    """Write cause, traceback and resolved configuration of a failed job; a full disk is ignored."""
    content = {
        "date": timing.today(),
        **{name: getattr(record, name) for name in ("dataset", "task", "method", "backbone", "seed", "fingerprint")},
        "reason": reason(error),
        "traceback": "".join(traceback.format_exception(error)),
        "config": config,
    }
    with contextlib.suppress(OSError):
        write_atomically(failure_path(results, record), json.dumps(content, indent=1) + "\n")


def known_failure(results: Path, record: Record) -> str | None:
    """Why the job's last attempt failed; None: it did not fail."""
    content = _read(failure_path(results, record))
    return str(content["reason"]) if content.get("fingerprint") == record.fingerprint else None


def _read(file: Path) -> dict[str, Any]:
    """What `save_failure` wrote; empty if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = read_json(file)
        return content if isinstance(content, dict) and "reason" in content else {}
    return {}


def forget_failure(results: Path, record: Record, config: Mapping[str, Any]) -> None:
    """After a success, delete the job's file, and those of the same configuration with other (faulty) data files."""
    folder = failure_path(results, record).parent
    for file in folder.glob(f"*-s{record.seed}-*.json"):
        content = _read(file)
        if content.get("task") == record.task and content.get("config") == config:
            with contextlib.suppress(OSError):
                file.unlink()
    with contextlib.suppress(OSError):  # stops at the first that is not empty
        for empty in (folder, *folder.parents):
            if empty == results:
                break
            empty.rmdir()
