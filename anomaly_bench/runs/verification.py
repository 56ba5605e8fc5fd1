"""Recompute a record and compare.

The record's own configuration is used, not today's YAML: method, backbone, input, precision, seed, batch size and
threads. Weights are identified by their hash, images by the fingerprint. Scores are compared bit by bit, then within
the contract's tolerance: `SCORE_TOLERANCE` of the range of recorded scores, and of a metric. The results folder and
feature caches are not touched. No torch at the top, to fail early.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.backbones.build import recorded_weights
from anomaly_bench.config.compose import compose, dataset_node
from anomaly_bench.config.parts import foreign_folders, with_target
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.console import Reporter
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.hardware import devices
from anomaly_bench.runs.runner import Runner

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

SCORE_TOLERANCE = 1e-4
BIT_EQUAL, WITHIN, DIFFERENT = "bit-equal", "within tolerance", "different"
QUIET: dict[str, Any] = {  # switch off extra work and output
    **{"speed": False, "gallery": 0, "save_maps": False, "save_model": False, "checkpoint": False, "overwrite": False},
    "cache": "off",
}


@dataclass(frozen=True)
class Verdict:
    """How a record compares with its recomputation.

    Attributes:
        scores: file -> recorded and new image score, for the images in both.
        lost, new: files that only the record or only the dataset has, or that changed their label.
        metrics: name -> recorded and new value, for metrics of the same revision.
    """

    scores: Mapping[str, tuple[float, float]]
    metrics: Mapping[str, tuple[float | None, float | None]]
    lost: Sequence[str] = ()
    new: Sequence[str] = ()

    @property
    def range(self) -> float:
        """Highest minus lowest recorded score."""
        recorded = [then for then, _ in self.scores.values()]
        return max(recorded, default=0.0) - min(recorded, default=0.0)

    @property
    def largest(self) -> tuple[float, str]:
        """The largest difference in score, and its image."""
        return max(((abs(now - then), file) for file, (then, now) in self.scores.items()), default=(0.0, ""))

    @property
    def changed(self) -> list[str]:
        """The test images that score differently."""
        return [file for file, (then, now) in self.scores.items() if then != now]

    @property
    def word(self) -> str:
        if self.lost or self.new or not self.scores:
            return DIFFERENT
        if all(then == now for then, now in (*self.scores.values(), *self.metrics.values())):
            return BIT_EQUAL
        near = self.largest[0] <= SCORE_TOLERANCE * self.range
        return WITHIN if near and all(is_close(*pair) for pair in self.metrics.values()) else DIFFERENT


def is_close(then: float | None, now: float | None) -> bool:
    if then is None or now is None:
        return then is now
    return abs(now - then) <= SCORE_TOLERANCE


def recompute(record: Record, wanted: Mapping[str, Any], folders: Sequence[Path]) -> Record:
    """The record that the same configuration gives now.

    Args:
        wanted: local `data_root`, `weights`, `folder` and `device`.
        folders: folders of user YAML, searched for datasets and backbones by name.

    Raises:
        UsageError: this machine lacks the weights, the data or the device.
        DataError: the dataset lacks the test set, or an image cannot be read.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        runner = Runner(configured(record, wanted, folders, nowhere), Reporter())
        job = runner.job(record.task)
        if record.test not in job.task.tests:
            raise DataError(f"{record.task}: no test set {record.test}; found {', '.join(job.task.tests)}")
        computed = runner.evaluator(job).evaluate(job)
        runner.close()
    return next(each for each in computed if each.test == record.test)


