"""From a backbone's YAML to its weights and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anomaly_bench.backbones.weights import resolve
from anomaly_bench.config.instantiate import arguments, construct, networks
from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights

WEIGHT_SOURCES = ({"package", "file"}, {"repo", "file"}, {"url", "sha256"})  # of weights


def identify(node: Mapping[str, Any], weights: Mapping[str, Weights], levels: Any = "all") -> dict[str, Any]:
    """A backbone's arguments, revision and the hash of its weights, or those of each of its networks.

    Of named modules only those of the `levels` that are read are told.
    """
    told = {**arguments(node), "revision": node["about"]["revision"]}
    if "networks" in node:
        parts = {name: identify(part, weights, levels) for name, part in node["networks"].items()}
        return {**told, "networks": parts}
    if isinstance(levels, list) and isinstance(told.get("modules"), Mapping):
        names = {str(level) for level in levels}
        told["modules"] = {level: module for level, module in told["modules"].items() if str(level) in names}
    return {**told, "weights": weights[node["name"]].sha256}


def find_weights(config: Mapping[str, Any]) -> dict[str, Weights]:
    """The weights of each network of the configured backbone, by its name; none for an image-space method."""
    return {name: network_weights(name, node) for name, node in networks(config["backbone"]).items()}


def network_weights(name: str, node: Mapping[str, Any]) -> Weights:
    source = node["about"].get("pretrained")
    source = source if isinstance(source, Mapping) else {}
    if node["weights"] == "pretrained" and not any(keys <= source.keys() for keys in WEIGHT_SOURCES):
        known = ", or ".join(" and ".join(sorted(keys)) for keys in WEIGHT_SOURCES)
        raise UsageError(f"backbone={name}: about.pretrained={dict(source)}; expected {known}, or give weights=FILE")
    return resolve(name, node["weights"], source)


def make_network(node: Mapping[str, Any], weights: Weights, precision: str, levels: Any) -> Any:
    """One network of a backbone, read at these levels. This imports torch."""
    return construct(node, "backbone", levels=levels, weights=weights.file, precision=precision)


def make_backbone(
    config: Mapping[str, Any],
    weights: Mapping[str, Weights],
    precision: str = "fp32",
    wrap: Callable[[str, Any], Any] = lambda name, network: network,
) -> Any:
    """The configured backbone, read at the method's levels; NoBackbone for an image-space method. This imports torch.

    Args:
        wrap: is given the name of each network and itself, and returns what takes its place.
    """
    from anomaly_bench.backbones.backbone import NoBackbone

    backbone, levels = config["backbone"], config["method"].get("levels")
    made = [
        wrap(name, make_network(node, weights[name], precision, levels)) for name, node in networks(backbone).items()
    ]
    if not made:
        return NoBackbone()
    return construct(backbone, "backbone", networks=made) if "networks" in backbone else made[0]


def make_method(node: Mapping[str, Any], backbone: Any) -> Any:
    """The method of a YAML, not built yet; an image-space method is not given the backbone."""
    given = {"backbone": backbone} if node.get("uses_backbone", True) else {}
    return construct(node, "method", **given)
