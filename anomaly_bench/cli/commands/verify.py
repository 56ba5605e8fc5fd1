"""`anomaly-bench verify record=FILE`: does a record come out again, here and now?

The record's own configuration, not today's YAML, is computed again: method, backbone, input, precision, seed, batch
size and threads. Weights are told by their hash; that the images are the same, the fingerprint says. Scores are held
against the recorded ones to the last bit, then within the contract's tolerance: `TOLERANCE` of the range of recorded
scores, and of a metric. Results folder and caches of features are left alone. No torch at the top: what cannot be
verified is said at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench import records
from anomaly_bench.backbones.build import find_weights
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import networks
from anomaly_bench.config.parts import with_target
from anomaly_bench.config.settings import choices, conf_folder, read_settings
from anomaly_bench.console import Reporter
from anomaly_bench.data.dataset import open_dataset, selected
from anomaly_bench.errors import DataError, UsageError, shorten
from anomaly_bench.hardware import devices
from anomaly_bench.records.record import DamagedRecord, OlderRecord
from anomaly_bench.records.setups import describe
from anomaly_bench.runs.conversion import dataset_node
from anomaly_bench.runs.job import make_job
from anomaly_bench.tables.formats.console import console
from anomaly_bench.tables.layout import metric_of
from anomaly_bench.tables.table import DASH, Header, Table

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.job import Job

DONE, FAILED = 0, 1
TOLERANCE = 1e-4
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
        near = self.largest[0] <= TOLERANCE * self.range
        return WITHIN if near and all(close(*pair) for pair in self.metrics.values()) else DIFFERENT


def close(then: float | None, now: float | None) -> bool:
    if then is None or now is None:
        return then is now
    return abs(now - then) <= TOLERANCE


def verify(config: Any, folders: Sequence[Path] = ()) -> int:
    """Compute a record again and print the verdict; the exit status.

    Args:
        folders: the user's own configuration, where datasets and backbones are looked up by name.

    Raises:
        UsageError: no such record, or this machine has not the weights, the data or the device.
        DataError: the record is damaged, or an image cannot be read.
    """
    record = read(config["record"])
    with tempfile.TemporaryDirectory() as nowhere:
        run = configured(record, config, folders, nowhere)
        again = computed(record, run)
    verdict = judge(record, again)
    print("\n".join(lines(record, again, verdict)))
    return FAILED if verdict.word == DIFFERENT else DONE


def read(value: Any) -> Record:
    """The record of the key `record`.

    Raises:
        UsageError: there is no such file. DataError: it is no record, or was changed.
    """
    if value is None:
        raise UsageError("record=FILE is missing: expected a JSON file below results/records")
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise UsageError(f"record={path}: {'no file' if path.exists() else 'no such file'}; expected a record's JSON")
    try:
        return records.load(path)
    except OlderRecord as error:
        raise DataError(str(error)) from error
    except DamagedRecord as error:
        raise DataError(f"{str(error).partition(';')[0]}; expected a record as a run has written it") from error


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
        "method": with_target("method", record.config["method"]),
        "backbone": backbone_of(record, config["backbone"] if known else None, wanted["weights"]),
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


def backbone_of(record: Record, known: Mapping[str, Any] | None, weights: str | None) -> dict[str, Any] | None:
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
    if weights is not None and len(parts) != 1:
        raise UsageError(f"weights={weights}: {record.backbone} has {len(parts)} networks, expected one")
    sources = networks(known)
    files = {name: weights_of(name, part["weights"], sources.get(name), weights) for name, part in parts.items()}
    made = {name: {**rebuilt(part, name), "weights": files[name]} for name, part in parts.items()}
    return {**rebuilt(told, record.backbone), "networks": made} if "networks" in told else made[record.backbone]


def rebuilt(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The YAML's node, but for weights, of what a record tells of it."""
    keys = {key: value for key, value in told.items() if key not in ("revision", "weights", "networks")}
    return with_target("backbone", {**keys, "name": name, "about": {"title": name, "revision": told["revision"]}})


def weights_of(name: str, sha256: str, source: Mapping[str, Any] | None, given: str | None) -> str:
    """What `weights` has to be for a network to have weights of this hash."""
    if sha256 == "random":
        return sha256
    if given is not None:
        source = {"name": name, "weights": given, "about": {}}
    elif source is None:
        raise UsageError(f"backbone={name}: not known here; give --config-dir DIR with its YAML, or weights=FILE")
    found = find_weights({"backbone": {**source, "name": name}})[name]
    if found.sha256 != sha256:
        raise UsageError(
            f"{name}: the record was computed with weights of the sha256 {sha256[:12]}..., found "
            f"{found.sha256[:12]}... ({found.file}); give weights=FILE"
        )
    return str(found.file)


