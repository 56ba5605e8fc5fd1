"""`anomaly-bench plan`: what the jobs of a run or sweep will take in memory, disk and time, before any is begun."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_bench.cache import cache_root
from anomaly_bench.cli.sweep import DONE, complaints, job_table, look, names, new_console
from anomaly_bench.console import Reporter, shown
from anomaly_bench.errors import DataError, TooLarge, UsageError, one_line, reason
from anomaly_bench.files import digest
from anomaly_bench.hardware import devices, timing
from anomaly_bench.records import outlines
from anomaly_bench.runs.runner import duration

if TYPE_CHECKING:
    from anomaly_bench.cli.sweep import Jobs, SweepJob
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.evaluator import Evaluator
    from anomaly_bench.runs.job import Job
    from anomaly_bench.runs.runner import Runner

PICTURE = 30_000  # bytes of one of the gallery's pictures, about
ROOM = "free some, or set ANOMALY_BENCH_CACHE to a folder on a larger disk"
RECORD = 120_000  # bytes of a record with its curves and samples, about


@dataclass
class Estimate:
    """What one category of a job will take; bytes and seconds, None: nothing is known to tell it by.

    `sources` say where memory and time come from; `refused` why the job would not be begun, "" if it would.
    """

    memory: int
    disk: int
    seconds: float | None
    sources: tuple[str, str]
    refused: str


class Planner:
    """Estimates jobs by shapes, on the meta device, and by earlier records of the same method and backbone."""

    def __init__(self) -> None:
        self.evaluators: dict[str, Evaluator] = {}  # by what their networks are made of
        self.known: dict[Path, list[Record]] = {}

    def estimate(self, runner: Runner, job: Job) -> Estimate:
        """Raises UsageError: method and backbone do not go together."""
        evaluator, refused = self.evaluator(runner), ""
        try:
            evaluator.require_memory(job)
        except TooLarge as error:
            refused = str(error)
        shapes = max(sum(parts.values()) for _, parts in evaluator.needs(job))
        like = self.like(runner, job)
        peaks = [1e6 * record.cost["peak_ram_mb"] for record in like if record.cost.get("peak_ram_mb")]
        memory, source = shapes, "shapes"
        if peaks and max(peaks) > shapes:  # memory banks, and what a method works in
            memory, source = round(max(peaks)), f"{len(peaks)} records"
        seconds = self.seconds(runner, job, like)
        told = f"{len(like)} records" if seconds is not None else "no record yet"
        return Estimate(memory, disk(runner, job, evaluator), seconds, (source, told), refused)

    def evaluator(self, runner: Runner) -> Evaluator:
        """One for all jobs of the same networks: seeds and categories change no shape."""
        from anomaly_bench.runs.evaluator import Evaluator

        config = runner.config
        method = {key: value for key, value in config["method"].items() if key != "seed"}
        settings = runner.settings
        told = [settings.size, settings.batch_size, settings.save_maps, settings.save_model, settings.speed]
        key = digest([method, config["backbone"], settings.precision, settings.device, told])
        if key not in self.evaluators:
            self.evaluators[key] = Evaluator(config, runner.weights, settings, runner.reporter)
        return self.evaluators[key]

    def like(self, runner: Runner, job: Job) -> list[Record]:
        """The records of the results folder with the job's method, backbone and input, made on a device like ours."""
        results, settings = runner.settings.results, runner.settings
        if results not in self.known:
            self.known[results] = outlines.outlines(results)[0] if results.is_dir() else []
        device = devices.device_name(devices.device_kind(settings.device))
        wanted = (job.first.method, job.first.backbone, settings.input, device)
        made = [each for each in self.known[results] if wanted[:3] == (each.method, each.backbone, each.input)]
        return [record for record in made if record.cost.get("device") == device]

    def seconds(self, runner: Runner, job: Job, like: Sequence[Record]) -> float | None:
        """Of fit, scoring and timing: the records' medians for an image and, of a training, for an epoch."""
        if not like:
            return None
        epochs = job.config["method"].get("epochs", 1)
        each = [
            record.cost["fit_s"] / max(1, record.counts["fit"]) / record.config["method"].get("epochs", 1)
            for record in like
        ]
        scored = [record.cost["score_s"] / record.counts["test"] for record in like]
        tested = sum(map(len, job.task.tests.values()))
        timed = 2 * timing.SECONDS if runner.settings.speed else 0
        work = statistics.median(each) * len(job.task.fit) * epochs + statistics.median(scored) * tested
        return float(work + timed)


