"""The metrics that `conf/metric/` describes, and those of one's own. Neither torch nor NumPy: tables need titles."""

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
KINDS: dict[str, tuple[str, ...]] = {"level": ("image", "pixel"), "needs": ("maps", "masks")}
OWN_KEYS = (*_NEEDED, "unit", "digits", "needs")  # all other keys are arguments of the function


@dataclass(frozen=True)
class Metric:
    """What a YAML in `conf/metric/` says.

    Attributes:
        title: heads its column in tables.
        level: whose ranking it is read off, or what it is about.
        revision: raised whenever a value can change.
        target: the import path of its function: one of `Steps` (see `metrics.Ranked`), or of an `Outcome`.
        unit: "%" of a fraction, which tables show times 100; any other is shown as it is.
        digits: decimals in tables.
        needs: what an outcome must have, "maps" and "masks"; else the value is None.
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
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What tables multiply by."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def short_title(self) -> str:
        """Below the header of its level."""
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
        """Whether a record's `metrics` hold it in this revision."""
        return self.name in entries and entries[self.name]["revision"] == self.revision

    def entry(self, value: float | None) -> dict[str, Any]:
        """The value as a record holds it; one's own metric is described too, as tables do not see its YAML."""
        about = {"title": self.title, "level": self.level, "unit": self.unit, "digits": self.digits}
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
    return {name: packaged_metrics()[name] for name in packaged_node("metric", "standard")["metrics"]}


Entries = Iterable[Mapping[str, Mapping[str, Any]]]  # `metrics` of records


def find_metric(name: str, entries: Entries = ()) -> Metric | None:
    """A metric of the package, or one of one's own as records describe it, in its latest revision."""
    if name in packaged_metrics():
        return packaged_metrics()[name]
    told = [entry[name] for entry in entries if name in entry]
    if not told:
        return None
    latest = max(told, key=lambda entry: int(entry["revision"]))
    about = {"title": name, "level": "image", **latest}
    return Metric(name, **{key: value for key, value in about.items() if key != "value"})


def own_names(entries: Entries) -> list[str]:
    """The metrics in records that are not the package's."""
    return sorted(set().union(*entries) - packaged_metrics().keys())


def chosen_metrics(config: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that `metric=` names, sets resolved.

    Raises:
        UsageError: a YAML that is no metric's, or changes one of the package's.
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
    """A metric that a set names."""
    if name not in packaged_metrics():
        raise UsageError(f"metric.{group}.metrics: no metric {name} in the package{closest(name, packaged_metrics())}")
    return packaged_metrics()[name]


def own(node: Mapping[str, Any]) -> Metric:
    """The metric of a node; a name stands for one definition, whatever the command line says."""
    ours = packaged_node("metric", node["name"])
    if not ours:
        return make_metric(node)
    changed = [key for key in {**ours, **node} if ours.get(key) != node.get(key)]
    if changed:
        raise UsageError(
            f"metric.{node['name']}.{changed[0]}={node.get(changed[0])}: found another definition under the name of a "
            "metric of the package; write a YAML with a name of your own and give --config-dir DIR"
        )
    return packaged_metrics()[node["name"]]


def make_metric(node: Mapping[str, Any]) -> Metric:
    """A metric from its YAML.

    Raises:
        UsageError: a key is missing or has a value that it cannot have.
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
