"""A multirun: find out which jobs are done, launch the others, report how they ended. No torch here.

A job's outcome is read from the results folder, never from its process, which may be on another machine or dead.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from anomaly_bench.cli import launchers
from anomaly_bench.cli.commands import tables
from anomaly_bench.console import Reporter
from anomaly_bench.errors import DataError, UsageError, one_line, reason, shorten, shown
from anomaly_bench.files import digest
from anomaly_bench.hardware import timing
from anomaly_bench.runs.runner import Runner
from anomaly_bench.runs.summary import Standing, State, Summary
from anomaly_bench.tables.formats.console import console as table_text
from anomaly_bench.tables.table import Header, Table

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

IDLE = ("fail_fast", "retry", "wait")  # keys in which equivalent jobs may differ


@dataclass
class SweepJob:
    """One configuration of a sweep.

    Attributes:
        overrides: command-line overrides.
        title: the overrides in which it differs from the others.
        names: of method and backbone.
        runner: None if the configuration cannot run; `error` says why.
        blocked: what would run but for its weights, or with images of other planes.
        states: task -> state.
        words: further overrides, for its launch.
    """

    overrides: Sequence[str]
    title: str
    names: tuple[str, str]
    runner: Runner | None = None
    blocked: Runner | None = None
    error: str = ""
    states: dict[str, Standing] = field(default_factory=dict)
    words: Sequence[str] = ()

    @property
    def shown_name(self) -> str:
        """Its title without method and backbone, which have columns of their own."""
        words = self.title.split(" ")
        return " ".join(word for word in words if word.partition("=")[0] not in ("method", "backbone"))

    def look(self) -> None:
        """Update the states from the files of the results folder."""
        if self.runner is None:
            return
        self.states = dict.fromkeys(self.runner.missing, Standing(State.FAILED, "no folder"))
        self.states |= {name: self.runner.standing(name) for name in self.runner.present}

    @property
    def records(self) -> list[Record]:
        """The records that exist."""
        return [record for each in self.states.values() for record in each.records]

    def count(self, state: State) -> int:
        """How many tasks are in a state; an invalid configuration counts as one failure."""
        if self.runner is None:
            return int(state == State.FAILED)
        return sum(each.state == state for each in self.states.values())

    @property
    def wanted(self) -> bool:
        """Whether it has anything left to do."""
        if self.runner is None:
            return False
        settings = self.runner.settings
        if settings.overwrite:
            return True
        wanted = (State.FAILED,) if settings.retry == "failed" else (State.FAILED, State.MISSING)
        return any(self.states[name].state in wanted for name in self.runner.present)


class Jobs:
    """The jobs of a multirun, as Hydra's sweeper hands them over.

    Args:
        lists: the overrides of each job.
        varied: the keys in which they differ.
        config: Hydra's configuration of the sweep; loader, launcher: Hydra's.
    """

    def __init__(
        self, lists: Sequence[Sequence[str]], varied: Sequence[str], config: DictConfig, loader: Any, launcher: Any
    ) -> None:
        self.lists, self.varied, self.config = lists, varied, config
        self.loader, self.launcher = loader, launcher

    def __len__(self) -> int:
        return len(self.lists)

    def found(self) -> Iterator[SweepJob]:
        """Every job with its state; equivalent jobs, such as an image-space method on two backbones, once.

        Raises:
            UsageError: Hydra or OmegaConf rejects the overrides.
        """
        known: set[str] = set()
        for overrides in self.lists:
            config = self.compose(overrides)
            title = " ".join(word for word in overrides if word.partition("=")[0] in self.varied)
            job = SweepJob(overrides, title, names_of(config))
            try:
                job.blocked = Runner(config, Reporter())
                _ = job.blocked.weights
                job.runner, job.blocked = job.blocked, None
                job.runner.remote = launchers.is_remote(self.config.hydra)
                key = digest({name: value for name, value in job.runner.config.items() if name not in IDLE})
                if key in known:
                    continue
                known.add(key)
                job.look()
            except (UsageError, DataError, OSError) as error:
                job.runner, job.blocked = None, job.runner or job.blocked
                why = one_line(str(error)) if isinstance(error, UsageError) else reason(error)
                job.error = why.removeprefix(f"{job.title}: ")  # most errors start with the wrong override
            yield job

    def compose(self, overrides: Sequence[str]) -> Mapping[str, Any]:
        """The resolved configuration of a job."""
        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        container: Any = OmegaConf.to_container(config, resolve=True)
        resolved: dict[str, Any] = container
        launchers.settle(resolved, self.config.hydra)
        return resolved

    def launch(self, jobs: Sequence[SweepJob], *words: str) -> None:
        """Run some jobs with Hydra's launcher and additional overrides."""
        self.launcher.launch([[*job.overrides, *job.words, *words] for job in jobs], initial_job_idx=0)


