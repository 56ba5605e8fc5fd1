"""The speed of an exported graph, under the protocol of `hardware.timing`, as an entry of its model's record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_bench.errors import UsageError
from anomaly_bench.export import formats
from anomaly_bench.hardware import devices, sharing, timing
from anomaly_bench.records import load
from anomaly_bench.records.record import write_record

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter


def read_proof(file: Path) -> dict[str, Any]:
    """What the export's check has found.

    Raises:
        UsageError: there is no graph, or no proof beside it.
    """
    proof = file.with_name(f"{file.name}.check.json")
    for path in (file, proof):
        if not path.is_file():
            raise UsageError(f"file={file}: no {path.name} there; expected what `export` has written")
    found: dict[str, Any] = json.loads(proof.read_text("utf-8"))
    return found


def measure(
    file: Path, proof: Mapping[str, Any], images: NDArray[np.uint8], threads: int, reporter: Reporter
) -> dict[str, Any]:
    """An entry of `Record.speed`.

    Args:
        images: (N, H, W, 3), the batch of the throughput; the first one is timed alone.
    """
    module = formats.format_module(proof["format"])
    run = module.load(file, proof["outputs"], threads)
    torch.set_num_threads(threads)  # read by `timing.measure`
    cpu = torch.device("cpu")
    with (
        sharing.exclusive(lambda: reporter.say("other jobs are running here; timing waits for them")) as alone,
        reporter.stage("timing (%)", 100) as advance,
    ):
        timed = {"": lambda batch: run(batch.numpy())}
        entry = timing.measure(timed, torch.from_numpy(images), cpu, advance=advance)
    version = formats.versions(module)[module.PACKAGES[-1]]
    where = {"device": devices.device_name("cpu"), "precision": "fp32", "runtime": f"{module.PACKAGES[-1]} {version}"}
    return {**entry, **where, "alone": alone, "measured": timing.today()}


def add(entry: Mapping[str, Any], model: Path) -> None:
    """Add it to the record beside the model."""
    file = model.parent / f"{model.name}.json"
    record = load(file)
    write_record(replace(record, speed=[*record.speed, dict(entry)]), file)