def computed(record: Record, config: Mapping[str, Any]) -> Record:
    """The record that a run of this configuration makes now.

    Raises:
        UsageError: the dataset has no such category. DataError: see `make_job`.
    """
    settings = read_settings(config)
    dataset = open_dataset(config["dataset"], settings.data_root)
    selected(dataset, settings.category)
    weights = find_weights(config)
    job: Job = make_job(config, settings, dataset, weights, record.task, settings.category)
    if record.test not in job.task.tests:
        raise DataError(f"{record.task}: no test set {record.test}; found {', '.join(job.task.tests)}")
    from anomaly_bench.runs.evaluator import Evaluator

    made = Evaluator(config, weights, settings, Reporter()).evaluate(job)
    return next(each for each in made if each.test == record.test)


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


def lines(record: Record, again: Record, verdict: Verdict) -> Iterator[str]:
    """What is printed: the verdict, scores, metrics, files, environment."""
    network = "" if record.backbone == "none" else f" on {record.titles['backbone']}"
    what = f"{record.category}, {record.titles['method']}{network}, seed {record.seed}, {describe(record)}"
    yield f"{verdict.word}: {what}"
    yield ""
    yield score_line(verdict)
    yield from file_lines(record, again, verdict)
    yield ""
    yield console(metric_table(record, again, verdict))
    differing = list(environment(record, again))
    yield "environment: " + ("as recorded" if not differing else f"{len(differing)} differences")
    yield from (f"  {line}" for line in differing)


def score_line(verdict: Verdict) -> str:
    unequal = sum(then != now for then, now in verdict.scores.values())
    if not unequal:
        return f"{len(verdict.scores)} image scores: equal to the last bit"
    value, file = verdict.largest
    share = f" = {value / verdict.range:.2g} of their range" if verdict.range else ""
    return (
        f"{len(verdict.scores)} image scores: {unequal} differ, at most by {value:.3g}{share} ({file}); tolerated: "
        f"{TOLERANCE:g} of the range"
    )


def file_lines(record: Record, again: Record, verdict: Verdict) -> Iterator[str]:
    """What is not as it was among the files, as far as the record knows them."""
    if again.fingerprint == record.fingerprint:
        return
    for names, text in ((verdict.lost, "in the record, not here"), (verdict.new, "here, not in the record")):
        if names:
            yield f"{len(names)} test images {text}: {shorten(names)}"
    if record.counts["fit"] != again.counts["fit"]:
        yield f"{again.counts['fit']} training images, {record.counts['fit']} in the record"
    yield (
        "the fingerprint is not the record's: an image or mask has changed since"
        + ("" if verdict.lost or verdict.new else " (the test images have their names)")
        + ", or the record was edited"
    )


def metric_table(record: Record, again: Record, verdict: Verdict) -> Table:
    """Metrics as fractions, recorded and present; a value of another revision of its metric is not compared."""
    rows, names = [], list(dict.fromkeys((*record.metrics, *again.metrics)))
    for name in names:
        metric = metric_of(name)
        texts = [DASH if value is None else f"{value:.6f}" for value in (record.value(name), again.value(name))]
        texts.append(gap(*verdict.metrics.get(name, (None, None))))
        rows.append((Header((metric.title if metric else name,)), texts))
    outdated = [name for name in names if name not in verdict.metrics]
    caption = f"Metrics as fractions; tolerated: {TOLERANCE:g}"
    notes = [f"Of another revision or on one side only, not compared: {', '.join(outdated)}."] if outdated else []
    columns = [("recorded",), ("now",), ("difference",)]
    return Table.of_rows("verify", caption, ("Metric",), columns, rows, notes)


def gap(then: float | None, now: float | None) -> str:
    """'0', '+1.2e-07' or a dash where one is missing."""
    if then is None or now is None:
        return DASH
    return f"{now - then:+.1e}" if now != then else "0"


def environment(record: Record, again: Record) -> Iterator[str]:
    """'torch: 2.6.0 in the record, 2.7.1 here', of all that is known of both."""
    import torch

    threads = torch.get_num_threads()
    then = {**record.provenance, "device": record.cost["device"], "threads": record.cost["threads"]}
    now = {**again.provenance, "device": again.cost["device"], "threads": threads}
    for name in dict.fromkeys((*then, *now)):
        if name != "date" and then.get(name) != now.get(name):
            yield f"{name}: {then.get(name, 'unknown')} in the record, {now.get(name, 'unknown')} here"
