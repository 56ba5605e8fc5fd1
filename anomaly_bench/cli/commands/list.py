"""`anomaly-bench list datasets|methods|backbones|metrics|tables`: the choices of a group of the configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence

from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import choices
from anomaly_bench.errors import Exit, UsageError

LISTS = {"datasets": "dataset", "methods": "method", "backbones": "backbone", "metrics": "metric", "tables": "table"}


def command(subject: str, arguments: Sequence[str]) -> int:
    """Print the names of a group, each with the first comment of its YAML; methods with what they are fitted on."""
    for index, argument in enumerate(arguments):
        flags = {argument.partition("=")[0], *arguments[max(0, index - 1) : index]}
        if not flags & {"--config-dir", "-cd"}:
            raise UsageError(f"list {subject}: takes --config-dir DIR only, found {argument}")
    group, folders = LISTS[subject], config_folders(arguments)
    listed = choices(group, folders)
    width = max(map(len, listed), default=0)
    for name in listed:
        path = next(folder / group / f"{name}.yaml" for folder in folders if (folder / group / f"{name}.yaml").exists())
        text = path.read_text(encoding="utf-8")
        comments = re.findall(r"^# (?!@package)(.*)$", text, re.MULTILINE)
        fitted_on = re.findall(r"^  supervision: ([^#\n]*\w)", text, re.MULTILINE)
        mark = f" ({fitted_on[0]})" if fitted_on else ""
        print(f"{name:{width}}  {comments[0] if comments else ''}{mark}".rstrip())
    return Exit.DONE
