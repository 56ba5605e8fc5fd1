"""`anomaly-bench [COMMAND [SUBJECT]] key=value ... [Hydra flags]`.

Whatever is not a command or its subject goes to Hydra, with one primary configuration per command. This module
imports neither torch nor Hydra at its top: `--help`, `list` and `tables` answer at once.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.cli import launchers
from anomaly_bench.cli.commands.run import run_job
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import GROUPS, choices, conf_folder
from anomaly_bench.errors import DONE, FAILED, INTERRUPTED, USAGE, UsageError, closest, failure, one_line
from anomaly_bench.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
    "references": ("check", "evidence"),
    "records": ("convert",),
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
  references evidence what each method was compared with, and its measurements beside published numbers
  records convert     results=DIR data_root=DIR: carry over the records of an older version, their numbers as they are
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
    except BrokenPipeError:
        pass
    except OSError:  # the disk that they go to is full
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
    except Exception as error:  # a bug of ours or of a library: one line and a log, not a traceback
        print(f"error: {failure(error)}", file=sys.stderr)
        return FAILED


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


def tables(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cli.commands.tables import print_tables

    return hydra("tables", choosing(arguments), print_tables)


def write_report(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.report.page import write_page

    return hydra("report", choosing(arguments), write_page)


def compare(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cli.commands.compare import print_comparison

    words = [f"method={word.removeprefix('methods=')}" if word.startswith("methods=") else word for word in arguments]
    return hydra("compare", choosing(words), print_comparison)


def verify(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cli.commands.verify import verify

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
        from anomaly_bench.cli.commands.score_images import score_images as work
    else:
        from anomaly_bench.cli.commands.score_maps import score_maps as work
    return DONE if work(values) else FAILED


def list_names(subject: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cli.commands.tables import print_choices

    for index, argument in enumerate(arguments):
        if not {argument, *arguments[max(0, index - 1) : index]} & {"--config-dir", "-cd"}:
            raise UsageError(f"list {subject}: takes --config-dir DIR only, found {argument}")
    print_choices(LISTS[str(subject)], config_folders(arguments))
    return DONE


def data(subject: str | None, arguments: list[str]) -> int:
    if subject == "download":
        from anomaly_bench.cli.commands.data_download import download_dataset as work
    else:
        from anomaly_bench.cli.commands.data_check import check_dataset as work
    return hydra("data", arguments, lambda config: DONE if work(config) else FAILED)


def references(subject: str | None, arguments: list[str]) -> int:
    if subject == "evidence":
        from anomaly_bench.published.audit.evidence import print_evidence

        return hydra("evidence", arguments, print_evidence)
    from anomaly_bench.published.audit.page import print_contradictions

    return hydra("references", arguments, print_contradictions)


def records(_: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cli.commands.convert_records import convert_records

    wanted: list[DictConfig] = []
    status = hydra("records", arguments, wanted.append)
    folders = config_folders(arguments)[1:]
    return max((convert_records(config, folders) for config in wanted), default=status)  # composes anew


def cache(subject: str | None, arguments: list[str]) -> int:
    from anomaly_bench.cache import cache_root, clear, listing

    if arguments:
        raise UsageError(f"cache {subject}: takes no keys, found {arguments[0]}")
    if subject == "clear":
        print(f"freed {clear() / 1e6:.1f} MB in {cache_root()}")
        return DONE
    rows = listing()
    for folder, files, size in rows:
        print(f"{size / 1e6:10.1f} MB  {files:6} files  {folder}")
    print(f"{sum(row[2] for row in rows) / 1e6:10.1f} MB  in {cache_root()}")
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
    "records": records,
    "cache": cache,
}
