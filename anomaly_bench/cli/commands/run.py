"""`anomaly-bench run`: fit and score every category, then print the tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.cli import launchers
from anomaly_bench.cli.commands import tables
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.sweep import run_sweep
from anomaly_bench.errors import Exit, reason
from anomaly_bench.runs.runner import execute

if TYPE_CHECKING:
    from omegaconf import DictConfig


def command(arguments: Sequence[str]) -> int:
    return hydra("config", arguments, run_job, sweep=run_sweep, launches=True)


def run_job(config: DictConfig) -> int:
    """Run one configuration, of a single run or a sweep; a single run prints its tables, a sweep does so at its end."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    sweep = HydraConfig.get()
    ours = str(sweep.sweeper._target_).endswith("ResumingSweeper")
    stop = Path(sweep.sweep.dir) / "stop" if ours and not OmegaConf.is_missing(sweep.job, "num") else None
    values: Any = OmegaConf.to_container(config, resolve=True)
    launchers.settle(values, sweep)
    launchers.limit_pools(values, sweep)
    summary = execute(values, stop)
    try:
        if stop is None:  # not part of a sweep
            tables.write_tables(summary.settings.results, summary.records, summary.cells)
    except OSError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return Exit.FAILED
    return Exit.FAILED if summary.failed or summary.busy or summary.stopped else Exit.DONE
