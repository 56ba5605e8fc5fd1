"""How the words of a command line become configurations: Hydra's composition, its errors in one line, its sweeps."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench import launchers
from anomaly_bench.arguments import arrange, quoted
from anomaly_bench.config import GROUPS, choices, conf_folder
from anomaly_bench.errors import DONE, FAILED, USAGE, UsageError, closest, failure, one_line, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_bench.sweep import Jobs


class Task:
    """What Hydra calls with each configuration, in this process or, pickled, in a launcher's.

    Args:
        primary, arguments: what the configuration was composed of.
        job: carries out one configuration and returns its exit status.
        name: of the function of `anomaly_bench.sweep` that a multirun's jobs are handed to.
    """

    def __init__(
        self, primary: str, arguments: Sequence[str], job: Callable[[DictConfig], int | None], name: str | None
    ) -> None:
        self.primary, self.arguments, self.job, self.name = primary, arguments, job, name
        self.states: list[int] = []
        self.bugs: list[Exception] = []
        self.home = os.getpid()

    def __call__(self, config: DictConfig) -> None:
        """Keep exit status or bug: Hydra would print lines of its own around an exception."""
        from omegaconf.errors import OmegaConfBaseException

        try:
            self.states.append(self.job(config) or DONE)
        except (UsageError, OmegaConfBaseException) as error:
            if not isinstance(error, UsageError):
                error = UsageError(explain(error, self.primary, self.arguments, config_folders(self.arguments)))
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            self.states.append(USAGE)
        except Exception as error:  # Hydra would print a traceback; `hydra` raises it again
            self.bugs.append(error)
            if os.getpid() != self.home:  # a launcher's process, whose lists are not read
                print(f"error: {failure(error)}", file=sys.stderr)

    def sweep(self, jobs: Jobs) -> None:
        """All jobs of a multirun; its exit status alone counts, as jobs may run elsewhere."""
        from anomaly_bench import plan, sweep

        good = {"run": sweep.run, "status": sweep.status, "plan": plan.plan}[str(self.name)](jobs)
        self.states = [DONE if good else FAILED]


def hydra(
    primary: str, arguments: Sequence[str], job: Callable[[DictConfig], int | None], sweep: str | None = None
) -> int:
    """Let Hydra compose conf/<primary>.yaml with the arguments, once per job of a sweep; the worst exit status.

    Args:
        sweep: see `Task`.

    Raises:
        UsageError: whatever Hydra or OmegaConf has against the arguments, with the closest names.
    """
    import hydra as library

    task = Task(primary, arguments, job, sweep)
    words = launchers.prepare(arrange(arguments, (*GROUPS, "table")), launches=sweep == "run")
    sys.path.append(os.getcwd())  # a user's `_target_: mypackage.MyMethod`
    with script_arguments(words):
        try:
            library.main(version_base="1.3", config_path=str(conf_folder()), config_name=primary)(task)()
        except SystemExit as stop:  # argparse, on a wrong flag, has said what is wrong
            if stop.code not in (None, 0):
                raise UsageError("see anomaly-bench --help") from stop
        except BrokenPipeError:
            raise
        except Exception as error:  # Hydra's, of half a dozen kinds, about the arguments
            system = isinstance(error, OSError) and error.strerror is not None  # Hydra's own are OSErrors too
            why = reason(error) if system else explain(error, primary, arguments, config_folders(arguments))
            raise UsageError(why) from error
        finally:
            launchers.close()
    if task.bugs:
        raise task.bugs[0]
    return max(task.states, default=DONE)


@contextlib.contextmanager
def script_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and swallows exceptions unless it is told not to."""
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


def explain(error: Exception, primary: str, arguments: Sequence[str], folders: Sequence[Path]) -> str:
    """Hydra's complaint in one line, with the closest names for a wrong choice or key."""
    text = str(error)
    choice = re.search(r"Could not find '(.+)/([^'/]*)'", text)
    if choice:
        group, name = choice.groups()
        known = choices("hydra/launcher_defaults" if group == "hydra/launcher" else group, folders)
        return f"{group}={name}: no such {group}{closest(name, known)}"
    key = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text) or re.search(
        r"Could not override '([^']+)'", text
    )
    if key:
        name = key.groups()[-1]
        return f"{name}: no such key{closest(name, known_keys(primary, arguments))}"
    where = re.search(r"full_key: (\S+)", text)
    lines = [line for line in map(str.strip, text.splitlines()) if line and not re.match("full_key|object_type", line)]
    said = " ".join(lines[:2]) or type(error).__name__
    return f"{where[1] + ': ' if where else ''}{said}; see anomaly-bench --help"


def known_keys(primary: str, arguments: Sequence[str]) -> list[str]:
    """Every key of the configuration with the choices that are wanted, dotted, and the groups."""
    wanted = [argument for argument in arguments if argument.partition("=")[0] in GROUPS]
    try:
        config = composed(primary, wanted)
    except Exception:  # a choice of the user's own folder, or a command that has no such group
        config = composed(primary, [])
    return sorted(set(dotted(config)))


def dotted(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def compose(primary: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> Any:
    """The resolved configuration of some overrides, and of one's own folders of YAML, as plain values.

    Raises:
        UsageError: a wrong key, choice or value.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    searched = [f"file://{folder.expanduser().resolve().as_posix()}" for folder in existing(folders)]
    words = [*overrides, *([f"hydra.searchpath={as_override(searched)}"] if searched else [])]
    try:
        return composed(primary, words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, primary, overrides, [conf_folder(), *folders])) from error


def composed(primary: str, overrides: Sequence[str]) -> Any:
    """`compose` with Hydra's and OmegaConf's own errors."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose(primary, list(overrides)), resolve=True)


def config_folders(arguments: Sequence[str]) -> Sequence[Path]:
    """Our configuration folder and the user's `--config-dir`, whose choices are listed too."""
    folders = [conf_folder()]
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value if equals else "".join(arguments[index + 1 : index + 2])))
    return existing(folders)


def existing(folders: Sequence[Path]) -> Sequence[Path]:
    """The same folders; UsageError: one is none, which Hydra would pass over in silence."""
    for folder in folders:
        if not folder.expanduser().is_dir():
            raise UsageError(f"--config-dir {folder}: no such folder; expected one with method/NAME.yaml or the like")
    return folders


def as_override(value: Any) -> str:
    """A Python value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_override, value)) + "]"
    if isinstance(value, (int, float)):
        return str(value)
    return quoted(str(value))
