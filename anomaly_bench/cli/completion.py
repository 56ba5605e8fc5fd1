"""What may follow on a command line that is being typed. Hydra is asked for keys with a dot only: it takes a second."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import GROUPS, choices, conf_folder

PRIMARIES = {  # command -> its primary configuration; others take no keys
    **dict.fromkeys(("run", "status", "plan"), "config"),
    **{name: name for name in ("tables", "report", "compare", "verify", "score", "export", "speed", "data", "records")},
    "references": "references",
}
FLAGS = ("--help", "--version", "--multirun", "--cfg", "--config-dir", "--info")
_ALTERNATIVES = re.compile(r"^(?:  )?(\w+): [^#\n]*# ([a-z]\w*(?: \| [a-z]\w*)+)", re.MULTILINE)


def candidates(line: str, subjects: Mapping[str, Sequence[str]]) -> list[str]:
    """The whole words that may stand in place of the last one of a line, which ends at the cursor.

    Args:
        line: from the program's name on.
        subjects: command -> its subjects.
    """
    words = line.split()[1:]
    last = "" if line[-1:].isspace() or not words else words.pop()
    found = next((word for word in words if word in subjects), None)
    if words and words[-1] in ("--config-dir", "-cd"):
        return []  # the shell completes folders
    if "=" in last:
        return values(last, found or "run", words)
    if last.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(last)]
    offered = [] if found else list(subjects)
    if found and subjects[found] and not set(subjects[found]) & set(words):
        return [each for each in subjects[found] if each.startswith(last)]
    primary = PRIMARIES.get(found or "run")
    if primary and "." in last:
        from anomaly_bench.config.compose import known_keys

        return [f"{key}=" for key in known_keys(primary, words) if key.startswith(last)]
    offered += [f"{key}=" for key in keys(primary)] if primary else []
    return [each for each in offered if each.startswith(last)]


def keys(primary: str) -> dict[str, Any]:
    """The keys of a primary configuration with their defaults, without those of its parts."""
    import yaml

    node = yaml.safe_load((conf_folder() / f"{primary}.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for part in node.pop("defaults", ()):
        if isinstance(part, dict):
            found |= {key: value for key, value in part.items() if key in (*GROUPS, "table")}
        elif part not in ("_self_", "quiet"):
            found |= keys(part)
    chosen: dict[str, Any] = node.pop("only", {})  # method=padim is short for only.method=padim
    return found | chosen | {key: value for key, value in node.items() if key != "hydra"}


def values(word: str, command: str, words: Sequence[str]) -> list[str]:
    """`key=value` for each value that the key may have; also for the last value of a list or sweep."""
    key, _, value = word.partition("=")
    start = re.fullmatch(r"(.*[,\[])?.*", value)
    before = f"{key}={(start and start[1]) or ''}"
    return [made for each in known_values(key, command, words) if (made := f"{before}{each}").startswith(word)]


def known_values(key: str, command: str, words: Sequence[str]) -> Iterator[str]:
    """Choices of a group, truth values, or the alternatives that the configuration's comment names."""
    from anomaly_bench.config.compose import config_folders

    primary = PRIMARIES.get(command)
    if primary is None:
        return
    folders = config_folders(words)
    if key in (*GROUPS, "table"):
        yield from choices(key, folders)
    elif key == "hydra/launcher":
        yield from choices("hydra/launcher_defaults", folders)
    elif isinstance(keys(primary).get(key), bool):
        yield from ("true", "false")
    else:
        yield from alternatives(folders[0] / f"{primary}.yaml").get(key, ())


def alternatives(file: Path) -> dict[str, list[str]]:
    """Key -> the words between bars in its comment."""
    return {key: listed.split(" | ") for key, listed in _ALTERNATIVES.findall(file.read_text(encoding="utf-8"))}
