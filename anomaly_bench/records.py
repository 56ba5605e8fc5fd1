"""Records: what remains of a run. One JSON file per task, test set, method, backbone, seed and fingerprint.

Everything that anomaly-bench prints is a function of these files. A record is written once, atomically, and
never overwritten by one of another fingerprint; `results.csv` is derived from the records and read by nobody.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from anomaly_bench.cache import cache_root

SCHEMA = 1
CSV_COLUMNS = (
    *("dataset", "category", "method", "backbone", "seed", "image_auroc", "pixel_auroc", "pro"),
    *("image_ap", "pixel_ap", "image_f1_max", "pixel_f1_max"),
    *("fps", "latency_ms", "extra_params", "extra_mb", "stored_mb", "fit_s", "peak_ram_mb", "peak_gpu_mb"),
    *("device", "threads", "batch_size", "protocol", "resize", "crop", "oracle", "precision"),
    *("fit_images", "test_images", "fingerprint"),
)


class DamagedRecord(Exception):
    """A record file that cannot be read, or whose content does not match its checksum."""


@dataclass
class Record:
    """One fitted and scored test set of one task.

    Attributes:
        fingerprint: 64 hex digits over everything that can change a score.
        dataset, task, test: where the images come from; `test` is the name of the test set.
        group: "textures", "objects" or None.
        categories: every category of the dataset, in the papers' order: [{"name": ..., "group": ...}].
        method, backbone: names; "none" where the method uses no backbone.
        titles: how tables print {"dataset": ..., "method": ..., "backbone": ...}.
        input: {"resize": [H, W], "crop": [H, W] or None}.
        counts: {"fit": images, "test": images, "defects": defective test images}.
        metrics: name -> {"value": fraction or None where undefined, "revision": int}.
        curves: name -> {"x": [...], "y": [...]}, at most 500 points.
        images: [{"file": ..., "defect": name or None, "score": ...}] in the test set's order.
        speed: one entry per machine setting, see `anomaly_bench.speed`; empty with `speed=false`.
        size: {"extra_params": floats, "extra_mb": 10^6 bytes, "stored_mb": 10^6 bytes}.
        cost: {"fit_s", "score_s": seconds, "peak_ram_mb", "peak_gpu_mb": 10^6 bytes or None, "device", "threads"}, and
            of a backbone "extraction": {"images": passed through it by this job, "s": seconds of it in fit and scoring
            or None, "cached": whether features were read that an earlier pass had kept; then its seconds count}.
        config: the resolved configuration; provenance: versions and code of the run.
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
    metrics: dict[str, dict[str, Any]]
    curves: dict[str, dict[str, list[float]]]
    images: list[dict[str, Any]]
    speed: list[dict[str, Any]]
    size: dict[str, float]
    cost: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    schema: int = field(default=SCHEMA)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Two records with the same are one."""
        return self.dataset, self.method, self.backbone, self.task, self.test, self.seed, self.fingerprint

    @property
    def path(self) -> Path:
        """Where it lies below the results folder; legal on Windows."""
        file = f"{legal(self.task)}-s{self.seed}-{self.fingerprint[:8]}.json"
        if self.test != "test":
            file = f"{legal(self.task)}-{legal(self.test)}-s{self.seed}-{self.fingerprint[:8]}.json"
        return Path("records", legal(self.dataset), f"{legal(self.method)}-{legal(self.backbone)}", file)

    def value(self, metric: str) -> float | None:
        """A metric as a fraction; None where it is undefined or was not computed."""
        entry = self.metrics.get(metric)
        return None if entry is None else entry["value"]

    @property
    def localises(self) -> bool:
        """Whether the method made anomaly maps."""
        return bool(self.counts.get("maps", 0))


def legal(name: str) -> str:
    """A file name that every system takes: letters, digits, '._-'; a changed name ends in 6 digits of its hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(". ") or "_"
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", plain)
    return plain if plain == name and not reserved else f"{'_' if reserved else ''}{plain}_{digest(name)[:6]}"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain values, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk's error names no file
        raise


def save(record: Record, results: Path) -> Path:
    """Write a record below `results` and return its path."""
    path = results / record.path
    write(record, path)
    return path


