"""Sweeps in several processes: what Hydra's launcher plugins need from us. Imports neither torch nor Hydra at the top.

The plugins are optional extras; our defaults for them are in conf/hydra/launcher_defaults.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_bench.errors import UsageError, how_to_install, one_line
from anomaly_bench.hardware.devices import cores

PLUGINS = {  # launcher -> (module of hydra_plugins, our extra)
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "ray": ("hydra_ray_launcher", "ray"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}
SWEEP, LOOK = {"-m", "--multirun"}, {"-c", "--cfg", "-i", "--info"}  # Hydra's flags
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when a library is imported
CORES_PER_PROCESS = 4  # more cores hardly speed up a job, whose layers are small


def prepare(words: Sequence[str], launches: bool) -> list[str]:
    """The command-line arguments, preceded by our defaults for the launcher they choose.

    Args:
        launches: the command launches jobs rather than reporting on them.

    Raises:
        UsageError: its plugin is not installed, it cannot run on this machine, or there is no sweep to launch.
    """
    given = dict(word.partition("=")[::2] for word in words)
    name = given.get("hydra/launcher")
    if name not in PLUGINS:
        return list(words)
    module, extra = PLUGINS[name]
    if not installed(module):
        raise UsageError(f"hydra/launcher={name}: its plugin is not installed; run {how_to_install(extra)}")
    if not {*SWEEP, *LOOK} & given.keys():
        raise UsageError(f"hydra/launcher={name}: has no effect on a single run; expected -m, as in -m seed=0,1,2")
    if name == "submitit_slurm" and launches and SWEEP & given.keys():
        ask_slurms_queue()
    added = [f"+hydra/launcher_defaults@hydra.launcher={name}"]
    if name == "joblib" and "hydra.launcher.n_jobs" not in given:
        added.append(f"hydra.launcher.n_jobs={processes()}")
    return [*added, *words]  # later overrides win


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{module}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def processes() -> int:
    """How many jobs this machine runs at once: one per GPU, else one per four cores, at least two."""
    from anomaly_bench.hardware import devices

    if devices.device_kind("auto") == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    return min(cores(), max(2, cores() // CORES_PER_PROCESS))


def ask_slurms_queue() -> None:
    """Have submitit ask the queue whether a job has ended; it asks Slurm's accounting, which many clusters lack.

    Without an answer it would wait forever for a job whose process was killed.

    Raises:
        UsageError: this machine does not belong to a Slurm cluster.
    """
    if not shutil.which("srun"):
        raise UsageError("hydra/launcher=submitit_slurm: found no srun here; run it on a machine of the Slurm cluster")
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str]:
            return ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            listed = dict(line.split() for line in text.splitlines())
            return {job: {"State": listed.get(job, "ENDED")} for job in self._registered}

    SlurmJob.watcher = Queue(delay_s=10)


def settle(values: dict[str, Any], hydra: Any) -> None:
    """Set `threads` from the job's launcher, where the configuration leaves it open; a single run stores no features.

    Args:
        values: a job's resolved configuration, changed in place.
        hydra: the node `hydra` of the sweep's configuration.
    """
    from hydra.types import RunMode

    name = launcher_of(hydra)
    if name in PLUGINS and "threads" in values and values["threads"] is None:
        values["threads"] = share(name, hydra.launcher)
    if hydra.mode == RunMode.RUN and values.get("cache") == "auto":
        values["cache"] = "read"


def limit_pools(values: Mapping[str, Any], hydra: Any) -> None:
    """In a launcher's process, limit the thread pools of other libraries to `threads`, before they are imported."""
    if launcher_of(hydra) in PLUGINS:
        for pool in POOLS:
            os.environ[pool] = str(values.get("threads"))


def launcher_of(hydra: Any) -> str:
    """The launcher of a multirun; "basic": this process, as for a single run."""
    from hydra.types import RunMode

    return str(hydra.runtime.choices["hydra/launcher"]) if hydra.mode == RunMode.MULTIRUN else "basic"


def is_remote(hydra: Any) -> bool:
    """Whether jobs may run on other machines."""
    return launcher_of(hydra) in ("submitit_slurm", "ray")


def share(name: str, launcher: Any) -> int:
    """The threads of one job: the cores its launcher gives it, where possible the same number on every machine."""
    if name == "joblib":
        jobs = launcher.n_jobs if launcher.n_jobs > 0 else cores() + 1 + launcher.n_jobs  # -1: one per core
        return max(1, cores() // max(1, int(jobs)))
    if name == "ray":
        return max(1, int(launcher.ray.remote.get("num_cpus") or 1))
    return max(1, int(launcher.cpus_per_task or cores()))


def lost(error: Exception) -> str:
    """Why a launcher gave up (usually: a process was killed), in one line, once Slurm's other jobs have ended."""
    if type(error).__module__.startswith("submitit."):
        from submitit.slurm.slurm import SlurmJob

        while not all(SlurmJob.watcher.is_done(job) for job in sorted(SlurmJob.watcher._registered)):
            time.sleep(1)
    message = re.split(r"\. | Error stream ", one_line(str(error)))[0]  # submitit adds a job's whole output
    return message or type(error).__name__


def _pool() -> Any:
    """joblib's idle worker processes; None: joblib was not used."""
    return getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None)


def in_use() -> bool:
    """Whether this process has used a launcher library that cleans up when Python exits."""
    return _pool() is not None or "ray" in sys.modules


def end_processes() -> None:
    """End the worker processes of joblib and Ray."""
    if (processes := _pool()) is not None:
        processes.terminate(kill_workers=True)
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