def run_sweep(jobs: Jobs) -> bool:
    """Launch what has no record, then report what was done, skipped and failed; True: nothing failed."""
    reporter = Reporter()
    with open_dict(jobs.config):
        folder = Path(str(jobs.config.hydra.sweep.dir)) / f"sweep-{timing.today()}"
    reporter.say(f"sweep of {len(jobs)} jobs: reading the records")
    found = look(jobs, reporter)
    for job in found:
        if job.error:
            reporter.fail(f"{job.title}: {job.error}")
            if job.blocked is not None:
                job.blocked.fail_all(UsageError(job.error), job.blocked.present)
    before = [job.count(State.DONE) for job in found]
    pending = [job for job in found if job.wanted]
    spare_features(pending)
    equal = f", {len(jobs) - len(found)} equivalent to others" if len(found) < len(jobs) else ""
    reporter.say(f"{len(found)} jobs{equal}: {len(found) - len(pending)} have nothing to do, launching {len(pending)}")
    launched = True
    if pending:
        stop = [f"hydra.sweep.dir={folder.as_posix()}"]
        launched = launch(jobs, pending, reporter, "wait=false", *stop)
        for job in pending:
            job.look()
        left = [
            job for job in pending if job.count(State.MISSING) and job.runner and job.runner.settings.retry == "all"
        ]
        if left and launched and not (folder / "stop").exists():  # other runs were working on them
            launched = launch(jobs, left, reporter, *stop)
            for job in left:
                job.look()
    show_tables(found)
    return conclude(found, before, launched)


def spare_features(pending: Sequence[SweepJob]) -> None:
    """Have jobs store no features that no other job reads."""
    runners = [job.runner for job in pending if job.runner is not None]  # of all, as they are wanted
    keys = [features_read(runner) for runner in runners]
    readers = Counter(itertools.chain.from_iterable(keys))
    for job, runner, theirs in zip(pending, runners, keys, strict=True):
        if runner.settings.cache == "auto" and all(readers[key] == 1 for key in theirs):
            runner.settings = replace(runner.settings, cache="read")
            job.words = ["cache=read"]


def features_read(runner: Runner) -> list[tuple[Any, ...]]:
    """What the features that a job reads depend on, for each of its tasks."""
    parts = digest({name: runner.config.get(name) for name in ("dataset", "backbone")})
    settings = runner.settings
    return [(parts, settings.data_root, settings.resize, settings.size, name) for name in runner.present]


def look(jobs: Jobs, reporter: Reporter) -> list[SweepJob]:
    """All jobs with their states, with a progress bar."""
    with reporter.stage("reading the records", len(jobs)) as advance:
        found = []
        for job in jobs.found():
            found.append(job)
            advance(1)
    return found


def launch(jobs: Jobs, chosen: Sequence[SweepJob], reporter: Reporter, *words: str) -> bool:
    """Launch jobs; False: the launcher gave up, usually because one of its processes died, which is reported."""
    try:
        jobs.launch(chosen, *words)
    except Exception as error:  # from any launcher library
        why = launchers.lost(error)
        reporter.fail(f"{type(jobs.launcher).__name__}: {why}; run it again: finished work is kept", error)
        return False
    return True


def show_tables(found: Sequence[SweepJob]) -> None:
    """Write results.csv and the tables of each results folder, and print the tables of the sweep."""
    summaries: dict[Path, Summary] = {}
    for job in found:
        if job.runner is not None:
            empty = replace(job.runner.summary, records=[])
            summaries.setdefault(empty.settings.results, empty).records += job.records
    for summary in summaries.values():
        if summary.records:
            tables.write_tables(summary.settings.results, summary.records, summary.cells)


def conclude(found: Sequence[SweepJob], before: Sequence[int], launched: bool) -> bool:
    """Print a table of done, skipped, failed and missing records, with a line for each failure."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for job, skipped in zip(found, before, strict=True):
        row = counts.setdefault(job.names, Counter())
        done = job.count(State.DONE)
        row.update(done=max(0, done - skipped), skipped=min(skipped, done))
        row.update(failed=job.count(State.FAILED), missing=job.count(State.MISSING))
    columns = ("done", "skipped", "failed", "missing")
    rows = [(who, [str(row[name]) for name in columns]) for who, row in counts.items()]
    console = new_console(sys.stderr)
    console.print(job_table(("method", "backbone"), columns, rows))
    for line in complaints(found):
        console.print(line, style="red")
    return launched and all(not job.count(State.FAILED) and not job.count(State.MISSING) for job in found)


def job_table(
    corner: tuple[str, ...], columns: Sequence[str], rows: Iterable[tuple[tuple[str, ...], Sequence[str]]]
) -> str:
    """Rows of names and numbers, in the style of the other console tables."""
    listed = [(Header(names), cells) for names, cells in rows]
    return table_text(Table.of_rows("jobs", "", corner, [(name,) for name in columns], listed))


def new_console(file: TextIO) -> Console:
    """A console that does not wrap lines unless it is a terminal."""
    console = Console(file=file, highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 200
    return console


def names_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Method and backbone of a configuration, "?" where it chooses none."""
    method, backbone = config.get("method") or {}, config.get("backbone") or {}
    used = backbone if method.get("uses_backbone", True) else {}
    return str(method.get("name", "?")), str(used.get("name", "none"))


def complaints(found: Sequence[SweepJob]) -> list[str]:
    """One line for each failure, and for what is there of tasks that are missing."""
    lines = []
    for job in found:
        title = f"{job.title}: " if job.title else ""
        lines += [f"failed: {title}{job.error}"] if job.error else []
        lines += [
            f"failed: {title}{name}: {each.why}" for name, each in job.states.items() if each.state == State.FAILED
        ]
        partly: dict[str, list[str]] = {}
        for name, each in job.states.items():
            if each.state == State.MISSING and each.why:
                partly.setdefault(each.why, []).append(name)
        lines += [f"missing: {title}{shorten(names)}: {why}" for why, names in partly.items()]
    return [shown(line) for line in lines]
