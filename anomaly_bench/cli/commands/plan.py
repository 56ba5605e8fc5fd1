"""`anomaly-bench plan`: the memory, disk and time that the jobs of a run or sweep will need, before any starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anomaly_bench.cli.commands.run import run_job
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_sweep
from anomaly_bench.cli.sweep import complaints, job_table, look, new_console, spare_features
from anomaly_bench.console import Reporter
from anomaly_bench.errors import DataError, UsageError, one_line, reason, shown
from anomaly_bench.runs import planning
from anomaly_bench.runs.planning import Estimate, Planner
from anomaly_bench.runs.summary import State, duration

if TYPE_CHECKING:
    from anomaly_bench.cli.sweep import Jobs, SweepJob

ROOM = "free some, or set ANOMALY_BENCH_CACHE to a folder on a larger disk"


def command(arguments: Sequence[str]) -> int:
    return hydra("config", as_sweep(arguments), run_job, sweep=print_plan)


def print_plan(jobs: Jobs) -> bool:
    """Print what every remaining job will need; True: all of them can start."""
    reporter = Reporter()
    found, planner = look(jobs, reporter), Planner()
    spare_features([job for job in found if job.wanted])
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
                rows.append(((*choice.names, choice.shown_name), estimate_cells(known)))
            advance(1)
    size, free = sum(each.disk for each in estimates), planning.free_disk()
    if size > free:
        refused[f"refused: {size / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free: {ROOM}"] = None
    console = new_console(sys.stdout)
    if estimates:
        columns = ("to do", "memory MB", "disk MB", "time", "memory by", "time by")
        console.print(job_table(("method", "backbone", "job"), columns, rows))
    for line in [*complaints(found), *refused]:
        console.print(line)
    console.print(summary(found, estimates))
    return not refused and not any(choice.error for choice in found)


def estimated(choice: SweepJob, planner: Planner) -> Mapping[str, Estimate | str]:
    """Remaining category of a job -> its estimate, or why it cannot start."""
    found: dict[str, Estimate | str] = {}
    if choice.runner is None:
        return found
    for name in choice.runner.present:
        if choice.states[name].state == State.DONE:
            continue
        try:
            found[name] = planner.estimate(choice.runner, choice.runner.job(name))
        except (UsageError, DataError, OSError) as error:
            found[name] = one_line(str(error)) if isinstance(error, UsageError) else reason(error)
    return found


def estimate_cells(made: Sequence[Estimate]) -> list[str]:
    """A job's row: its categories run one after the other."""
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
    """One line: what remains to be done, and what it needs in total."""
    done = sum(choice.count(State.DONE) for choice in found)
    if not estimates:
        return f"{len(found)} jobs: all {done} records exist"
    known = [made.seconds for made in estimates if made.seconds is not None]
    time = duration(sum(known)) if known else "unknown time"
    if 0 < len(known) < len(estimates):
        time = f"{time} for {len(known)} of them, unknown for the others"
    largest = max(made.memory for made in estimates)
    size = sum(made.disk for made in estimates)
    return (
        f"{len(found)} jobs: {done} records exist, {len(estimates)} to make: {time} in one process, "
        f"up to {largest / 1e6:.0f} MB of memory, at most {size / 1e6:.0f} MB of disk"
    )
