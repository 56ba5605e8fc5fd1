"""`anomaly-bench [COMMAND [SUBJECT]] key=value ... [Hydra flags]`.

Whatever is not a command or its subject goes to Hydra, with one primary configuration per command. This module
imports neither torch nor Hydra at its top: `--help`, `list` and `tables` answer at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench import __version__, launchers
from anomaly_bench.arguments import arrange, quoted
from anomaly_bench.config import GROUPS, choices, conf_folder, results_folder
from anomaly_bench.errors import DataError, UsageError, closest, one_line, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_bench.records import Record
    from anomaly_bench.sweep import Jobs

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
SWEEPING = ("-m", "--multirun")
LISTS = {"datasets": "dataset", "methods": "method", "backbones": "backbone", "tables": "table"}
SUBJECTS: dict[str, tuple[str, ...]] = {
    "run": (),
    "status": (),
    "plan": (),
    "tables": (),
    "report": (),
    "compare": (),
    "verify": (),
    "score": (),
    "list": tuple(LISTS),
    "data": ("check", "download"),
    "references": ("check",),
    "cache": ("list", "clear"),
}
MODEL_KEYS = ("images", "weights", "save_maps", "save_overlays", "scale", "device", "batch_size")  # of score model=
MAPS_KEYS = ("category", "data_root", "input", "scores", "metrics", "update")  # of score maps=

HELP = """anomaly-bench {version}: unsupervised image anomaly detection under one protocol

usage: anomaly-bench [COMMAND [SUBJECT]] key=value ... [Hydra flags]

commands
  run                 fit and score every category, write records, print tables (the command when none is given)
  status              what is done, failed and missing of a run or of a sweep (lists without -m), without computing
  plan                what those jobs will take in memory, disk and time
  tables              print the tables of a results folder again
  report              one HTML file of a results folder: all records, heat maps, figures, the worst images
  compare             a=DIR b=DIR: what changed between two results folders, and whether it may be chance
                      results=DIR: the same for the methods in one; fail_if='image_auroc drops 0.5' exits 1
  verify              record=FILE: compute one record again, and say whether the same comes out
  score               model=DIR images=DIR out=DIR: score a folder of images with a model that save_model=true kept
                      maps=DIR dataset=NAME: metrics from kept anomaly maps, one's own or another program's
  list WHAT           {lists}
  data check          list a dataset's files and say what is wrong with them
  data download       fetch a dataset's official archive, check it and unpack it into data_root
  references check    what the papers' published tables contradict, in themselves and in each other
  cache list|clear    decoded images, backbone features, file hashes, generated datasets: all can be made again

groups (group=choice; * is the default)
{groups}

keys of run (key=value)
{keys}

keys of score (its dataset is mvtec unless another is given)
{score_keys}

examples
  anomaly-bench
  anomaly-bench method=padim backbone=wrn50 dataset=mvtec data_root=/data/mvtec
  anomaly-bench -m method=padim backbone=lite0 seed=0,1,2 category=[bottle,screw] input.crop=224

Hydra's flags work: --multirun (-m), --cfg job, --config-dir DIR (your own conf), --info.
Exit status: 0 done; 1 something failed, the rest is written; 2 wrong usage; 130 interrupted.
"""


def main() -> None:
    """The console script; it ends without the second that taking torch apart would cost."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file that lacks a letter gets its code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = command(sys.argv[1:])
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the disk that they go to is full, or their reader has gone
        status = status or FAILED
    if launchers.in_use():  # their libraries have something to clear away
        sys.exit(status)
    os._exit(status)


def command(arguments: Sequence[str]) -> int:
    """Carry out one command line and return the exit status."""
    try:
        name, subject, rest = split(arguments)
        if name == "help":
            print(help_text(rest), end="")
            return DONE
        if name == "version":
            print(f"anomaly-bench {__version__}")
            return DONE
        return HANDLERS[name](subject, rest)
    except UsageError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted; what is done is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        print(f"error: {failure(error)}", file=sys.stderr)
        return FAILED


def failure(error: Exception) -> str:
    """One line about what stopped a command."""
    return reason(error) if isinstance(error, (DataError, OSError)) else bug(error)


