"""The fingerprint of a test set's scores: a hash over everything that can change them, and nothing else.

Built-in methods, backbones and datasets count by name and revision, those of others by their `_target_` and all keys.
No module of ours and no path of this machine is in it. A key that stands at its default is left out: the default of a
method's or backbone's key is what the package's own YAML says, that of a run's key stands in `DEFAULTS`. So a new key,
with what was done before it as its default, orphans no record. Whoever changes a default raises `about.revision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anomaly_bench.config.parts import OURS, non_defaults, packaged_node
from anomaly_bench.files import digest

DEFAULTS: dict[str, Any] = {  # of the keys of a run; what is added here is what every run did before the key came
    "seed": 0,
    "protocol": "unified",
    "input": {"resize": [256, 256], "crop": None},
    "oracle": False,
    "precision": "fp32",
    "regime": {"name": "one_class"},
}
APART = {  # the keys of a part's node that are no settings
    "dataset": ("_target_", "about", "name", "title"),
    "method": ("_target_", "about", "name"),
    "backbone": ("_target_", "about", "name", "revision", "weights", "networks"),
}


def fingerprint(
    run: Mapping[str, Any],
    dataset: Mapping[str, Any],
    files: Mapping[str, Any],
    method: Mapping[str, Any],
    backbone: Mapping[str, Any] | None,
) -> str:
    """64 hex digits.

    Args:
        run: the keys of `DEFAULTS`.
        dataset: its node, with the name that records have.
        files: "task", and the identities of "fit" and "test": file names, labels, sizes and hashes.
        method: its node, as records keep it; a folder of files is replaced by what is in it.
        backbone: as `backbones.build.identify` tells it, with its name; None: an image-space method.
    """
    levels = method.get("levels")
    return digest(
        {
            **files,
            "dataset": _dataset(dataset),
            "method": _part("method", method["name"], method["about"]["revision"], method, run),
            "backbone": None if backbone is None else _backbone(backbone["name"], backbone, levels, run),
            "run": non_defaults(run, DEFAULTS),
        }
    )


def _dataset(node: Mapping[str, Any]) -> dict[str, Any]:
    """What else the YAML of one of our layouts says is in the files' identities."""
    told = {"name": node["name"], "revision": (node.get("about") or {}).get("revision", 1)}
    if str(node["_target_"]).startswith(OURS):
        return told
    return {**told, "_target_": node["_target_"], "settings": _settings("dataset", node)}


def _backbone(name: str, node: Mapping[str, Any], levels: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    """One network with the hash of its weights, or several; of named modules those of the levels that are read."""
    if isinstance(levels, list) and isinstance(node.get("modules"), Mapping):
        read = {str(level) for level in levels}
        node = {**node, "modules": {level: each for level, each in node["modules"].items() if str(level) in read}}
    told = _part("backbone", name, node["revision"], node, run)
    if "networks" in node:
        return {
            **told,
            "networks": {each: _backbone(each, part, levels, run) for each, part in node["networks"].items()},
        }
    return {**told, "weights": node["weights"]}


def _part(group: str, name: str, revision: int, node: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A built-in part's name and revision, anybody else's `_target_`; and the settings that count."""
    settings = _settings(group, node)
    if "_target_" not in node:
        defaults = _resolved(_settings(group, packaged_node(group, name)), run)
        return {"name": name, "revision": revision, "settings": non_defaults(settings, defaults)}
    target = str(node["_target_"])
    if target.startswith(OURS):  # a class of ours in a YAML of one's own: its module may change
        target = target.rpartition(".")[2]
    return {"name": name, "revision": revision, "settings": settings, "_target_": target}


def _settings(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in APART[group]}


def _resolved(defaults: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Defaults such as `seed: ${seed}`, which stand for a key of the run."""
    from omegaconf import OmegaConf

    if "${" not in str(defaults):
        return defaults
    whole: Any = OmegaConf.to_container(OmegaConf.create({**run, "defaults": dict(defaults)}), resolve=True)
    found: Mapping[str, Any] = whole["defaults"]
    return found
