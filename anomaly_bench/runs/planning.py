"""Estimate the memory, disk space and time of jobs from shapes and earlier records; nothing is computed."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_bench.cache import cache_root
from anomaly_bench.errors import TooLarge
from anomaly_bench.files import digest
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.records import outlines

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.evaluator import Evaluator
    from anomaly_bench.runs.job import Job
    from anomaly_bench.runs.runner import Runner

PICTURE_BYTES = 30_000  # roughly, per gallery picture
RECORD_BYTES = 120_000  # roughly, per record with curves and samples


@dataclass
class Estimate:
    """The needs of one category of a job, in bytes and seconds; None: unknown.

    `sources` tell where memory and time come from; `refused` why the job would not start, "" if it would.
    """

    memory: int
    disk: int
    seconds: float | None
    sources: tuple[str, str]
    refused: str


class Planner:
    """Estimates jobs from shapes, on the meta device, and from earlier records of the same method and backbone."""

    def __init__(self) -> None:
        self.evaluators: dict[str, Evaluator] = {}  # by a hash of what determines shapes
        self.base = 0  # bytes of a process that has loaded torch and one backbone
        self.known: dict[Path, list[Record]] = {}

    def estimate(self, runner: Runner, job: Job) -> Estimate:
        """Raises UsageError: method and backbone are incompatible."""
        evaluator, refused = self.evaluator(runner), ""
        try:
            evaluator.require_memory(job)
        except TooLarge as error:
            refused = str(error)
        needs = evaluator.needs(job)
        most, source = max(sum(parts.values()) + (0 if where else self.base) for where, parts in needs), "shapes"
        like = self.like(runner, job)
        peaks = [1e6 * record.cost["peak_ram_mb"] for record in like if record.cost.get("peak_ram_mb")]
        if peaks and (max(peaks) > most or all(record.dataset == job.dataset.name for record in like)):
            most, source = round(max(peaks)), f"{len(peaks)} records"
        seconds = self.seconds(runner, job, like)
        basis = f"{len(like)} records" if seconds is not None else "no record yet"
        return Estimate(most, disk(runner, job, evaluator), seconds, (source, basis), refused)

    def evaluator(self, runner: Runner) -> Evaluator:
        """One evaluator for all jobs of the same networks: seeds and categories do not change shapes."""
        from anomaly_bench.runs.evaluator import Evaluator

        config = runner.config
        method = {key: value for key, value in config["method"].items() if key != "seed"}
        settings = runner.settings
        shape = [settings.size, settings.batch_size, settings.save_maps, settings.save_model, settings.speed]
        key = digest([method, config["backbone"], settings.precision, settings.device, settings.cache, shape])
        if key not in self.evaluators:
            self.evaluators[key] = Evaluator(config, runner.weights, settings, runner.reporter)
            self.base = self.base or memory.resident()
        return self.evaluators[key]

    def like(self, runner: Runner, job: Job) -> list[Record]:
        """The records in the results folder with the job's method, backbone, input and device."""
        results, settings = runner.settings.results, runner.settings
        if results not in self.known:
            self.known[results] = outlines.outlines(results)[0] if results.is_dir() else []
        device = devices.device_name(devices.device_kind(settings.device))
        wanted = (job.first.method, job.first.backbone, settings.input, device)
        found = [each for each in self.known[results] if wanted[:3] == (each.method, each.backbone, each.input)]
        return [record for record in found if record.cost.get("device") == device]

    def seconds(self, runner: Runner, job: Job, like: Sequence[Record]) -> float | None:
        """For fit, scoring and timing, from the records' medians per image and, for training, per epoch or step."""
        if not like:
            return None
        method = job.config["method"]
        steps = method.get("train_steps")
        lengths = [length_of(record, by_steps=steps is not None) for record in like]
        fitted = [record.cost["fit_s"] / length for record, length in zip(like, lengths, strict=True) if length]
        if not fitted:
            return None
        scored = [record.cost["score_s"] / record.counts["test"] for record in like]
        tested = sum(map(len, job.task.tests.values())) + len(job.task.validation)
        passes = min(2, runner.settings.batch_size)  # latency, and throughput in batches of several images
        timed = passes * timing.SECONDS if runner.settings.speed else 0
        fit = steps if steps is not None else len(job.task.fit) * method.get("epochs", 1)
        work = statistics.median(fitted) * fit + statistics.median(scored) * tested
        return float(work + timed)


def length_of(record: Record, by_steps: bool) -> float | None:
    """What a record's fitting time is proportional to: optimiser steps, or images times epochs; None: unknown."""
    training = record.training or {}
    if by_steps:
        return training.get("steps")
    epochs = training.get("epochs", record.config["method"].get("epochs", 1))
    return float(max(1, record.counts["fit"]) * epochs)


def disk(runner: Runner, job: Job, evaluator: Evaluator) -> int:
    """Bytes of cached images, masks and features, and of the files saved with the record."""
    settings = runner.settings
    pixels = settings.resize[0] * settings.resize[1]
    tested = sum(map(len, job.task.tests.values()))
    images = tested + len(job.task.fit) + len(job.task.validation)
    cached = job.image_bytes + pixels * tested
    cached += images * sum(network.stored_bytes(settings.size) for network in evaluator.networks)
    kept = (RECORD_BYTES + 3 * PICTURE_BYTES * settings.gallery) * len(job.task.tests)
    kept += 4 * settings.size[0] * settings.size[1] * tested if settings.save_maps else 0
    return cached + kept + (evaluator.footprint(job.task.channels)[0] if settings.save_model else 0)


def free_disk() -> int:
    """Free bytes on the disk of the cache, which takes most of the space."""
    existing = next(folder for folder in (cache_root(), *cache_root().parents) if folder.exists())
    return shutil.disk_usage(existing).free