def disk(runner: Runner, job: Job, evaluator: Evaluator) -> int:
    """Bytes of the cache's decoded images, masks and features, and of what is kept beside the record."""
    settings = runner.settings
    pixels = settings.resize[0] * settings.resize[1]
    tested = sum(map(len, job.task.tests.values()))
    images = tested + len(job.task.fit)
    cached = job.image_bytes + pixels * tested
    cached += images * sum(network.stored_bytes(settings.size) for network in evaluator.networks)
    kept = (RECORD + 3 * PICTURE * settings.gallery) * len(job.task.tests)
    kept += 4 * settings.size[0] * settings.size[1] * tested if settings.save_maps else 0
    return cached + kept + (evaluator.footprint(job.task.channels)[0] if settings.save_model else 0)


def plan(jobs: Jobs) -> bool:
    """Print what every job that is still to be done will take; True: all of them can be begun."""
    reporter = Reporter()
    found, planner = look(jobs, reporter), Planner()
    rows: list[tuple[tuple[str, ...], list[str]]] = []
    estimates: list[Estimate] = []
    refused: dict[str, None] = {}  # a set in order
    with reporter.stage("estimating", len(found)) as advance:
        for choice in found:
            made = estimated(choice, planner)
            known = [each for each in made.values() if isinstance(each, Estimate)]
            estimates += known
            for name, each in made.items():
                why = each.refused if isinstance(each, Estimate) else each
                title = f"{choice.title}: " if choice.title else ""
                refused |= {shown(f"refused: {title}{why if name in why else f'{name}: {why}'}"): None} if why else {}
            if known:
                rows.append(((*names(choice), choice.shown_name), cells(known)))
            advance(1)
    size, free = sum(each.disk for each in estimates), free_disk()
    if size > free:
        refused[f"refused: {size / 1e6:.0f} MB of disk, free are {free / 1e6:.0f} MB: {ROOM}"] = None
    console = new_console(sys.stdout)
    if estimates:
        columns = ("to do", "memory MB", "disk MB", "time", "memory by", "time by")
        console.print(job_table(("method", "backbone", "job"), columns, rows))
    for line in [*complaints(found), *refused]:
        console.print(line)
    console.print(summary(found, estimates))
    return not refused and not any(choice.error for choice in found)


def free_disk() -> int:
    """Bytes on the disk of the cache, which takes the larger part."""
    there = next(folder for folder in (cache_root(), *cache_root().parents) if folder.exists())
    return shutil.disk_usage(there).free


def estimated(choice: SweepJob, planner: Planner) -> Mapping[str, Estimate | str]:
    """Category -> estimate, or why it cannot be begun, of what a job still has to do."""
    found: dict[str, Estimate | str] = {}
    if choice.runner is None:
        return found
    for name in choice.runner.present:
        if choice.states[name][0] == DONE:
            continue
        try:
            found[name] = planner.estimate(choice.runner, choice.runner.job(name))
        except (UsageError, DataError, OSError) as error:
            found[name] = one_line(str(error)) if isinstance(error, UsageError) else reason(error)
    return found


def cells(made: Sequence[Estimate]) -> list[str]:
    """The numbers of a job: its categories are done one after the other."""
    largest = max(made, key=lambda each: each.memory)
    known = [each.seconds for each in made if each.seconds is not None]
    return [
        str(len(made)),
        f"{largest.memory / 1e6:.0f}",
        f"{sum(each.disk for each in made) / 1e6:.0f}",
        duration(sum(known)) if known else "?",
        largest.sources[0],
        made[0].sources[1],
    ]


def summary(found: Sequence[SweepJob], estimates: Sequence[Estimate]) -> str:
    """One line: how much is to be done, and what it takes together."""
    done = sum(choice.count(DONE) for choice in found)
    if not estimates:
        return f"{len(found)} jobs: all {done} records are there"
    known = [made.seconds for made in estimates if made.seconds is not None]
    time = duration(sum(known)) if known else "unknown time"
    if 0 < len(known) < len(estimates):
        time = f"{time} for {len(known)} of them, the others' time is unknown"
    largest = max(made.memory for made in estimates)
    size = sum(made.disk for made in estimates)
    return (
        f"{len(found)} jobs: {done} records are there, {len(estimates)} to make: {time} in one process, "
        f"up to {largest / 1e6:.0f} MB of memory, at most {size / 1e6:.0f} MB of disk"
    )
