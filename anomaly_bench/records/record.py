"""Records: the results of runs. One JSON file per task, test set, method, backbone, seed and fingerprint.

Everything that anomaly-bench prints is a function of these files. A record is written once, atomically, and never
overwritten by one with another fingerprint; `results.csv` is derived from the records and never read.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import FILTER
from anomaly_bench.documents import has_digest, read_json
from anomaly_bench.files import digest, safe_filename, write_atomically
from anomaly_bench.records.content import check_content
from anomaly_bench.records.training_share import derived_training

SCHEMA = 2  # of records, and of the `model.yaml` beside them
NEWER_SCHEMA = "made by a newer version of anomaly-bench: update it"
OTHER_SCHEMA = "run anomaly-bench records convert results=DIR data_root=DIR, or delete it to recompute"


class DamagedRecord(Exception):
    """A record file that cannot be read, or whose content does not match its checksum."""


class OlderRecord(DamagedRecord):
    """A record whose schema is not the current one."""


@dataclass
class Record:
    """One fitted and scored test set of one task.

    Attributes:
        fingerprint: 64 hex digits over everything that can change a score.
        dataset, task, test: where the images come from; `test` is the name of the test set.
        group: "textures", "objects" or None.
        categories: every category of the dataset, in the papers' order: [{"name": ..., "group": ...}].
        method, backbone: names; "none" if the method uses no backbone.
        titles: as printed in tables, {"dataset": ..., "method": ..., "backbone": ...}.
        input: {"resize": [H, W], "crop": [H, W] or None, "filter": one of `config.settings.FILTERS`}; "bits" only if
            that key is given.
        counts: {"fit": images, "test": images, "defects": defective test images}; with masks "regions": defects in
            the masks as stored, and "lost_regions": those of which resizing and cropping left no pixel.
        metrics: name -> {"value": fraction or None if undefined, "revision": int}.
        curves: name -> {"x": [...], "y": [...]}, at most 500 points.
        images: [{"file": ..., "defect": name or None, "score": ...}] in the test set's order.
        holdout: the share of the training images that was held out for thresholds; None: no thresholds.
        thresholds: {"image", "pixel": see `metrics.thresholds`, None where too few images were held out for the rate,
            "max_false_alarms": the rate, "images": how many were held out}.
        held_out: [{"file": ..., "score": ..., "peak": largest value of its map or None}], what gives thresholds.
        corrected: {"labels": digest of a file of corrected labels, "images": [{"file", "label", "reason"}] that it
            changes here, "metrics": as above, under these labels}; None: none were computed.
        speed: one entry per machine setting, see `hardware.timing`; empty with `speed=false`. That of an exported graph
            has "runtime": the program that ran it and its version.
        size: {"extra_params": floats, "extra_mb": 10^6 bytes, "stored_mb": 10^6 bytes}.
        cost: {"fit_s", "score_s": seconds, "peak_ram_mb", "peak_gpu_mb": 10^6 bytes or None, "device", "threads"}, and
            with a backbone "extraction": {"images": passed through it by this job, "s": its share of fit and scoring
            time or None, "cached": whether features came from an earlier pass, whose seconds then count}.
        config: the resolved configuration, built-in parts without `_target_`; provenance: versions and code of the run.
        training: of a method that trains {"epochs", "steps": of the optimiser, "samples": images drawn, "published":
            its schedule, "share": of that, "curve": {"steps", "loss"}, "last_tenth": relative change
            of the loss, "spread": of a reconstruction's outputs}, see `components.training`; {}: it does not train.
        regime: the choice of conf/task: {"name": "one_class"}; {"name": "few_shot", "shots": images fitted on};
            {"name": "multi_class", "categories": those fitted on}.
        hashes: {"fit": of all training images that the dataset has for the task, "test": of the test images and their
            masks}; names and order do not count.
        findings: what was noticed about the files, and of which: kind (see `data.findings.KINDS`) -> files.
        converted: for a record of an older schema {"schema", "fingerprint": the old ones, "proven": whether it was
            shown to belong to the files at hand; if not, it keeps its old fingerprint, which no run counts as done}.
        draw: of a dataset with random choices of its own (`dataset.draw`); None: the first, or it makes none.

    Attributes added later are None in earlier records: unknown, and equal to no known value; of `holdout` and `draw` it
    is known that nothing was held out, and that the draw was the first.
    """

    fingerprint: str
    dataset: str
    task: str
    test: str
    group: str | None
    categories: list[dict[str, Any]]
    method: str
    backbone: str
    titles: dict[str, str]
    seed: int
    protocol: str
    oracle: bool
    precision: str
    input: dict[str, Any]
    counts: dict[str, int]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)
    size: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    regime: dict[str, Any] | None = None
    converted: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    holdout: float | None = None
    thresholds: dict[str, Any] | None = None
    held_out: list[dict[str, Any]] | None = None
    corrected: dict[str, Any] | None = None
    draw: int | None = None
    hashes: dict[str, str] | None = None
    findings: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        self.input.setdefault("filter", FILTER)  # in place: records share it, see `records.outlines`

    @property
    def identity(self) -> tuple[Any, ...]:
        """Records with the same identity are duplicates."""
        return self.dataset, self.method, self.backbone, self.task, self.test, self.seed, self.fingerprint

    @property
    def repetition(self) -> tuple[int, int]:
        """The seed, and the dataset's draw: tables average over both."""
        return self.seed, self.draw or 0

    @property
    def path(self) -> Path:
        """The file below the results folder; its name is legal on Windows."""
        file = f"{safe_filename(self.task)}-s{self.seed}-{self.fingerprint[:8]}.json"
        if self.test != "test":
            file = f"{safe_filename(self.task)}-{safe_filename(self.test)}-s{self.seed}-{self.fingerprint[:8]}.json"
        return Path(
            "records", safe_filename(self.dataset), f"{safe_filename(self.method)}-{safe_filename(self.backbone)}", file
        )

    @property
    def category(self) -> str:
        """The test set's name in tables, results.csv and messages; see `category_name`."""
        return category_name(self.task, self.test, [each["name"] for each in self.categories])

    def image_name(self, file: str) -> str:
        """An image's name among all categories: 'screw/test/good/003.png'; in multi-class tasks it is its file."""
        return file if (self.regime or {}).get("categories") else f"{self.task}/{file}"

    def value(self, metric: str) -> float | None:
        """A metric as a fraction; None if it is undefined or was not computed."""
        entry = self.metrics.get(metric)
        return None if entry is None else entry["value"]

    @property
    def localises(self) -> bool:
        """Whether the method made anomaly maps."""
        return bool(self.counts.get("maps", 0))


LATER = {entry.name for entry in fields(Record) if entry.default is None}  # added after the schema


def category_name(task: str, test: str, categories: Container[str]) -> str:
    """A test set's name: its task if it is the only one, a category of the dataset, or 'task/test'."""
    if test == "test":
        return task
    return test if test in categories else f"{task}/{test}"


def save(record: Record, results: Path) -> Path:
    """Write a record below `results` and return its path."""
    path = results / record.path
    write_record(record, path)
    return path


def write_record(record: Record, path: Path) -> None:
    content = asdict(record)
    content["checksum"] = digest(content)
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Record:
    """Read one record.

    Raises:
        DamagedRecord: it cannot be read, is no file of JSON, has not the fields or types of a record, or was changed
            since it was written. OlderRecord: of another schema.
    """
    try:
        content = read_json(path)
        checksum = content.pop("checksum")
        if content.get("schema") != SCHEMA:
            newer = isinstance(content.get("schema"), int) and content["schema"] > SCHEMA
            todo = NEWER_SCHEMA if newer else OTHER_SCHEMA
            raise OlderRecord(f"{path}: schema {content.get('schema')}, expected {SCHEMA}; {todo}")
        check_keys(content)
        if not has_digest(content, checksum):
            raise DamagedRecord(f"{path}: modified or truncated since it was written; it will be recomputed")
        check_content(content, Record)
        record = Record(**content)
        if record.training is None:
            record.training = derived_training(record.config.get("method", {}), record.cost, record.counts)
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({error.strerror}); it will be recomputed") from error
    except (ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        raise DamagedRecord(f"{path}: not a record ({error}); it will be recomputed") from error
    return record


def check_keys(content: Mapping[str, Any]) -> None:
    """Raise ValueError if a record lacks keys of its schema, or has others."""
    names = {entry.name for entry in fields(Record)}
    for found, what in ((names - LATER - content.keys(), "without"), (content.keys() - names, "unknown")):
        if found:
            raise ValueError(f"{what} {', '.join(sorted(map(str, found)))}")


def load_all(results: Path) -> tuple[list[Record], list[str]]:
    """All readable records below a results folder, by path, and a message for each damaged one."""
    records: list[Record] = []
    damaged: list[str] = []
    for path in sorted((results / "records").rglob("*.json")):
        try:
            records.append(load(path))
        except DamagedRecord as error:
            damaged.append(str(error))
    return records, damaged
