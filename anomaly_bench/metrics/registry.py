"""The metrics in `conf/metric/` and user-defined ones. Imports neither torch nor NumPy: tables need titles only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from anomaly_bench.config.instantiate import find_target, require_keys
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import UsageError, closest

MetricLevel = Literal["image", "pixel"]
_NEEDED = {"name": str, "title": str, "level": str, "revision": int, "_target_": str}
THRESHOLDS = ("image_threshold", "pixel_threshold")
KINDS: dict[str, tuple[str, ...]] = {
    "level": ("image", "pixel"),
    "needs": ("maps", "masks", *THRESHOLDS),
    "best": ("highest", "lowest", ""),
}
OWN_KEYS = (*_NEEDED, "unit", "digits", "needs", "best")  # all other keys are arguments of the function


@dataclass(frozen=True)
class Metric:
    """A metric as described by a YAML in `conf/metric/`.

    Attributes:
        title: of its column in tables.
        level: which ranking it is computed from, or what it measures.
        revision: raised whenever a value can change.
        target: the import path of its function, which takes `Steps` (see `metrics.Ranked`) or an `Outcome`.
        unit: "%" for a fraction, which tables show times 100; other values are shown as they are.
        digits: decimals in tables.
        needs: what an outcome must have, such as "maps"; else the value is None.
        best: which value tables set in bold: "highest", "lowest" or "" (none).
        settings: arguments of the function.
    """

    name: str
    title: str
    level: MetricLevel
    revision: int
    target: str = ""
    unit: str = "%"
    digits: int = 1
    needs: tuple[str, ...] = ()
    best: str = "highest"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """Factor for display in tables."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def needs_threshold(self) -> bool:
        return bool(set(self.needs) & set(THRESHOLDS))

    @property
    def needs_maps(self) -> bool:
        return "maps" in self.needs or "masks" in self.needs

    @property
    def short_title(self) -> str:
        """The title below the header of its level."""
        return self.title.removeprefix(f"{self.level} ")

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """
        Raises:
            UsageError: it cannot be imported, or does not take the settings.
        """
        function: Callable[..., Any] = find_target(self.target, f"metric={self.name}", object(), **self.settings)
        return function

    def is_in(self, entries: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a record's `metrics` contain it in this revision."""
        return self.name in entries and entries[self.name]["revision"] == self.revision

    def entry(self, value: float | None) -> dict[str, Any]:
        """The value as stored in a record; a user-defined metric is described too, as tables do not see its YAML."""
        about = {"title": self.title, "level": self.level, "unit": self.unit, "digits": self.digits}
        about |= {} if self.best == "highest" else {"best": self.best}
        about |= {"needs": list(self.needs)} if self.needs_threshold else {}
        return {"value": value, "revision": self.revision, **({} if self.name in packaged_metrics() else about)}


@functools.cache
def packaged_metrics() -> dict[str, Metric]:
    """The package's metrics by name, those of `metric=standard` first."""
    names = packaged_node("metric", "standard")["metrics"]
    nodes = {
        name: packaged_node("metric", name) for name in dict.fromkeys([*names, *choices("metric", [conf_folder()])])
    }
    return {name: make_metric(node) for name, node in nodes.items() if "metrics" not in node}


def standard_metrics() -> dict[str, Metric]:
    """What every run computes and stores."""
    return metric_set("standard")


def stored_metrics(holdout: bool) -> dict[str, Metric]:
    """What every run with these settings computes and stores."""
    return standard_metrics() | (metric_set("operating") if holdout else {})


def metric_set(name: str) -> dict[str, Metric]:
    """The metrics of one of the package's sets."""
    return {each: packaged_metrics()[each] for each in packaged_node("metric", name)["metrics"]}


def metrics_of_run(config: Mapping[str, Any], holdout: bool) -> dict[str, Metric]:
    """What `metric=` names, and can be computed.

    Raises:
        UsageError: see `chosen_metrics`; a metric at a threshold, though no images are held out for one.
    """
    chosen = chosen_metrics(config)
    needing = [name for name, metric in chosen.items() if metric.needs_threshold and not holdout]
    if needing and "all" not in config["metric"]:
        raise UsageError(f"metric={needing[0]} needs a threshold, and holdout=0 makes none; give holdout=0.2")
    return {name: metric for name, metric in chosen.items() if name not in needing}


Entries = Iterable[Mapping[str, Mapping[str, Any]]]  # `metrics` of records


def find_metric(name: str, entries: Entries = ()) -> Metric | None:
    """A metric of the package, or a user-defined one as records describe it, in its latest revision."""
    if name in packaged_metrics():
        return packaged_metrics()[name]
    described = [entry[name] for entry in entries if name in entry]
    if not described:
        return None
    latest = max(described, key=lambda entry: int(entry["revision"]))
    about = {"title": name, "level": "image", **latest}
    return Metric(name, **{key: about[key] for key in ("title", "level", "revision", "unit", "digits") if key in about})


def own_names(entries: Entries) -> list[str]:
    """The user-defined metrics in records."""
    return sorted(set().union(*entries) - packaged_metrics().keys())


def chosen_metrics(config: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics named by `metric=`, sets resolved.

    Raises:
        UsageError: a YAML that is not a metric, or changes one of the package's.
    """
    found: dict[str, Metric] = {}
    for name, node in (config.get("metric") or {}).items():
        if not isinstance(node, Mapping) or node.get("name") != name:
            raise UsageError(
                f"metric.{name}={node}: expected a metric; start metric/NAME.yaml with the lines "
                "'# @package metric.NAME' and 'name: NAME'"
            )
        found |= {each: _one_of(each, name) for each in node["metrics"]} if "metrics" in node else {name: own(node)}
    return found


def _one_of(name: str, group: str) -> Metric:
    """A metric named by a set."""
    if name not in packaged_metrics():
        raise UsageError(f"metric.{group}.metrics: no metric {name} in the package{closest(name, packaged_metrics())}")
    return packaged_metrics()[name]


def own(node: Mapping[str, Any]) -> Metric:
    """The metric of a node; the command line must not change what a name stands for."""
    ours = packaged_node("metric", node["name"])
    if not ours:
        return make_metric(node)
    changed = [key for key in {**ours, **node} if ours.get(key) != node.get(key)]
    if changed:
        raise UsageError(
            f"metric.{node['name']}.{changed[0]}={node.get(changed[0])}: found a changed definition of a metric of the "
            "package; write a YAML under another name and give --config-dir DIR"
        )
    return packaged_metrics()[node["name"]]


def make_metric(node: Mapping[str, Any]) -> Metric:
    """A metric from its YAML.

    Raises:
        UsageError: a key is missing or has an invalid value.
    """
    where = f"metric.{node.get('name')}"
    require_keys(node, where, _NEEDED)
    for key, valid in KINDS.items():
        value = node.get(key, [])
        for each in value if isinstance(value, list) else [value]:
            if each not in valid:
                raise UsageError(f"{where}.{key}={each}: expected {' or '.join(valid)}{closest(str(each), valid)}")
    known = {key: node[key] for key in OWN_KEYS if key in node and key != "_target_"}
    settings = {key: value for key, value in node.items() if key not in OWN_KEYS}
    known["needs"] = tuple(node.get("needs") or ())
    return Metric(**known, target=node["_target_"], settings=settings)
