"""`anomaly-bench status`: done, failed and missing tasks of a run or sweep, without computing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly_bench.cli.commands.run import run_job
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_sweep
from anomaly_bench.cli.sweep import complaints, job_table, look, new_console
from anomaly_bench.console import Reporter
from anomaly_bench.runs.summary import State

if TYPE_CHECKING:
    from anomaly_bench.cli.sweep import Jobs


def command(arguments: Sequence[str]) -> int:
    return hydra("config", as_sweep(arguments), run_job, sweep=print_status)


def print_status(jobs: Jobs) -> bool:
    """Print how many tasks of each job are done, failed and missing; True: all are done."""
    found = look(jobs, Reporter())
    rows = [((*job.names, job.shown_name), [str(job.count(state)) for state in State]) for job in found]
    console = new_console(sys.stdout)
    console.print(job_table(("method", "backbone", "job"), list(State), rows))
    for line in complaints(found):
        console.print(line)
    total = {state: sum(job.count(state) for job in found) for state in State}
    console.print(f"{len(found)} jobs: " + ", ".join(f"{count} {state}" for state, count in total.items()))
    return not total[State.FAILED] and not total[State.MISSING]