def configured(record: Record, wanted: Mapping[str, Any], folders: Sequence[Path], results: str) -> dict[str, Any]:
    """The resolved configuration of a run that reproduces the record.

    Raises:
        UsageError: the backbone is unknown here, or its weights differ.
    """
    known = record.backbone in choices("backbone", (conf_folder(), *folders))
    config = compose("config", [f"backbone={record.backbone}"] if known else [], folders)
    config |= {name: value for name, value in QUIET.items() if name in config}
    regime = record.regime or {"name": "one_class"}  # the only one in old records
    config |= {
        "dataset": dataset_node(record.dataset, folders),
        "method": with_folder(with_target("method", record.config["method"], folders), wanted["folder"], folders),
        "backbone": backbone_of(record, config["backbone"] if known else None, wanted["weights"], folders)
        or config["backbone"],
        "category": regime.get("categories", [record.task]),
        "task": {key: value for key, value in regime.items() if key != "categories"},
        "data_root": wanted["data_root"],
        "results": results,
        "device": wanted["device"] or device_of(record),
        "threads": record.cost["threads"],
        "batch_size": record.config["batch_size"],
    }
    if record.draw:
        config["dataset"]["draw"] = record.draw
    if record.thresholds:
        config |= {"holdout": record.holdout, "max_false_alarms": record.thresholds["max_false_alarms"]}
    same = ("seed", "precision", "protocol", "oracle", "input")
    return {**config, **{name: getattr(record, name) for name in same}}


def with_folder(node: Mapping[str, Any], given: Any, folders: Sequence[Path]) -> dict[str, Any]:
    """The method's node with the user's folder in place of one that the record names, which may be any of the disk's.

    Args:
        given: the key `folder`.

    Raises:
        UsageError: the method read a folder and none is given, or the other way round.
    """
    named = foreign_folders(node, folders)
    if given is None and not named:
        return dict(node)
    if given is None or len(named) != 1:
        found = ", ".join(f"{key}={value}" for key, value in named.items()) or "no folder"
        todo = "give folder=DIR, where the same files are here" if named else f"remove folder={given}"
        raise UsageError(f"method={node['name']} was run with {found}; {todo}")
    return {**node, **dict.fromkeys(named, str(given))}


def device_of(record: Record) -> str:
    """The record's kind of device, if this machine has it; else the default of a run."""
    best = devices.device_kind("auto")
    if devices.device_name(best) == record.cost["device"]:
        return best
    on_gpu = record.cost["peak_gpu_mb"] is not None or record.cost["device"].startswith("GPU of ")  # of a Mac
    return best if on_gpu else "cpu"


def backbone_of(
    record: Record, known: Mapping[str, Any] | None, weights: Any, folders: Sequence[Path]
) -> dict[str, Any] | None:
    """The record's backbone, with the files of its weights instead of their hashes.

    Args:
        known: today's YAML for that backbone, which tells where to find its weights.
        weights: a weights file to use instead, for a single network.

    Raises:
        UsageError: weights are not available, or differ from the record's.
    """
    entry = record.config["backbone"]
    if entry is None:
        return None
    parts = entry.get("networks", {record.backbone: entry})
    node = rebuilt(entry, record.backbone, folders)
    if "networks" in entry:
        node["networks"] = {name: rebuilt(part, name, folders) for name, part in parts.items()}
    given = None if weights is None else str(weights)
    hashes = {name: part["weights"] for name, part in parts.items()}
    for name, found in recorded_weights(node, hashes, known, given, "the record").items():
        (node["networks"][name] if "networks" in entry else node)["weights"] = str(found.file or "random")
    return node


def rebuilt(entry: Mapping[str, Any], name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A backbone's YAML node, without weights, from its entry in a record."""
    keys = {key: value for key, value in entry.items() if key not in ("revision", "weights", "networks")}
    return with_target(
        "backbone", {**keys, "name": name, "about": {"title": name, "revision": entry["revision"]}}, folders
    )


def judge(record: Record, again: Record) -> Verdict:
    """Compare a recomputed record with the original."""
    then, now = ({(each["file"], each["defect"]): each["score"] for each in part.images} for part in (record, again))
    metrics = {
        name: (entry["value"], again.value(name))
        for name, entry in record.metrics.items()
        if name in again.metrics and again.metrics[name]["revision"] == entry["revision"]
    }
    scores = {key[0]: (then[key], now[key]) for key in then if key in now}
    lost, new = ([file for file, _ in one if (file, _) not in two] for one, two in ((then, now), (now, then)))
    return Verdict(scores, metrics, lost, new)