def write(record: Record, path: Path) -> None:
    content = asdict(record)
    content["checksum"] = digest(content)
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Record:
    """Read one record.

    Raises:
        DamagedRecord: not JSON, fields missing, or changed since it was written.
    """
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("checksum")
        if content.get("schema") != SCHEMA:
            raise DamagedRecord(f"{path}: schema {content.get('schema')}, expected {SCHEMA}; delete it to recompute")
        names = {entry.name for entry in fields(Record)}
        if content.keys() != names or checksum != digest(content):
            raise DamagedRecord(f"{path}: changed or cut off since it was written; it will be recomputed")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecord(f"{path}: not a record ({error}); it will be recomputed") from error
    return Record(**content)


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


UNREAD = {"curves": dict, "images": list, "provenance": dict}  # by tables, and 3/4 of a file
SHARED = ("categories", "titles", "input", "config")  # alike in many records


def outlines(results: Path) -> tuple[list[Record], list[str]]:
    """As `load_all` without what tables do not read (`UNREAD`, and the samples of speeds).

    What a file says is kept in the user's cache by its size and time of change, so that 10,000 records need no 10 s.
    """
    kept_in = cache_root() / "outlines" / f"{digest(str(results.resolve()))[:16]}.json"
    version = [SCHEMA, *(entry.name for entry in fields(Record))]
    kept: dict[str, Any] = {"version": version, "shared": [], "files": {}}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not what we write
        read = json.loads(kept_in.read_bytes())
        kept = read if read["version"] == version and read.keys() == kept.keys() else kept
    files: dict[str, list[Any]] = {}
    shared = {json.dumps(value): place for place, value in enumerate(kept["shared"])}
    damaged: list[str] = []
    for name in sorted(_files(results / "records")):
        stat = os.stat(name)
        stamp = [stat.st_size, stat.st_mtime_ns]
        try:
            known = kept["files"].get(name)
            files[name] = known if known and known[0] == stamp else [stamp, _outline(load(Path(name)), shared)]
        except DamagedRecord as error:
            damaged.append(str(error))
    values = [json.loads(text) for text in shared]
    if files != kept["files"]:
        with contextlib.suppress(OSError):  # without it the next call takes longer
            write_atomically(kept_in, json.dumps({**kept, "shared": values, "files": files}, separators=(",", ":")))
    empty = {name: type_() for name, type_ in UNREAD.items()}
    made = [
        Record(**{**content, **{name: values[content[name]] for name in SHARED}, **empty})
        for _, content in files.values()
    ]
    return made, damaged


def _files(folder: Path) -> Iterator[str]:
    """Paths of the JSON files below a folder; as text, which is quicker by far than `Path.rglob`."""
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if name.endswith(".json"))


def _outline(record: Record, shared: dict[str, int]) -> dict[str, Any]:
    """The record's fields but `UNREAD`; for those that many records have alike their place in `shared`."""
    speed = [{name: value for name, value in entry.items() if not isinstance(value, list)} for entry in record.speed]
    content = {entry.name: getattr(record, entry.name) for entry in fields(Record) if entry.name not in UNREAD}
    places = {name: shared.setdefault(json.dumps(content[name]), len(shared)) for name in SHARED}
    return {**content, "speed": speed, **places}


def csv_row(record: Record) -> Mapping[str, Any]:
    """The flat row of one record in results.csv; the latest speed entry counts."""
    speed = record.speed[-1] if record.speed else {}
    flat: dict[str, Any] = {
        **vars(record),
        **{name: record.value(name) for name in record.metrics},
        **record.size,
        **record.cost,
        **{name: speed[name] for name in ("fps", "latency_ms", "batch_size", "device", "threads") if name in speed},
        "category": record.task if record.test == "test" else f"{record.task}/{record.test}",
        "resize": "x".join(map(str, record.input["resize"])),
        "crop": "x".join(map(str, record.input["crop"] or [])),
        "fit_images": record.counts["fit"],
        "test_images": record.counts["test"],
    }
    return {name: flat.get(name) for name in CSV_COLUMNS}


def write_csv(records: Iterable[Record], results: Path) -> Path:
    """Rebuild results.csv from records, under a lock, by one atomic rename."""
    import io

    path = results / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_row(record) for record in records)
    with FileLock(path.with_name(".results.csv.lock")):
        write_atomically(path, text.getvalue())
    return path
