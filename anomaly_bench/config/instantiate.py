"""Instantiate the `_target_` of a YAML node, with checks of keys and values."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object

from anomaly_bench.config.settings import MOST_SEED
from anomaly_bench.errors import UsageError, one_line

_NUMBERS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
}
RANGES = {"batch": (1, 10**6), "eps": (0, 1e6), "sigma": (0, 1000), "seed": (0, MOST_SEED)}  # shared settings
NEEDED: dict[str, dict[str, type]] = {  # keys required in each group's YAML, besides those of its `_target_`
    "dataset": {"_target_": str},
    "method": {"_target_": str, "name": str, "about.title": str, "about.revision": int},
    "backbone": {"_target_": str, "name": str, "about.title": str, "about.revision": int},
}
NETWORK: dict[str, type] = {
    "_target_": str,
    "about.revision": int,
    "weights": str,
}  # of each network
RUNNER_KEYS = (
    "name",
    "about",
    "levels",
    "uses_backbone",
    "weights",
    "oracle",
    "planes",
    "optional_planes",
    "zero_shot",
    "train_steps",
)  # not passed to the constructor


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a method's, backbone's or dataset's YAML that is passed to its `_target_`."""
    return {key: value for key, value in node.items() if key not in RUNNER_KEYS}


def construct(node: Mapping[str, Any], kind: str, **extra: Any) -> Any:
    """Call a YAML's `_target_` with its keys and `extra`.

    Raises:
        UsageError: no such target, or keys that it does not take.
    """
    keys = {**arguments(node), **extra}
    target = keys.pop("_target_", None)
    factory = find_target(target, f"{kind}={node.get('name')}", **keys)
    if kind == "method":
        check_values(factory, keys)
    return factory(**keys)


def find_target(target: Any, where: str, *values: Any, **keys: Any) -> Any:
    """The object that a `_target_` names, if it can be called with these arguments.

    Raises:
        UsageError: no such target, or keys that it does not take.
    """
    try:
        reach(str(target))
        found = get_object(str(target))
        inspect.signature(found).bind(*values, **keys)
    except ImportError as error:
        kind = where.partition("=")[0]
        raise UsageError(f"{kind}._target_={target}: cannot be imported ({one_line(str(error))})") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {target}: {one_line(str(error))}") from error
    return found


def reach(target: str) -> None:
    """Append the current folder to the import path if a `_target_` cannot be found elsewhere."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins

    if target.startswith(".") or importlib.util.find_spec(target.partition(".")[0]) is not None:
        return
    Plugins.instance()  # imports all hydra_plugins on the path, before the current folder is added
    folder = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else os.getcwd()  # despite hydra.job.chdir
    if folder not in sys.path:
        sys.path.append(folder)


def check_values(method: Any, keys: Mapping[str, Any]) -> None:
    """Check a method's settings against the types of its constructor's arguments and `RANGES`.

    Raises:
        UsageError: with the setting, what was found and what was expected.
    """
    for key, parameter in inspect.signature(method).parameters.items():
        hint = getattr(parameter.annotation, "__name__", parameter.annotation)  # a class, or its name as text
        if key not in keys or hint not in _NUMBERS:
            continue
        value, (types, what) = keys[key], _NUMBERS[hint]
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if type(value) not in types or not low <= value <= high:
            limits = f" from {low} to {high}" if key in RANGES else ""
            raise UsageError(f"method.{key}={value}: expected {what}{limits}")


def check_choices(config: Mapping[str, Any]) -> None:
    """Raise UsageError if the YAML of a dataset, method or backbone lacks a required key."""
    for group, needed in NEEDED.items():
        if not isinstance(config.get(group), Mapping):
            raise UsageError(f"{group}: no choice; expected {group}=NAME, see anomaly-bench --help")
        require_keys(config[group], group, needed)
    for name, node in networks(config["backbone"]).items():
        require_keys(node, "backbone" if node is config["backbone"] else f"backbone.networks.{name}", NETWORK)


def require_keys(node: Any, where: str, needed: Mapping[str, type]) -> None:
    """Raise UsageError if a dotted key of a configuration node is missing or has the wrong type."""
    for key, kind in needed.items():
        value = node
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if type(value) is not kind:
            what = "a name or text" if kind is str else "a whole number"
            raise UsageError(f"{where}.{key}={value}: expected {what} in the YAML")


def networks(backbone: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The networks of a backbone, by name: usually just itself; none for an image-space method."""
    if backbone is None:
        return {}
    found: dict[str, Mapping[str, Any]] = backbone.get("networks", {backbone["name"]: backbone})
    return found


def without_unused_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with backbone None for an image-space method (`uses_backbone: false`)."""
    return {**config, "backbone": config["backbone"] if config["method"].get("uses_backbone", True) else None}
