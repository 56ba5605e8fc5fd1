"""From command line to configurations: Hydra's composition, its errors in one line, its sweeps."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from anomaly_bench.cli import launchers
from anomaly_bench.cli.overrides import arrange
from anomaly_bench.config.compose import config_folders, explain
from anomaly_bench.config.settings import GROUPS, conf_folder
from anomaly_bench.errors import Exit, UsageError, failure, one_line, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_bench.cli.sweep import Jobs


class HydraTask:
    """Called by Hydra with each configuration, in this process or, pickled, in a launcher's.

    Args:
        primary, arguments: what the configuration was composed from.
        job: runs one configuration and returns its exit status.
        sweep_with: runs the jobs of a multirun; False: something failed.
    """

    def __init__(
        self,
        primary: str,
        arguments: Sequence[str],
        job: Callable[[DictConfig], int | None],
        sweep_with: Callable[[Jobs], bool] | None,
    ) -> None:
        self.primary, self.arguments, self.job, self.sweep_with = primary, arguments, job, sweep_with
        self.states: list[int] = []
        self.bugs: list[Exception] = []
        self.home = os.getpid()

    def __call__(self, config: DictConfig) -> None:
        """Store the exit status or the bug: Hydra would print its own lines around an exception."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf.errors import OmegaConfBaseException

        hydra_config = HydraConfig.get()
        if hydra_config.job.chdir:  # paths are relative to where the command was typed
            os.chdir(hydra_config.runtime.cwd)
        try:
            self.states.append(self.job(config) or Exit.DONE)
        except (UsageError, OmegaConfBaseException) as error:
            if not isinstance(error, UsageError):
                error = UsageError(explain(error, self.primary, self.arguments, config_folders(self.arguments)))
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            self.states.append(Exit.USAGE)
        except Exception as error:  # Hydra would print a traceback; `hydra` raises it again
            self.bugs.append(error)
            if os.getpid() != self.home:  # a launcher's process, whose lists are not read
                print(f"error: {failure(error)}", file=sys.stderr)

    def sweep(self, jobs: Jobs) -> None:
        """Run all jobs of a multirun; only its own exit status counts, as jobs may run elsewhere."""
        assert self.sweep_with is not None, "only a run's configuration has our sweeper"
        self.states = [Exit.DONE if self.sweep_with(jobs) else Exit.FAILED]


def hydra(
    primary: str,
    arguments: Sequence[str],
    job: Callable[[DictConfig], int | None],
    sweep: Callable[[Jobs], bool] | None = None,
    launches: bool = False,
) -> int:
    """Have Hydra compose conf/<primary>.yaml with the arguments, once per job of a sweep; return the worst exit status.

    Args:
        sweep: see `sweep_with` of `HydraTask`; launches: it launches jobs rather than reporting on them.

    Raises:
        UsageError: Hydra or OmegaConf rejects the arguments; with the closest names.
    """
    import hydra as library

    task = HydraTask(primary, arguments, job, sweep)
    words = launchers.prepare(arrange(arguments, (*GROUPS, "table")), launches=launches)
    with script_arguments(words), one_composition(words):
        try:
            library.main(version_base="1.3", config_path=str(conf_folder()), config_name=primary)(task)()
        except SystemExit as stop:  # argparse has already reported a wrong flag
            if stop.code not in (None, 0):
                raise UsageError("see anomaly-bench --help") from stop
        except Exception as error:  # Hydra raises half a dozen types for invalid arguments
            system = isinstance(error, OSError) and error.strerror is not None  # Hydra's own are OSErrors too
            why = reason(error) if system else explain(error, primary, arguments, config_folders(arguments))
            raise UsageError(why) from error
        finally:
            launchers.end_processes()
    if task.bugs:
        raise task.bugs[0]
    return max(task.states, default=Exit.DONE)


def composed_once(primary: str, arguments: Sequence[str]) -> Any:
    """The configuration of a command that composes further ones; None: Hydra has handled a flag such as --info."""
    wanted: list[DictConfig] = []
    hydra(primary, arguments, wanted.append)
    return wanted[0] if wanted else None


@contextlib.contextmanager
def script_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Set sys.argv, which Hydra reads, and HYDRA_FULL_ERROR, without which it swallows exceptions."""
    before, variable = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [before[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before
        if variable is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = variable


@contextlib.contextmanager
def one_composition(arguments: Sequence[str]) -> Iterator[None]:
    """Keep Hydra from composing everything twice, the first time to find `hydra.mode`, which only an argument sets."""
    from hydra._internal.hydra import Hydra

    look_up = Hydra.get_mode
    if not any("hydra.mode" in argument for argument in arguments):
        Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign] # put back below
    try:
        yield
    finally:
        Hydra.get_mode = look_up  # type: ignore[method-assign] # as above: Hydra has no other way in
