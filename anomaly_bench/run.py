"""The loop over tasks: what has a record is skipped, what fails is said, what is done stays. No torch until needed."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anomaly_bench import records, speed
from anomaly_bench.config import Settings, check_writable, read_settings
from anomaly_bench.console import Reporter
from anomaly_bench.data.mvtec import Dataset
from anomaly_bench.errors import UsageError, reason
from anomaly_bench.jobs import Job, check_choices, find_weights, make_job, open_dataset, selected
from anomaly_bench.records import DamagedRecord, Record

if TYPE_CHECKING:
    from anomaly_bench.evaluation import Evaluator


AHEAD = 10**9  # bytes of images that are decoded before it is known whether the job fits into memory


@dataclass
class Summary:
    """What a run came to: records in the order of the categories, and why the others have none."""

    settings: Settings
    records: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Runner:
    """One run of one resolved configuration."""

    def __init__(self, config: Mapping[str, Any], reporter: Reporter) -> None:
        check_choices(config)
        self.config = without_unused_backbone(config)
        self.reporter = reporter
        self.settings = read_settings(config)
        if self.settings.oracle and "oracle" not in config["method"]:
            raise UsageError(f"oracle=true: method {config['method']['name']} has nothing to choose on the test set")
        check_writable(self.settings.results / "records", f"results={self.settings.results}")
        self.dataset: Dataset = open_dataset(config["dataset"], self.settings.data_root)
        self.categories = selected(self.dataset, self.settings.category)
        self.weights = find_weights(self.config)
        self.summary = Summary(self.settings)
        self._evaluator: Evaluator | None = None

    def evaluator(self, job: Job) -> Evaluator:
        """Made for the first job that has to be computed: a finished run imports no torch.

        Meanwhile that job's images are decoded: importing keeps one core busy at most.
        """
        if self._evaluator is None:
            if job.image_bytes < AHEAD:
                threading.Thread(target=job.decode, daemon=True).start()
            gc.disable()  # it finds nothing to collect among modules, and takes a fifth of their import
            try:
                from anomaly_bench.evaluation import Evaluator

                self._evaluator = Evaluator(self.config, self.weights, self.settings, self.reporter)
            finally:
                gc.enable()
        return self._evaluator

    def run(self) -> Summary:
        """Every selected category; errors of one do not stop the others.

        Raises:
            UsageError: the configuration cannot work for any category.
        """
        missing = [name for name in self.categories if not os.path.isdir(self.dataset.folder(name))]
        if missing:
            self.reporter.warn(f"{len(missing)} categories have no folder in {self.dataset.root}: {', '.join(missing)}")
            self.summary.failed |= dict.fromkeys(missing, "no folder")
        present = [name for name in self.categories if name not in missing]
        start, computed = speed.clock(), 0
        for number, name in enumerate(present, 1):
            where = f"[{number}/{len(present)}] {name}"
            try:
                worked = self.category(name, where)
            except UsageError:
                raise
            except Exception as error:  # one category's failure is its own
                why = reason(error).removeprefix(f"{name}: ")
                self.summary.failed[name] = why
                self.reporter.fail(f"{where}: {why}", error)
                continue
            computed += worked
            if worked and computed == 1 and number < len(present):
                left = len(present) - number
                self.reporter.say(f"about {duration((speed.clock() - start) * left)} to go, for {left} more")
        return self.summary

    def category(self, name: str, where: str) -> bool:
        """Have the records of one category; True: something was computed."""
        job = make_job(self.config, self.settings, self.dataset, name, self.weights)
        found = [self.existing(job, test) for test in job.task.tests]
        done = [record for record in found if record is not None]
        worked = True
        if self.settings.overwrite or len(done) < len(found) or any(map(self.lacks_files, done)):
            done = self.evaluator(job).evaluate(job)
            self.keep(done)
            (self.settings.results / job.checkpoint).unlink(missing_ok=True)
            self.reporter.say(f"{where}: {headline(done)}")
        elif self.settings.speed and not all(self.has_speed(job, record) for record in done):
            self.reporter.say(f"{where}: has a record, its speed on this machine is measured")
            done = self.evaluator(job).add_speed(job, done)
            self.keep(done)
        else:
            worked = False
            self.reporter.say(f"{where}: done before ({headline(done)})")
        self.summary.records += done
        return worked

    def keep(self, made: list[Record]) -> None:
        for record in made:
            records.save(record, self.settings.results)

    def existing(self, job: Job, test: str) -> Record | None:
        """The record of this fingerprint; a damaged one is reported and counts as none."""
        path = self.settings.results / job.record(test).path
        if not path.is_file():
            return None
        try:
            record = records.load(path)
        except DamagedRecord as error:
            self.reporter.warn(str(error))
            return None
        return record if record.fingerprint == job.fingerprint(test) else None

    def lacks_files(self, record: Record) -> bool:
        """Maps or model are wanted, and not there."""
        folder = self.settings.results / record.path.with_suffix("")
        wanted = ["maps.npy"] if self.settings.save_maps and record.localises else []
        wanted += ["model.safetensors"] if self.settings.save_model else []
        return not all((folder / name).is_file() for name in wanted)

    def has_speed(self, job: Job, record: Record) -> bool:
        key = job.speed_key(speed.device_name(speed.device_kind(self.settings.device)))
        return any(key.items() <= entry.items() for entry in record.speed)


def without_unused_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """An image-space method (`uses_backbone: false`) has no backbone in configuration, fingerprint, path and table."""
    return {**config, "backbone": config["backbone"] if config["method"].get("uses_backbone", True) else None}


def headline(done: list[Record]) -> str:
    """The main numbers of one category, in points of 100."""
    parts = []
    for record in done:
        names = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("pro", "PRO"))
        values = [(title, record.value(name)) for name, title in names]
        shown = ", ".join(f"{title} {'-' if value is None else f'{100 * value:.1f}'}" for title, value in values)
        parts.append(shown if len(done) == 1 else f"{record.test}: {shown}")
    return "; ".join(parts) + f"; fit {done[0].cost['fit_s']:.1f} s"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
