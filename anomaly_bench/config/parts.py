"""Built-in parts: the methods, backbones and datasets of our own YAML, told apart from everybody else's.

Results know a built-in part by its name and revision, never by the module that its class lies in.
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
    """The YAML that the package has for a choice, its `${...}` as they stand; empty: it has none of that name."""
    from omegaconf import OmegaConf

    if name not in choices(group, [conf_folder()]):
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / group / f"{name}.yaml"))
    return {key: value for key, value in content.items() if key != "defaults"}


def without_target(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node as results keep it, without its evidence; a built-in part, also each network, has no `_target_`."""
    made = dict(node)
    if "evidence" in (made.get("about") or {}):
        made["about"] = {key: value for key, value in made["about"].items() if key != "evidence"}
    if "networks" in made:
        made["networks"] = {name: without_target(group, part) for name, part in made["networks"].items()}
    if made["_target_"] == packaged_node(group, made["name"]).get("_target_"):
        del made["_target_"]
    return made


def with_target(group: str, node: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """What `without_target` was given, with the classes of today.

    The node may be from a file that somebody else wrote: it names classes of the package's own YAML only, or of that in
    the user's `folders`.

    Raises:
        UsageError: the package has no such part any more, or the class is neither the package's nor the user's.
    """
    made = dict(node)
    if "networks" in made:
        made["networks"] = {name: with_target(group, part, folders) for name, part in made["networks"].items()}
    if "_target_" in made:
        if made["_target_"] not in known_targets(group, (conf_folder(), *folders)):
            raise UsageError(
                f"{group}={made['name']}: made by {made['_target_']}, which is not a part of anomaly-bench; if you "
                f"trust that code, give --config-dir DIR with its {group}/{made['name']}.yaml"
            )
    else:
        own = packaged_node(group, made["name"])
        if not own:
            near = closest(made["name"], choices(group, [conf_folder()]))
            raise UsageError(f"{group}={made['name']}: this version of anomaly-bench has no such {group}{near}")
        made["_target_"] = own["_target_"]
    return made


def known_targets(group: str, folders: Sequence[Path]) -> set[str]:
    """Every `_target_` in the YAML of a group."""
    from omegaconf import OmegaConf

    files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
    return {target for file in files for target in targets_in(OmegaConf.to_container(OmegaConf.load(file)))}


def targets_in(node: Any) -> Iterator[str]:
    """The `_target_` of a node and of those within it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_in(value)


def non_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keys, also of nodes within, that do not stand at their default."""
    made = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = non_defaults(value, default), {}
        if key not in defaults or value != default:
            made[key] = value
    return made
