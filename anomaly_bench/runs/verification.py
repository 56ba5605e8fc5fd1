"""A record computed again, and held against what it says.

The record's own configuration, not today's YAML, is computed: method, backbone, input, precision, seed, batch size and
threads. Weights are told by their hash; that the images are the same, the fingerprint says. Scores are held against the
recorded ones to the last bit, then within the contract's tolerance: `SCORE_TOLERANCE` of the range of recorded scores,
and of a metric. Results folder and caches of features are left alone. No torch at the top: what cannot be computed is
said at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.backbones.build import recorded_weights
from anomaly_bench.config.compose import compose, dataset_node
from anomaly_bench.config.parts import with_target
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.console import Reporter
from anomaly_bench.errors import DataError
from anomaly_bench.hardware import devices
from anomaly_bench.runs.runner import Runner

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

SCORE_TOLERANCE = 1e-4
BIT_EQUAL, WITHIN, DIFFERENT = "bit-equal", "within tolerance", "different"
QUIET: dict[str, Any] = {  # a run's keys that add to it or keep something
    **{"speed": False, "gallery": 0, "save_maps": False, "save_model": False, "checkpoint": False, "overwrite": False},
    "cache": "off",
}


@dataclass(frozen=True)
class Verdict:
    """How a record compares with what was computed now.

    Attributes:
        scores: file -> recorded and present image score, of the images in both.
        lost, new: files of the record that are not there, and the other way round, or with another label.
        metrics: name -> recorded and present value, of those of one revision.
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
        """The largest difference of a score, and the image that has it."""
        return max(((abs(now - then), file) for file, (then, now) in self.scores.items()), default=(0.0, ""))

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
    """The record that a run makes now of the same configuration.

    Args:
        wanted: `data_root`, `weights` and `device` of here.
        folders: the user's own configuration, where datasets and backbones are looked up by name.

    Raises:
        UsageError: this machine has not the weights, the data or the device.
        DataError: the dataset has not the test set, or an image cannot be read.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        runner = Runner(configured(record, wanted, folders, nowhere), Reporter())
        job = runner.job(record.task)
        if record.test not in job.task.tests:
            raise DataError(f"{record.task}: no test set {record.test}; found {', '.join(job.task.tests)}")
        made = runner.evaluator(job).evaluate(job)
        runner.close()
    return next(each for each in made if each.test == record.test)


def configured(record: Record, wanted: Mapping[str, Any], folders: Sequence[Path], results: str) -> dict[str, Any]:
    """A resolved configuration of a run that makes the record's numbers.

    Raises:
        UsageError: the backbone is unknown here, or its weights are others.
    """
    known = record.backbone in choices("backbone", (conf_folder(), *folders))
    config = compose("config", [f"backbone={record.backbone}"] if known else [], folders)
    config |= {name: value for name, value in QUIET.items() if name in config}
    regime = record.regime or {"name": "one_class"}  # what every record was before there were others
    config |= {
        "dataset": dataset_node(record.dataset, folders),
        "method": with_target("method", record.config["method"], folders),
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
    same = ("seed", "precision", "protocol", "oracle", "input")
    return {**config, **{name: getattr(record, name) for name in same}}


def device_of(record: Record) -> str:
    """The kind of device that the record names, as far as this machine has it; else what a run would take."""
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
        known: the backbone of that name in the YAML of today, which says where its weights are to be had.
        weights: a file of the only network, instead.

    Raises:
        UsageError: weights are not to be had, or are others than the record's.
    """
    told = record.config["backbone"]
    if told is None:
        return None
    parts = told.get("networks", {record.backbone: told})
    node = rebuilt(told, record.backbone, folders)
    if "networks" in told:
        node["networks"] = {name: rebuilt(part, name, folders) for name, part in parts.items()}
    given = None if weights is None else str(weights)
    hashes = {name: part["weights"] for name, part in parts.items()}
    for name, found in recorded_weights(node, hashes, known, given, "the record").items():
        (node["networks"][name] if "networks" in told else node)["weights"] = str(found.file or "random")
    return node


def rebuilt(told: Mapping[str, Any], name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The YAML's node, but for weights, of what a record tells of it."""
    keys = {key: value for key, value in told.items() if key not in ("revision", "weights", "networks")}
    return with_target(
        "backbone", {**keys, "name": name, "about": {"title": name, "revision": told["revision"]}}, folders
    )


def judge(record: Record, again: Record) -> Verdict:
    """Hold what was computed now against a record."""
    then, now = ({(each["file"], each["defect"]): each["score"] for each in part.images} for part in (record, again))
    metrics = {
        name: (entry["value"], again.value(name))
        for name, entry in record.metrics.items()
        if name in again.metrics and again.metrics[name]["revision"] == entry["revision"]
    }
    scores = {key[0]: (then[key], now[key]) for key in then if key in now}
    lost, new = ([file for file, _ in one if (file, _) not in two] for one, two in ((then, now), (now, then)))
    return Verdict(scores, metrics, lost, new)
