"""Groups of records: those that one line of a table averages."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from anomaly_bench.config.settings import describe_input
from anomaly_bench.records.same_images import ImageVersions
from anomaly_bench.records.setups import holdout_of, regime_words
from anomaly_bench.tables.layout import CORRECTED, COSTS, SIZES, SPEEDS, TOTALS
from anomaly_bench.tables.schedule import reduced_budget

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record


class Setting(NamedTuple):
    """The conditions of a speed measurement."""

    device: str
    threads: int | None
    batch_size: int | None
    precision: str
    runtime: str = ""  # of an exported graph

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Setting:
        text = (entry.get("precision") or "", entry.get("runtime", ""))
        return cls(entry["device"], entry.get("threads"), entry.get("batch_size"), *text)

    def order(self) -> tuple[str, int, int, str, str]:
        return self.device, self.threads or 0, self.batch_size or 0, self.precision, self.runtime

    def __str__(self) -> str:
        batch = "" if self.batch_size is None else f"batch {self.batch_size}"
        return ", ".join(filter(None, (place(self.device, self.threads), batch, self.precision, self.runtime)))


def place(device: str, threads: int | None) -> str:
    return device if threads is None else f"{device}, {threads} thread{'' if threads == 1 else 's'}"


@dataclass(frozen=True)
class ResultGroup:
    """A method on a dataset, with one backbone, one set of hyper-parameters and, if speed is shown, one speed setting.

    Attributes:
        title, backbone: as printed; `label`: the hyper-parameters that differ between groups with the same title.
        records: by category, all of one setup.
        sample: any of them.
        images: a footnote if they were made from other images than others, see `ImageVersions.note`.
    """

    title: str
    backbone: str
    label: str
    records: Mapping[str, Sequence[Record]]
    sample: Record
    setting: Setting | None = None
    images: str = ""

    @property
    def full_title(self) -> str:
        return f"{self.title} ({self.label})" if self.label else self.title

    @property
    def name(self) -> str:
        """'PaDiM (dims=50) on R18'."""
        return f"{self.full_title} on {self.backbone}" if self.backbone else self.full_title

    @functools.cached_property
    def budget(self) -> str:
        """A footnote if the method was trained for less than published, see `reduced_budget`; else ''."""
        return reduced_budget([record for part in self.records.values() for record in part])

    def read(self, record: Record, name: str) -> float | None:
        """One number of a record; None if undefined or not measured."""
        source: Mapping[str, Any] = {name: record.value(name)}
        if name in TOTALS or name.startswith(CORRECTED):
            source = corrected_values(record)
        elif name in SPEEDS:
            source = self.timing(record)
        elif name in SIZES or name in COSTS:
            source = record.size if name in SIZES else record.cost
        number = source.get(name)
        return number if number is not None and math.isfinite(number) else None

    def timing(self, record: Record) -> Mapping[str, Any]:
        """A record's latest speed entry in this setting; empty if there is none."""
        return next((each for each in reversed(record.speed) if Setting.of(each) == self.setting), {})

    def text(self, name: str) -> str:
        """One of `layout.TEXTS`."""
        return self.backbone or "none" if name == "backbone" else describe_input(self.sample.input)


def corrected_values(record: Record) -> dict[str, Any]:
    """A record's numbers under corrected labels, by name in tables; empty: there are none."""
    if record.corrected is None:
        return {}
    metrics = {CORRECTED + name: entry["value"] for name, entry in record.corrected["metrics"].items()}
    return {"images_changed": len(record.corrected["images"]), **metrics}


def group_records(records: Sequence[Record], with_speed: bool) -> list[ResultGroup]:
    """Groups sorted by title, backbone, dataset, hyper-parameters and speed setting."""
    pairs: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    methods, backbones = _titles(records, "method"), _titles(records, "backbone")
    for record in records:
        pairs[methods[record.method], backbones[record.backbone], record.dataset].append(record)
    found = []
    versions = ImageVersions(records)
    for key in sorted(pairs, key=lambda key: (key[0].casefold(), key[1].casefold(), key)):
        title, backbone, _ = key
        for label, part in _variants(pairs[key], versions):
            categories: dict[str, list[Record]] = defaultdict(list)
            for record in part:
                categories[record.category].append(record)
            images = versions.note(part)
            speeds = {Setting.of(each) for record in part for each in record.speed} if with_speed else set()
            for setting in sorted(speeds, key=Setting.order) or (None,):
                found.append(ResultGroup(title, backbone, label, categories, part[0], setting, images))
    return found