def bug(error: Exception) -> str:
    """One line about what should not have happened; the traceback goes to a file."""
    what = f"{type(error).__name__}: {one_line(str(error))}; this is a bug of anomaly-bench"
    try:
        handle, file = tempfile.mkstemp(prefix="anomaly-bench-", suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            traceback.print_exception(error, file=stream)
    except OSError:
        return f"{what}; its traceback could not be kept"
    return f"{what}: please report it with the traceback in {file}"


def split(arguments: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Command, subject, and what goes to Hydra."""
    rest = list(arguments)
    if {"--help", "-h"} & set(rest):
        return "help", None, rest
    if "--version" in rest:
        return "version", None, rest
    if not rest or not is_word(rest[0]):
        return "run", None, rest
    name = rest.pop(0)
    if name not in SUBJECTS:
        raise UsageError(f"{name}: no such command{closest(name, SUBJECTS)}")
    subjects = SUBJECTS[name]
    if not subjects:
        return name, None, rest
    if not rest or not is_word(rest[0]):
        raise UsageError(f"{name}: expected one of {', '.join(subjects)} after it")
    subject = rest.pop(0)
    if subject not in subjects:
        raise UsageError(f"{name} {subject}: no such subject{closest(subject, subjects)}")
    return name, subject, rest


def is_word(argument: str) -> bool:
    return not argument.startswith(("-", "+", "~")) and "=" not in argument


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


def help_text(arguments: Sequence[str]) -> str:
    folders = config_folders(arguments)
    defaults = dict(re.findall(r"^  - (\w+): (\w+)$", (folders[0] / "config.yaml").read_text("utf-8"), re.MULTILINE))
    groups = [
        f"  {group:10}" + "  ".join(name + "*" * (name == defaults[group]) for name in choices(group, folders))
        for group in GROUPS
    ]
    inputs = [line for line in key_lines(folders[0] / "protocol" / "unified.yaml") if line.startswith("  input.")]
    return HELP.format(
        version=__version__,
        lists=", ".join(LISTS),
        groups="\n".join(groups),
        keys="\n".join([*key_lines(folders[0] / "config.yaml"), *inputs]),
        score_keys="\n".join(key_lines(folders[0] / "score.yaml")),
    )


def key_lines(file: Path) -> list[str]:
    """'  key=default   its comment' for every key of a primary configuration, those of `input` dotted."""
    pattern = r"^(  (?=resize|crop))?(\w+): ([^#\n]+)(?:# (.*))?$"
    found = re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    keys = [(f"{'input.' if inner else ''}{key}={value.strip()}", about) for inner, key, value, about in found]
    return [f"  {key:20}{about}".rstrip() for key, about in keys]


def run(_: str | None, arguments: list[str]) -> int:
    return hydra("config", arguments, run_job, sweep="run")


def status(_: str | None, arguments: list[str]) -> int:
    return hydra("config", as_sweep(arguments), run_job, sweep="status")


def plan(_: str | None, arguments: list[str]) -> int:
    return hydra("config", as_sweep(arguments), run_job, sweep="plan")


def as_sweep(arguments: list[str]) -> list[str]:
    """Lists are several jobs, with -m or without."""
    return [*(word for word in arguments if word not in SWEEPING), "-m"]


def run_job(config: DictConfig) -> int:
    """One configuration of a single run or of a sweep: records, then tables on the screen, a sweep's at its end."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from anomaly_bench import report

    hydra = HydraConfig.get()
    ours = str(hydra.sweeper._target_).endswith("ResumingSweeper")
    stop = Path(hydra.sweep.dir) / "stop" if ours and not OmegaConf.is_missing(hydra.job, "num") else None
    values: Any = OmegaConf.to_container(config, resolve=True)
    launchers.settle(values, hydra)
    launchers.limit_pools(values, hydra)
    summary = execute(values, stop)
    try:
        if stop is None:  # not a part of a sweep
            report.write(summary)
    except OSError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return FAILED
    return FAILED if summary.failed or summary.busy or summary.stopped else DONE


def execute(config: Any, stop: Path | None = None) -> Any:
    """Run a resolved configuration and return its `Summary`; see `Runner` for `stop`."""
    from anomaly_bench import speed
    from anomaly_bench.console import Reporter, log_file
    from anomaly_bench.run import Runner

    log = results_folder(config) / "logs" / f"{speed.today()}-{os.getpid()}.log"
    reporter = Reporter()
    with log_file(log):
        try:
            with contextlib.closing(Runner(config, reporter, stop)) as runner:
                return runner.run()
        except KeyboardInterrupt:
            reporter.warn(f"interrupted; finished categories are kept in {config['results']}")
            raise


def tables(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench import report

    return hydra("tables", choosing(arguments), report.print_tables)


def write_report(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench import html_report

    return hydra("report", choosing(arguments), html_report.write)


def compare(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench import compare

    words = [f"method={word.removeprefix('methods=')}" if word.startswith("methods=") else word for word in arguments]
    return hydra("compare", choosing(words), compare.compare)


def verify(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.verify import verify

    wanted: list[DictConfig] = []
    status = hydra("verify", arguments, wanted.append)
    return max((verify(config, config_folders(arguments)[1:]) for config in wanted), default=status)  # composes anew


def choosing(arguments: Sequence[str]) -> list[str]:
    """`method=padim` names the records to show; Hydra would look for a method to run."""
    return [f"only.{word}" if word.partition("=")[0] in GROUPS else word for word in arguments]


def score(_: str | None, arguments: list[str]) -> int:
    if set(SWEEPING) & set(arguments):
        raise UsageError("score: takes no --multirun; call it once for each model or folder of maps")
    return hydra("score", arguments, score_job)


def score_job(config: DictConfig) -> int:
    """Images with a model, or metrics from maps; a key of the other use is refused rather than ignored."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=True)
    if (values["model"] is None) == (values["maps"] is None):
        raise UsageError("score: expected either model=DIR images=DIR out=DIR, or maps=DIR dataset=NAME data_root=DIR")
    defaults: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / "score.yaml"))
    given, unused = ("maps", MODEL_KEYS) if values["model"] is None else ("model", MAPS_KEYS)
    for key in unused:
        if values[key] != defaults[key]:
            raise UsageError(f"score: {key} has no effect with {given}=DIR; see anomaly-bench --help")
    if given == "model":
        from anomaly_bench.score import score as work
    else:
        from anomaly_bench.rescore import rescore as work
    return DONE if work(values) else FAILED


def list_names(subject: str | None, arguments: list[str]) -> int:
    from anomaly_bench import report

    for index, argument in enumerate(arguments):
        if not {argument, *arguments[max(0, index - 1) : index]} & {"--config-dir", "-cd"}:
            raise UsageError(f"list {subject}: takes --config-dir DIR only, found {argument}")
    report.print_choices(LISTS[str(subject)], config_folders(arguments))
    return DONE


def data(subject: str | None, arguments: list[str]) -> int:
    from anomaly_bench.data import check, download

    work = download.download if subject == "download" else check.check
    return hydra("data", arguments, lambda config: DONE if work(config) else FAILED)


def references(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.references import page

    return hydra("references", arguments, page.check)


def cache(subject: str | None, arguments: list[str]) -> int:
    from anomaly_bench import cache

    if arguments:
        raise UsageError(f"cache {subject}: takes no keys, found {arguments[0]}")
    if subject == "clear":
        print(f"freed {cache.clear() / 1e6:.1f} MB in {cache.cache_root()}")
        return DONE
    rows = cache.listing()
    for folder, files, size in rows:
        print(f"{size / 1e6:10.1f} MB  {files:6} files  {folder}")
    print(f"{sum(row[2] for row in rows) / 1e6:10.1f} MB  in {cache.cache_root()}")
    return DONE


HANDLERS: dict[str, Callable[[str | None, list[str]], int]] = {
    "run": run,
    "status": status,
    "plan": plan,
    "tables": tables,
    "report": write_report,
    "compare": compare,
    "verify": verify,
    "score": score,
    "list": list_names,
    "data": data,
    "references": references,
    "cache": cache,
}


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
        except Exception as error:
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


def evaluate(*overrides: str, **keys: Any) -> list[Record]:
    """See `anomaly_bench.evaluate`."""
    config = compose("config", [*overrides, *(f"{key}={as_override(value)}" for key, value in keys.items())])
    summary = execute(config)
    if summary.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in summary.failed.items())
        raise UsageError(f"{len(summary.failed)} categories failed, {len(summary.records)} are written: {reasons}")
    records: list[Record] = summary.records
    return records


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
