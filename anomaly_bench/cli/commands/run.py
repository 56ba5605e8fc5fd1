"""`anomaly-bench run`: fit and score every category, then print the tables."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.cli import launchers
from anomaly_bench.config.compose import as_override, compose
from anomaly_bench.config.settings import results_folder
from anomaly_bench.errors import DONE, FAILED, UsageError, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_bench.records.record import Record


def run_job(config: DictConfig) -> int:
    """One configuration of a single run or of a sweep: records, then tables on the screen, a sweep's at its end."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from anomaly_bench.cli.commands import tables

    hydra = HydraConfig.get()
    ours = str(hydra.sweeper._target_).endswith("ResumingSweeper")
    stop = Path(hydra.sweep.dir) / "stop" if ours and not OmegaConf.is_missing(hydra.job, "num") else None
    values: Any = OmegaConf.to_container(config, resolve=True)
    launchers.settle(values, hydra)
    launchers.limit_pools(values, hydra)
    summary = execute(values, stop)
    try:
        if stop is None:  # not a part of a sweep
            tables.write_tables(summary)
    except BrokenPipeError:  # the reader of our output, such as head, has gone; the files are written
        pass
    except OSError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return FAILED
    return FAILED if summary.failed or summary.busy or summary.stopped else DONE


def execute(config: Any, stop: Path | None = None) -> Any:
    """Run a resolved configuration and return its `Summary`; see `Runner` for `stop`."""
    from anomaly_bench.console import Reporter, log_file
    from anomaly_bench.hardware import timing
    from anomaly_bench.runs.runner import Runner

    log = results_folder(config) / "logs" / f"{timing.today()}-{os.getpid()}.log"
    reporter = Reporter()
    with log_file(log):
        try:
            with contextlib.closing(Runner(config, reporter, stop)) as runner:
                return runner.run()
        except KeyboardInterrupt:
            reporter.warn(f"interrupted; finished categories are kept in {config['results']}")
            raise


def evaluate(*overrides: str, **keys: Any) -> list[Record]:
    """See `anomaly_bench.evaluate`."""
    config = compose("config", [*overrides, *(f"{key}={as_override(value)}" for key, value in keys.items())])
    summary = execute(config)
    if summary.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in summary.failed.items())
        raise UsageError(f"{len(summary.failed)} categories failed, {len(summary.records)} are written: {reasons}")
    records: list[Record] = summary.records
    return records
