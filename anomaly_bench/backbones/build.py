"""Build weights, networks and methods from their YAML."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anomaly_bench.backbones.weights import resolve
from anomaly_bench.config.instantiate import arguments, construct, networks
from anomaly_bench.config.parts import without_target
from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights

WEIGHT_SOURCES = ({"package", "file"}, {"repo", "file"}, {"url", "sha256"})  # of weights


def identify(node: Mapping[str, Any], weights: Mapping[str, Weights], levels: Any = "all") -> dict[str, Any]:
    """A backbone's arguments, revision and hash of its weights, or those of each of its networks.

    Of its modules, only those of the `levels` that are read are included.
    """
    identity = {**arguments(node), "revision": node["about"]["revision"]}
    if "networks" in node:
        parts = {name: identify(part, weights, levels) for name, part in node["networks"].items()}
        return {**identity, "networks": parts}
    if isinstance(levels, list) and isinstance(identity.get("modules"), Mapping):
        names = {str(level) for level in levels}
        identity["modules"] = {level: module for level, module in identity["modules"].items() if str(level) in names}
    return {**identity, "weights": weights[node["name"]].sha256}


def find_weights(config: Mapping[str, Any]) -> dict[str, Weights]:
    """The weights of each network of the configured backbone, by its name; none for an image-space method."""
    return {name: network_weights(name, node) for name, node in networks(config["backbone"]).items()}


def recorded_weights(
    backbone: Mapping[str, Any] | None,
    hashes: Mapping[str, str],
    today: Mapping[str, Any] | None,
    given: str | None,
    made: str,
) -> dict[str, Weights]:
    """The weights that a record or a saved model was made with, of each network of its backbone.

    The user or today's YAML says where to find them; what was read only gives their hashes.

    Args:
        backbone: as it was read; None: an image-space method has none.
        hashes: sha256 of each network's weights, or "random".
        today: the backbone that the YAML of today has under its name, if any.
        given: the file of the only network.
        made: what was made with them, for messages.

    Raises:
        UsageError: weights cannot be found, or differ from the recorded ones.
    """
    names = list(networks(backbone))
    if given is not None and len(names) != 1:
        raise UsageError(f"weights={given}: {made} reads {' and '.join(names) or 'no network'}, expected one")
    found = {}
    for name in names:
        sha256, node = hashes.get(name, ""), networks(today).get(name)
        if sha256 == "random":
            found[name] = resolve(name, "random", {})
            continue
        if given is not None:
            found[name] = resolve(name, given, {})
        elif node is None:
            raise UsageError(f"backbone={name}: unknown; pass --config-dir DIR with its YAML, or weights=FILE")
        else:
            found[name] = network_weights(name, node)
        if found[name].sha256 != sha256:
            raise UsageError(
                f"{made}: made with weights of {name} with sha256 {sha256[:12]}..., found "
                f"{found[name].sha256[:12]}... ({found[name].file or 'random weights'}); pass weights=FILE"
            )
    return found


def network_weights(name: str, node: Mapping[str, Any]) -> Weights:
    source = node["about"].get("pretrained")
    source = source if isinstance(source, Mapping) else {}
    if node["weights"] == "pretrained" and not any(keys <= source.keys() for keys in WEIGHT_SOURCES):
        known = ", or ".join(" and ".join(sorted(keys)) for keys in WEIGHT_SOURCES)
        raise UsageError(f"backbone={name}: about.pretrained={dict(source)}; expected {known}, or set weights=FILE")
    return resolve(name, node["weights"], source)


def make_network(node: Mapping[str, Any], weights: Weights, precision: str, levels: Any, recorded: bool = False) -> Any:
    """Create one network of a backbone, read at these levels. Imports torch.

    Args:
        recorded: the network is created only if the cache has no program that runs instead; see `backbones.program`.
    """
    from anomaly_bench.backbones.recorded import RecordedBackbone

    make = functools.partial(construct, node, "backbone", levels=levels, weights=weights.file, precision=precision)
    stored = without_target("backbone", node)
    ours = "_target_" not in stored and weights.sha256 != "random"
    if not (recorded and ours and precision == "fp32"):
        return make()
    return RecordedBackbone(make, {**identify(stored, {node["name"]: weights}), "levels": levels})


def make_backbone(
    config: Mapping[str, Any],
    weights: Mapping[str, Weights],
    precision: str = "fp32",
    wrap: Callable[[str, Any], Any] = lambda name, network: network,
    recorded: bool = False,
) -> Any:
    """Create the backbone, read at the method's levels; NoBackbone for an image-space method. Imports torch.

    Args:
        wrap: called with the name of each network and the network; returns its replacement.
        recorded: see `make_network`.
    """
    from anomaly_bench.backbones.backbone import NoBackbone

    backbone, levels = config["backbone"], config["method"].get("levels")
    parts = [
        wrap(name, make_network(node, weights[name], precision, levels, recorded))
        for name, node in networks(backbone).items()
    ]
    if not parts:
        return NoBackbone()
    return construct(backbone, "backbone", networks=parts) if "networks" in backbone else parts[0]


def make_method(node: Mapping[str, Any], backbone: Any) -> Any:
    """Create a method from its YAML, not built yet; an image-space method does not receive the backbone."""
    extra = {"backbone": backbone} if node.get("uses_backbone", True) else {}
    return construct(node, "method", **extra)
