"""`anomaly-bench list datasets|methods|backbones|metrics|tables`: the choices of a group of the configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import STATUSES, SUPERVISIONS, choices
from anomaly_bench.documents import read_yaml
from anomaly_bench.errors import Exit, UsageError

LISTS = {"datasets": "dataset", "methods": "method", "backbones": "backbone", "metrics": "metric", "tables": "table"}


def command(subject: str, arguments: Sequence[str]) -> int:
    """Print the names of a group, each with the first comment of its YAML, and the traits of methods."""
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
        traits = f" ({method_traits(path)})" if subject == "methods" else ""
        print(f"{name:{width}}  {comments[0] if comments else ''}{traits}".rstrip())
    return Exit.DONE


def method_traits(path: Path) -> str:
    """Family, what it is fitted on, evidence, and whether it gives no maps, as far as the YAML tells."""
    try:
        about = (read_yaml(path) or {}).get("about") or {}
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    fitted_on = about.get("supervision", SUPERVISIONS[0])
    status = STATUSES.get(str((about.get("evidence") or {}).get("status")))
    told = [about.get("family"), f"fitted on {fitted_on}", f"evidence: {status[0]}" if status else None]
    return "; ".join(filter(None, [*told, None if about.get("maps", True) else "no anomaly maps"]))
