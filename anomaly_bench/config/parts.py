"""Built-in parts: the methods, backbones and datasets of our own YAML, as opposed to users' own.

Results identify a built-in part by name and revision, never by its module path.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import UsageError, closest

OURS = "anomaly_bench."


@functools.cache
def packaged_node(group: str, name: str) -> Mapping[str, Any]:
    """The package's YAML for a choice, with `${...}` unresolved; empty if there is none."""
    from omegaconf import OmegaConf

    if name not in choices(group, [conf_folder()]):
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / group / f"{name}.yaml"))
    return {key: value for key, value in content.items() if key != "defaults"}


def without_target(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node as stored in results: without evidence, and without `_target_` for built-in parts and networks."""
    stored = dict(node)
    if "evidence" in (stored.get("about") or {}):
        stored["about"] = {key: value for key, value in stored["about"].items() if key != "evidence"}
    if "networks" in stored:
        stored["networks"] = {name: without_target(group, part) for name, part in stored["networks"].items()}
    if stored["_target_"] == packaged_node(group, stored["name"]).get("_target_"):
        del stored["_target_"]
    return stored


def with_target(group: str, node: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The inverse of `without_target`, with today's classes.

    As the node may come from an untrusted file, only classes named in the package's own YAML or in the user's `folders`
    are allowed.

    Raises:
        UsageError: the package no longer has this part, or the class is neither the package's nor the user's.
    """
    full = dict(node)
    if "networks" in full:
        full["networks"] = {name: with_target(group, part, folders) for name, part in full["networks"].items()}
    if "_target_" in full:
        if full["_target_"] not in known_targets(group, (conf_folder(), *folders)):
            raise UsageError(
                f"{group}={full['name']}: made by {full['_target_']}, which is not a part of anomaly-bench; if you "
                f"trust that code, pass --config-dir DIR with its {group}/{full['name']}.yaml"
            )
    else:
        packaged = packaged_node(group, full["name"])
        if not packaged:
            near = closest(full["name"], choices(group, [conf_folder()]))
            raise UsageError(f"{group}={full['name']}: this version of anomaly-bench has no such {group}{near}")
        full["_target_"] = packaged["_target_"]
    return full


def known_targets(group: str, folders: Sequence[Path]) -> set[str]:
    """Every `_target_` in the YAML of a group."""
    from omegaconf import OmegaConf

    files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
    return {target for file in files for target in targets_in(OmegaConf.to_container(OmegaConf.load(file)))}


def foreign_folders(node: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The keys of a method from an untrusted file that name folders, with their values: none of them may be read.

    Such are the keys under `about.folders` in the node, in the package's YAML and in the user's `folders`.
    """
    from omegaconf import OmegaConf

    files = [file for folder in (conf_folder(), *folders) for file in (folder / "method").glob("*.yaml")]
    loaded: list[Any] = [OmegaConf.to_container(OmegaConf.load(file)) for file in files]
    keys = {str(key) for each in (node, *loaded) for key in (each.get("about") or {}).get("folders") or ()}
    return {key: node[key] for key in sorted(keys) if node.get(key) is not None}


def targets_in(node: Any) -> Iterator[str]:
    """The `_target_` of a node and of nested nodes."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_in(value)


def non_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keys, including nested ones, that differ from their defaults."""
    changed = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = non_defaults(value, default), {}
        if key not in defaults or value != default:
            changed[key] = value
    return changed