def _titles(records: Sequence[Record], part: str) -> dict[str, str]:
    """Name -> title of methods or backbones; duplicate titles get the name appended."""
    names = {getattr(record, part): record for record in records}
    titles = {name: record.titles.get(part) or name for name, record in names.items()}
    shared = Counter(titles.values())
    full = {name: title if shared[title] == 1 else f"{title} ({name})" for name, title in titles.items()}
    return {**full, "none": ""} if part == "backbone" else full


def _variants(records: Sequence[Record], versions: ImageVersions) -> list[tuple[str, list[Record]]]:
    """Records of one method and backbone by settings and images, labelled 'dims=50'; '' if there is one part."""
    keys: dict[tuple[Any, ...], str] = {}  # records share their configuration, see `records.outlines`
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        alike = (
            id(record.config),
            record.protocol,
            record.oracle,
            record.precision,
            id(record.input),
            str(record.regime),
            holdout_of(record),
        )
        if alike not in keys:
            keys[alike] = json.dumps(settings_of(record), sort_keys=True, default=str)
        parts[keys[alike]].append(record)
    settings = {key: settings_of(part[0]) for key, part in parts.items()}
    paths = sorted({path for each in settings.values() for path in each})
    differing = [path for path in paths if len({as_typed(each.get(path, ...)) for each in settings.values()}) > 1]
    found = []
    for key in sorted(parts, key=lambda key: [_natural(settings[key].get(path)) for path in differing]):
        label = [f"{path}={as_typed(settings[key].get(path, ...))}" for path in differing]
        found += [(", ".join(label + mark), part) for mark, part in _unmixed(parts[key], versions)]
    return found


def _unmixed(records: Sequence[Record], versions: ImageVersions) -> list[tuple[list[str], list[Record]]]:
    """Split by version of the images, then duplicates (same category, seed and draw) by the start of fingerprints."""
    numbers = [versions.number(record) for record in records]
    keys = [(record.category, record.repetition, number) for record, number in zip(records, numbers, strict=True)]
    counts = Counter(keys)
    parts: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for key, number, record in zip(keys, numbers, records, strict=True):
        parts[number, record.fingerprint[:8] if counts[key] > 1 else ""].append(record)

    def marks(number: int, mark: str) -> list[str]:
        other = f"other images {number}" if number > 1 else "other images"
        return [*([other] if number else []), *([mark] if mark else [])]

    return [(marks(*key), parts[key]) for key in sorted(parts)]


def settings_of(record: Record) -> dict[str, Any]:
    """Dotted path -> value of every setting of method, backbone and setup that can change a score."""
    method = dict(record.config.get("method") or {})
    about, _ = method.pop("about", {}), method.pop("seed", None)  # the seed is the record's own
    method |= {"revision": about["revision"]} if "revision" in about else {}
    setup = [(name, getattr(record, name)) for name in ("protocol", "oracle", "precision")]
    setup.append(("task", "-".join(regime_words(record)) or "one_class"))
    if record.holdout:
        setup += zip(("holdout", "max_false_alarms"), holdout_of(record), strict=True)
    setup += [(f"input.{name}", record.input.get(name)) for name in ("resize", "crop", "filter", "bits")]
    return dict((*_flat(method, ""), *_flat(record.config.get("backbone"), "backbone."), *setup))


def _flat(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{path}{key}.")
    else:
        yield path.rstrip("."), content


def as_typed(value: Any) -> str:
    """A configured value as a user would type it; hashes are cut to 8 digits."""
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{64}", value) else value
    return "unset" if value is ... else json.dumps(value, default=str)


def _natural(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers by value, then text."""
    number = isinstance(value, int | float)
    return (0, value, "") if number else (1, 0, as_typed(value))
