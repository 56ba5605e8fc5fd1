"""Compose the configuration with Hydra, with one-line errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import GROUPS, choices, conf_folder
from anomaly_bench.errors import UsageError, closest


def explain(error: Exception, primary: str, arguments: Sequence[str], folders: Sequence[Path]) -> str:
    """Hydra's error in one line, with the closest names for a wrong choice or key."""
    text = str(error)
    choice = re.search(r"Could not (?:find|load) '(.+)/([^'/]*)'", text)
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
    message = " ".join(lines[:2]) or type(error).__name__
    return f"{where[1] + ': ' if where else ''}{message}; see anomaly-bench --help"


def known_keys(primary: str, arguments: Sequence[str]) -> list[str]:
    """Every key of the configuration with the given choices, dotted, and the groups."""
    wanted = [argument for argument in arguments if argument.partition("=")[0] in GROUPS]
    try:
        config = composed(primary, wanted)
    except Exception:  # a choice from the user's folder, or a command without that group
        config = composed(primary, [])
    return sorted({*dotted(config), *GROUPS})


def dotted(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def compose(primary: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> Any:
    """Resolve overrides, with optional folders of user YAML, to plain values.

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


def dataset_node(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The configuration of a dataset by its name in records; without a YAML of that name, a folder of images."""
    known = name in choices("dataset", (conf_folder(), *folders))
    return {**compose("config", [f"dataset={name if known else 'folder'}"], folders)["dataset"], "name": name}


def backbone_node(name: str, folders: Sequence[Path]) -> dict[str, Any] | None:
    """The configuration of the backbone of this name; None: there is none."""
    if name not in choices("backbone", (conf_folder(), *folders)):
        return None
    node: dict[str, Any] = compose("config", [f"backbone={name}"], folders)["backbone"]
    return node


def composed(primary: str, overrides: Sequence[str]) -> Any:
    """`compose` that raises Hydra's and OmegaConf's errors."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose(primary, list(overrides)), resolve=True)


def config_folders(arguments: Sequence[str]) -> Sequence[Path]:
    """Our configuration folder and the user's `--config-dir`."""
    folders = [conf_folder()]
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value if equals else "".join(arguments[index + 1 : index + 2])))
    return existing(folders)


def existing(folders: Sequence[Path]) -> Sequence[Path]:
    """Check that all folders exist (Hydra silently ignores missing ones); UsageError: one does not."""
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


def quoted(text: str) -> str:
    """Any string in Hydra's grammar."""
    plain = re.sub(r"(\\*)'", r"\1\1\\'", text)  # a backslash is literal unless before a quote
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", plain) + "'"
