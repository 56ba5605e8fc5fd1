"""Failed jobs: one JSON file each below <results>/failed, deleted when the job succeeds."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly_bench.documents import read_json
from anomaly_bench.errors import reason
from anomaly_bench.files import digest, safe_filename, write_atomically
from anomaly_bench.hardware import timing

IRRELEVANT = (  # keys of a run that do not change what it computes
    *("category", "data_root", "results", "device", "threads", "batch_size", "metric", "max_false_alarms", "task"),
    *("overwrite", "speed", "gallery", "save_maps", "save_model", "checkpoint", "cache", "cache_gb"),
    *("fail_fast", "retry", "wait"),
)


@dataclass(frozen=True)
class JobKey:
    """What was to be computed, of whatever files: an image or weights that are repaired change a job's fingerprint."""

    dataset: str
    task: str
    method: str
    backbone: str
    seed: int
    settings: str  # their hash

    @property
    def path(self) -> Path:
        """Below the results folder."""
        names = [safe_filename(name) for name in (self.dataset, self.method, self.backbone, self.task)]
        file = f"{names[3]}-s{self.seed}-{self.settings[:8]}.json"
        return Path("failed", names[0], f"{names[1]}-{names[2]}", file)


def job_key(config: Mapping[str, Any], dataset: str, task: str) -> JobKey:
    """The key of one task of a resolved configuration."""
    backbone = config["backbone"]
    kept = {name: value for name, value in config.items() if name not in (*IRRELEVANT, "backbone")}
    settings = digest({**kept, "regime": config.get("task"), "backbone": backbone and without_weights(backbone)})
    name = "none" if backbone is None else backbone["name"]
    return JobKey(dataset, task, config["method"]["name"], name, config["seed"], settings)


def without_weights(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's node without where its weights are, in each network too."""
    made = {name: value for name, value in backbone.items() if name != "weights"}
    if "networks" in made:
        made["networks"] = {name: without_weights(part) for name, part in made["networks"].items()}
    return made


def save_failure(results: Path, key: JobKey, error: Exception, config: Mapping[str, Any]) -> None:
    """Write cause, traceback and resolved configuration of a failed job; a full disk is ignored."""
    content = {
        "date": timing.today(),
        **asdict(key),
        "reason": reason(error),
        "traceback": "".join(traceback.format_exception(error)),
        "config": config,
    }
    with contextlib.suppress(OSError):
        write_atomically(results / key.path, json.dumps(content, indent=1) + "\n")


def known_failure(results: Path, key: JobKey) -> str | None:
    """Why the job's last attempt failed; None: it did not fail."""
    content = _read(results / key.path)
    return str(content["reason"]) if content.get("settings") == key.settings else None


def _read(file: Path) -> dict[str, Any]:
    """What `save_failure` wrote; empty if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = read_json(file)
        return content if isinstance(content, dict) and "reason" in content else {}
    return {}


def forget_failure(results: Path, key: JobKey) -> None:
    """After a success, delete the job's file, and the folders that are empty then."""
    file = results / key.path
    with contextlib.suppress(OSError):  # stops at the first that is not empty
        file.unlink(missing_ok=True)
        for empty in file.parents:
            if empty == results:
                break
            empty.rmdir()
