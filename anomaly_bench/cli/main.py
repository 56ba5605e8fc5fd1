"""`anomaly-bench [COMMAND [SUBJECT]] key=value ... [Hydra flags]`.

Everything after the command and its subject goes to Hydra, with one primary configuration per command. This module
imports neither torch nor Hydra at the top, so `--help`, `list` and `tables` answer at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.cli import launchers
from anomaly_bench.cli.streams import prepare_streams
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import GROUPS, choices
from anomaly_bench.errors import Exit, UsageError, closest, failure, one_line
from anomaly_bench.version import __version__

SUBJECTS: dict[str, tuple[str, ...]] = {  # command, which is also the name of its module -> subjects
    "run": (),
    "status": (),
    "plan": (),
    "tables": (),
    "report": (),
    "leaderboard": (),
    "compare": (),
    "verify": (),
    "score": (),
    "export": (),
    "speed": (),
    "list": ("datasets", "methods", "backbones", "metrics", "tables"),
    "new": ("method", "dataset", "metric"),
    "data": ("check", "download"),
    "references": ("check", "evidence"),
    "records": ("convert", "check", "merge", "schema"),
    "cache": ("list", "clear"),
    "completion": ("bash", "zsh", "fish", "query"),
}
VALUED = frozenset(  # Hydra's flags that take a value
    f"-{flag}"
    for flag in (
        *("c", "p", "cp", "cn", "cd", "-cfg", "-package", "-config-path", "-config-name", "-config-dir"),
        "-experimental-rerun",
    )
)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what --info may name
HELP = """anomaly-bench {version}: unsupervised image anomaly detection under one protocol

usage: anomaly-bench [COMMAND [SUBJECT]] key=value ... [Hydra flags]

commands
  run                 fit and score every category, write records, print tables (the default command)
  status              done, failed and missing tasks of a run or sweep (lists without -m); computes nothing
  plan                memory, disk and time that these jobs will need
  tables              print the tables of a results folder again
  report              one HTML file for a results folder: all records, heat maps, figures, the worst images
  leaderboard         results=[A,B] out=SITE: a static site with rankings, and a page for each method and record
  compare             a=DIR b=DIR: what changed between two results folders, and whether it may be chance
                      results=DIR: the same for the methods in one; fail_if='image_auroc drops 0.5' exits 1
  verify              record=FILE: compute one record again and report whether it is reproduced
  score               model=DIR images=DIR out=DIR: score a folder of images with a model kept by save_model=true
                      maps=DIR dataset=NAME: metrics from saved anomaly maps, ours or another program's
  export              model=DIR format=onnx|openvino|torch out=FILE: a fitted model as one graph for other runtimes,
                      written only if it scores the test images like the model
  speed               model=DIR file=FILE: latency and images per second of an exported graph, added to the record
  list WHAT           {lists}
  new WHAT NAME       method, dataset or metric: write a module, YAML and test to start from into out=DIR (NAME)
  data check          list a dataset's files and report what is wrong with them
  data download       fetch a dataset's official archive, check it and unpack it into data_root
  references check    contradictions within and between the papers' published tables
  references evidence what each method was checked against, and its measurements beside published numbers
  records convert     results=DIR data_root=DIR: migrate the records of an older version, numbers unchanged
  records check DIR   schema, checksums, impossible values and contradictions in the records of a results folder
  records merge A B   into=C: several results folders in one, unless records contradict each other
  records schema      the JSON schema of records
  cache list|clear    decoded images, backbone features, file hashes, generated datasets: all can be recreated
  completion SHELL    bash, zsh or fish: a script that completes commands, keys and choices

groups (group=choice; * is the default)
{groups}

keys of run (key=value)
{keys}

keys of score (default dataset: mvtec)
{score_keys}

examples
  anomaly-bench
  anomaly-bench method=padim backbone=wrn50 dataset=mvtec data_root=/data/mvtec
  anomaly-bench -m method=padim backbone=lite0 seed=0,1,2 category=[bottle,screw] input.crop=224

Hydra's flags work, in any place: --multirun (-m), --cfg job, --config-dir DIR (your own conf), --info.
Exit status: 0 done; 1 something failed, the rest is written; 2 usage error; 130 interrupted.
"""


def main() -> None:
    """The console script; it skips Python's shutdown, which takes a second with torch loaded."""
    prepare_streams()
    status = command(sys.argv[1:])
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # stdout is a file on a full disk
        status = status or Exit.FAILED
    if launchers.in_use():  # their libraries clean up at exit
        sys.exit(status)
    os._exit(status)


def command(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status."""
    try:
        name, subject, rest = split(arguments)
        if name == "help":
            print(help_text(rest), end="")
            return Exit.DONE
        if name == "version":
            print(f"anomaly-bench {__version__}")
            return Exit.DONE
        module = importlib.import_module(f"anomaly_bench.cli.commands.{name}")
        return int(module.command(subject, rest) if SUBJECTS[name] else module.command(rest))
    except UsageError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return Exit.USAGE
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            print("interrupted; finished work is kept", file=sys.stderr)
            return Exit.INTERRUPTED  # a lock that is given back meanwhile may raise an error of its own
        print(f"error: {failure(error)}", file=sys.stderr)  # a bug, ours or a library's: one line and a log
        return Exit.FAILED


def split(arguments: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Command, subject, and what goes to Hydra; keys and flags may stand before and between them."""
    rest = list(arguments)
    if {"--help", "-h"} & set(rest):
        return "help", None, rest
    if "--version" in rest:
        return "version", None, rest
    name = take_word(rest)
    if name is None:
        return "run", None, rest
    if name not in SUBJECTS:
        raise UsageError(f"{name}: no such command{closest(name, SUBJECTS)}")
    subjects = SUBJECTS[name]
    if not subjects:
        return name, None, rest
    subject = take_word(rest)
    if subject is None:
        raise UsageError(f"{name}: expected one of {', '.join(subjects)} after it")
    if subject not in subjects:
        raise UsageError(f"{name} {subject}: no such subject{closest(subject, subjects)}")
    return name, subject, rest


def take_word(arguments: list[str]) -> str | None:
    """Remove and return the first argument that is neither a flag or its value nor `key=value`; None: there is none."""
    for place, argument in enumerate(arguments):
        flag = arguments[place - 1] if place else ""
        value = flag in VALUED or (flag in ("-i", "--info") and argument in INFO)
        if not value and not argument.startswith(("-", "+", "~")) and "=" not in argument:
            return arguments.pop(place)
    return None


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
        lists=", ".join(SUBJECTS["list"]),
        groups="\n".join(groups),
        keys="\n".join([*key_lines(folders[0] / "config.yaml"), *inputs]),
        score_keys="\n".join(key_lines(folders[0] / "score.yaml")),
    )


def key_lines(file: Path) -> list[str]:
    """'  key=default   its comment' for every key of a primary configuration, those of `input` as input.key."""
    pattern = r"^(  (?=resize|crop))?(\w+): ([^#\n]+)(?:# (.*))?$"
    found = re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    keys = [(f"{'input.' if inner else ''}{key}={value.strip()}", about) for inner, key, value, about in found]
    keys = [(re.sub(r"\$\{oc\.select:.*,(.*)\}", r"\1", key), about) for key, about in keys]  # the usual default
    return [f"  {key:19} {about}".rstrip() for key, about in keys]
