"""The fingerprint of a test set's scores: a hash over everything that can change them, and nothing else.

Built-in methods, backbones and datasets are hashed by name and revision, users' own by `_target_` and all keys. Module
paths of ours and local file paths are not hashed. A key at its default is left out: defaults of method and backbone
keys come from the package's YAML, those of run keys from `DEFAULTS`. So a new key whose default is the previous
behaviour orphans no records. Changing a default requires raising `about.revision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anomaly_bench.config.parts import OURS, non_defaults, packaged_node
from anomaly_bench.files import digest

DEFAULTS: dict[str, Any] = {  # of run keys; a new key's default must be the previous behaviour
    "seed": 0,
    "protocol": "unified",
    "input": {"resize": [256, 256], "crop": None, "filter": "bilinear"},
    "oracle": False,
    "precision": "fp32",
    "regime": {"name": "one_class"},
    "holdout": None,
}
APART = {  # keys of a part's node that are not settings
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
        dataset: its node, with the name used in records.
        files: "task", and the identities of "fit" and "test": file names, labels, sizes and hashes.
        method: its node, as stored in records, with folders replaced by their content.
        backbone: from `backbones.build.identify`, with its name; None: an image-space method.
    """
    levels = method.get("levels")
    if isinstance(levels, list):
        levels = [*levels, *method.get("trained_levels", ())]  # of a fine-tuned copy of the network
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
    """Name, revision and named textures; the other keys of built-in layouts are covered by the files' identities."""
    part = {"name": node["name"], "revision": (node.get("about") or {}).get("revision", 1)}
    if str(node["_target_"]).startswith(OURS):
        return part | ({"textures": sorted(node["textures"])} if node.get("textures") else {})
    return {**part, "_target_": node["_target_"], "settings": _settings("dataset", node)}


def _backbone(name: str, node: Mapping[str, Any], levels: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    """One network with the hash of its weights, or several; only the named modules of levels that are read."""
    if isinstance(levels, list) and isinstance(node.get("modules"), Mapping):
        read = {str(level) for level in levels}
        node = {**node, "modules": {level: each for level, each in node["modules"].items() if str(level) in read}}
    network = _part("backbone", name, node["revision"], node, run)
    if "networks" in node:
        return {
            **network,
            "networks": {each: _backbone(each, part, levels, run) for each, part in node["networks"].items()},
        }
    return {**network, "weights": node["weights"]}


def _part(group: str, name: str, revision: int, node: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Name, revision, settings (of a built-in part only non-defaults) and the `_target_` of a user's part."""
    settings = _settings(group, node)
    if "_target_" not in node:
        defaults = _resolved(_settings(group, packaged_node(group, name)), run)
        return {"name": name, "revision": revision, "settings": non_defaults(settings, defaults)}
    target = str(node["_target_"])
    if target.startswith(OURS):  # our class in a user's YAML: its module may change
        target = target.rpartition(".")[2]
    return {"name": name, "revision": revision, "settings": settings, "_target_": target}


def _settings(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in APART[group]}


def _resolved(defaults: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve defaults such as `seed: ${seed}`, which refer to a key of the run."""
    from omegaconf import OmegaConf

    if "${" not in str(defaults):
        return defaults
    whole: Any = OmegaConf.to_container(OmegaConf.create({**run, "defaults": dict(defaults)}), resolve=True)
    found: Mapping[str, Any] = whole["defaults"]
    return found
