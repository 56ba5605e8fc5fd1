"""The loop over tasks: finished tasks are skipped, failures reported, results kept. No torch until needed."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.backbones.build import find_weights
from anomaly_bench.config.budget import with_budget
from anomaly_bench.config.instantiate import check_choices, without_unused_backbone
from anomaly_bench.config.settings import check_writable, read_settings, results_folder
from anomaly_bench.console import Reporter, log_file
from anomaly_bench.data import findings
from anomaly_bench.data.dataset import open_dataset, selected
from anomaly_bench.data.remembered import reading_anew
from anomaly_bench.errors import DataError, UsageError, reason
from anomaly_bench.files import move_files
from anomaly_bench.hardware import devices, timing
from anomaly_bench.metrics.registry import metric_set, metrics_of_run, standard_metrics
from anomaly_bench.records import failures, load, save
from anomaly_bench.records.record import DamagedRecord
from anomaly_bench.runs import leases
from anomaly_bench.runs.job import make_job
from anomaly_bench.runs.kept_maps import KeptMaps, at_rate
from anomaly_bench.runs.summary import Standing, State, Summary, duration, headline, speed_setting
from anomaly_bench.runs.tasks import task_names

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights
    from anomaly_bench.data.dataset import Dataset
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.evaluator import Evaluator
    from anomaly_bench.runs.job import Job

DECODED_EARLY = 10**9  # bytes: images up to this size are decoded before the job's memory is checked
TAKEN_OVER = "taken over by another run, as this one stood still; nothing is written"
WAIT_SECONDS = 1.0  # between checks whether another run has finished


class Runner:
    """One run of one resolved configuration.

    Args:
        stop: a file; while it exists no category is started. With fail_fast=true a failure creates it.

    Raises:
        UsageError: the configuration cannot work for any category.
    """

    def __init__(self, config: Mapping[str, Any], reporter: Reporter, stop: Path | None = None) -> None:
        check_choices(config)
        self.config = with_budget(without_unused_backbone(config))
        self.reporter, self.stop = reporter, stop
        self.settings = read_settings(config)
        if self.settings.oracle and "oracle" not in config["method"]:
            raise UsageError(f"oracle=true: method {config['method']['name']} has nothing to choose on the test set")
        self.dataset: Dataset = open_dataset(config["dataset"], self.settings.data_root)
        self.categories = selected(self.dataset, self.settings.category)
        available = set(self.dataset.available)
        self.missing = [name for name in self.categories if name not in available]
        self.tasks = task_names(self.settings.regime, self.dataset, self.categories)
        self.metrics = metrics_of_run(config, self.settings.holdout > 0)
        shown = None if self.metrics.keys() == standard_metrics().keys() else list(self.metrics)
        self.summary = Summary(self.settings, cells=shown)
        self.waited: set[str] = set()  # categories reported as busy
        self.damaged: set[Path] = set()  # records reported as damaged
        self.remote = False  # accept speeds of any machine
        self._evaluator: Evaluator | None = None
        self._held = contextlib.ExitStack()  # the device

    @functools.cached_property
    def weights(self) -> Mapping[str, Weights]:
        """The weights of each of the backbone's networks; UsageError: they cannot be found."""
        return find_weights(self.config)

    def evaluator(self, job: Job) -> Evaluator:
        """Created for the first job to be computed, so a finished run does not import torch."""
        if self._evaluator is None:
            if job.image_bytes < DECODED_EARLY:
                job.decode_early()
            gc.disable()  # it takes a fifth of the import time and finds nothing, then or later
            try:
                from anomaly_bench.hardware.torch_setup import own_device
                from anomaly_bench.runs.evaluator import Evaluator

                device = self._held.enter_context(own_device(self.settings.device, self.reporter))
                settings = replace(self.settings, device=device)
                self._evaluator = Evaluator(self.config, self.weights, settings, self.reporter)
                gc.freeze()
            finally:
                gc.enable()
        return self._evaluator

    def close(self) -> None:
        """Release the device for other jobs."""
        self._evaluator = None
        self._held.close()

    def run(self) -> Summary:
        """Run every selected category; errors of one do not stop the others unless fail_fast=true.

        Raises:
            UsageError: the configuration cannot work for any category.
        """
        _ = self.weights  # before anything is written
        check_writable(self.settings.results / "records", f"results={self.settings.results}")
        if self.missing:
            listed = ", ".join(self.missing)
            self.reporter.warn(f"{len(self.missing)} categories have no folder in {self.dataset.root}: {listed}")
            self.summary.failed |= dict.fromkeys(self.missing, "no folder")
            self.fail_all(DataError("no folder"), self.tasks.keys() - set(self.present))
        self.summary.stopped = bool(self.missing) and self.settings.fail_fast
        prefix = "" if self.stop is None else f"{self.title} "  # the lines of a sweep's jobs are interleaved
        count = len(self.present)
        present = {name: f"{prefix}[{number}/{count}] {name}" for number, name in enumerate(self.present, 1)}
        start, computed = timing.clock(), 0
        with self.reporter.stage(self.title, count) as advance:
            for left, (name, where) in zip(reversed(range(count)), present.items(), strict=True):
                worked = self.attempt(name, where)
                computed += worked
                advance(1)
                if worked and computed == 1 and left:
                    self.reporter.say(f"about {duration((timing.clock() - start) * left)} left for {left} more")
            while self.summary.busy and self.settings.wait:
                name = self.summary.busy.pop(0)
                if not self.attempt(name, present[name]) and name in self.summary.busy:
                    time.sleep(WAIT_SECONDS)
        return self.summary

    @property
    def title(self) -> str:
        """Method, backbone and seed."""
        backbone = [] if self.config["backbone"] is None else [self.config["backbone"]["name"]]
        return " ".join([self.config["method"]["name"], *backbone, f"s{self.settings.seed}"])

    @property
    def present(self) -> list[str]:
        """The tasks whose categories all have a folder."""
        return [name for name, categories in self.tasks.items() if not set(categories) & set(self.missing)]

    def attempt(self, name: str, where: str) -> bool:
        """Run one category, handling its errors; True: something was computed."""
        self.summary.stopped = self.summary.stopped or (self.stop is not None and self.stop.exists())
        if self.summary.stopped:
            return False
        try:
            return self.category(self.job(name, anew=self.settings.overwrite), where)
        except Exception as error:  # the other categories continue
            if isinstance(error, UsageError):
                if self.stop is not None:  # a sweep reads it later; a single run reports it at once
                    self.fail_all(error, self.present)
                raise
            self.fail_all(error, [name])
            why = reason(error).removeprefix(f"{name}: ")
            self.summary.failed[name] = why
            self.reporter.fail(f"{where}: {why}", error)
            self.summary.stopped = self.settings.fail_fast
            if self.summary.stopped and self.stop is not None:
                self.stop.touch()
        return False

    def fail_all(self, error: Exception, names: Iterable[str]) -> None:
        """Save the failure of some tasks, but for those that are done."""
        for name in names:
            try:
                done = self.standing(name).state == State.DONE
            except UsageError:  # its weights are missing
                done = False
            if not done or self.settings.overwrite:
                failures.save_failure(self.settings.results, self.key(name), error, self.config)

    def key(self, name: str) -> failures.JobKey:
        """What the failure of a task is known by."""
        return failures.job_key(self.config, self.dataset.name, name)

    def standing(self, name: str) -> Standing:
        """The state of a task, without computing."""
        try:
            job = self.job(name)
        except (DataError, OSError) as error:
            return Standing(State.FAILED, reason(error))
        done = self.done(job)
        if done is not None:
            return Standing(State.DONE, records=done)
        why = failures.known_failure(self.settings.results, self.key(name))
        return Standing(State.MISSING, self.other_speeds(job)) if why is None else Standing(State.FAILED, why)

    def other_speeds(self, job: Job) -> str:
        """What is there of a job that lacks a speed only; "" if it lacks more."""
        known = self.known(job)
        if known is None:
            return ""
        key = job.speed_key(devices.device_name(devices.device_kind(self.settings.device)))
        there = [
            speed_setting({name: entry.get(name) for name in key}) for entry in known[0].speed if "runtime" not in entry
        ]
        return (
            f"has a record, without a speed on {speed_setting(key)} (there: {'; '.join(there) or 'none'}); "
            "a run measures it, speed=false counts it as done"
        )

    def job(self, name: str, anew: bool = False) -> Job:
        """The job of one task, see `make_job`; `anew`: its files are hashed again, whatever is remembered of them."""
        with reading_anew() if anew else contextlib.nullcontext():
            return make_job(self.config, self.settings, self.dataset, self.weights, name, self.tasks[name])

    def category(self, job: Job, where: str) -> bool:
        """Add the records of one category to the summary; True: something was computed."""
        done = self.done(job)
        if done is not None and not self.settings.overwrite:
            done = [self.with_metrics(record, where) for record in done]
            self.summary.records += done
            self.reporter.say(f"{where}: already done ({headline(done)})")
            findings.tell_new(job.task, done[0].findings, self.reporter.say, self.reporter.warn)
            return False
        key = self.key(job.task.name)
        if self.settings.retry == "failed" and failures.known_failure(self.settings.results, key) is None:
            self.reporter.say(f"{where}: skipped by retry=failed")
            return False
        with leases.claim(self.settings.results, job.lease) as lease:
            if not lease.ours:
                self.busy(job.task.name, where)
                return False
            done = self.done(job)  # by the run that had the lease
            worked = done is None or self.settings.overwrite
            done = self.compute(job, where, lease) if worked else done
        if done is None:
            self.busy(job.task.name, where)
        self.summary.records += done or []
        return worked

    def with_metrics(self, record: Record, where: str) -> Record:
        """A record with what `metric=` and `max_false_alarms=` ask for; warns if stored maps are missing for that."""
        record = at_rate(record, self.settings.max_false_alarms)
        wanted = self.metrics | (metric_set("operating") if record.thresholds else {})
        lacking = {name: each for name, each in wanted.items() if not each.is_in(record.metrics)}
        path = self.settings.results / record.path
        if record.localises and not (path.with_suffix("") / "maps.npy").is_file():
            unknown = [name for name, metric in lacking.items() if metric.needs_maps]
            lacking = {name: metric for name, metric in lacking.items() if not metric.needs_maps}
            if unknown:
                hint = "save_maps=true overwrite=true stores them"
                self.reporter.warn(f"{where}: no stored maps to compute {', '.join(unknown)} from; {hint}")
        if not lacking:
            return record
        kept = KeptMaps(self.dataset, [path], lacking, self.settings.threads, True, self.reporter)
        kept.recompute(path, record)
        return load(path)

    def busy(self, name: str, where: str) -> None:
        """Report once that another run is working on a category, and check it again later."""
        if name not in self.waited:
            self.reporter.say(f"{where}: another run is working on it{'; waiting' if self.settings.wait else ''}")
        self.waited.add(name)
        self.summary.busy.append(name)

    def compute(self, job: Job, where: str, lease: leases.Lease) -> list[Record] | None:
        """Compute and save what is missing for one category; None: another run has taken it over meanwhile."""
        known = None if self.settings.overwrite else self.known(job)
        with job.staged() as staging:
            if known is None:
                computed = self.evaluator(job).evaluate(job)
            else:
                self.reporter.say(f"{where}: has a record; measuring its speed on this machine")
                computed = self.evaluator(job).add_speed(job, known)
            with lease.kept() as ours:
                if not ours:
                    self.reporter.warn(f"{where}: {TAKEN_OVER}")
                    return None
                for record in computed:
                    move_files(staging / record.path.stem, self.settings.results / record.path.with_suffix(""))
                    save(record, self.settings.results)
        failures.forget_failure(self.settings.results, self.key(job.task.name))
        (self.settings.results / job.checkpoint).unlink(missing_ok=True)
        self.reporter.say(f"{where}: {headline(computed)}")
        return computed

    def done(self, job: Job) -> list[Record] | None:
        """The records of a category that is complete; None: it is not."""
        known = self.known(job)
        timed = not self.settings.speed or all(self.has_speed(job, record) for record in known or ())
        return known if timed else None

    def known(self, job: Job) -> list[Record] | None:
        """The records of all test sets, with all requested files; None: something is missing."""
        found = [self.existing(expected) for expected in job.expected.values()]
        whole = [record for record in found if record is not None and not self.lacks_files(record)]
        return whole if len(whole) == len(found) else None

    def existing(self, expected: Record) -> Record | None:
        """The record with this fingerprint; a damaged one is reported and ignored."""
        path = self.settings.results / expected.path
        if not path.is_file():
            return None
        try:
            record = load(path)
        except DamagedRecord as error:
            if path not in self.damaged:
                self.reporter.warn(str(error))
            self.damaged.add(path)
            return None
        return record if record.fingerprint == expected.fingerprint else None

    def lacks_files(self, record: Record) -> bool:
        """Whether requested maps or the model are missing."""
        folder = self.settings.results / record.path.with_suffix("")
        wanted = ["maps.npy"] if self.settings.save_maps and record.localises else []
        wanted += ["model.safetensors"] if self.settings.save_model else []
        return not all((folder / name).is_file() for name in wanted)

    def has_speed(self, job: Job, record: Record) -> bool:
        key = job.speed_key(devices.device_name(devices.device_kind(self.settings.device)))
        if self.remote:
            del key["device"]
        return any(key.items() <= entry.items() for entry in record.speed if "runtime" not in entry)


def execute(config: Mapping[str, Any], stop: Path | None = None) -> Summary:
    """Run a resolved configuration, logging below its results folder; see `Runner` for `stop`."""
    reporter = Reporter()
    with log_file(results_folder(config) / "logs" / f"{timing.today()}-{os.getpid()}.log"):
        try:
            with contextlib.closing(Runner(config, reporter, stop)) as runner:
                return runner.run()
        except KeyboardInterrupt:
            reporter.warn(f"interrupted; finished categories are kept in {config['results']}")
            raise
