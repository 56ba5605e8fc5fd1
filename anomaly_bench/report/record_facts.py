"""What the leaderboard's page of one record shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.records.consistency import faults
from anomaly_bench.tables.aggregate import revision_fact, supervision_fact
from anomaly_bench.tables.entries import Setting
from anomaly_bench.tables.schedule import reduced_budget
from anomaly_bench.tables.table import DASH

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

NO_DATA = ("synthetic", "synthetic3d")  # datasets that are generated


def name_of(record: Record) -> str:
    """'PaDiM on Lite0: bottle, seed 0'."""
    backbone = "" if record.backbone == "none" else f" on {record.titles.get('backbone') or record.backbone}"
    return f"{record.titles.get('method') or record.method}{backbone}: {record.category}, seed {record.seed}"


class RecordFacts:
    """Of a whole record."""

    def __init__(self, record: Record) -> None:
        self.record = record

    @cached_property
    def faults(self) -> list[str]:
        """What contradicts itself."""
        return list(faults(self.record))

    @property
    def notes(self) -> list[str]:
        """What a reader has to know before comparing."""
        method = self.record.config.get("method") or {}
        own = f"made by {method['_target_']}, which is not a part of anomaly-bench" if "_target_" in method else ""
        told = (reduced_budget([self.record]), supervision_fact(self.record), revision_fact(self.record), own)
        return [*filter(None, told)]

    def metrics(self) -> Iterator[tuple[str, str, str, str]]:
        """Title, value as in tables with one more digit, exact value, revision."""
        for name, entry in self.record.metrics.items():
            metric, value = find_metric(name, [self.record.metrics]), entry["value"]
            title, scale, digits = (metric.title, metric.scale, metric.digits) if metric else (name, 1.0, 3)
            shown = (DASH, DASH) if value is None else (f"{value * scale:.{digits + 1}f}", f"{value!r}")
            now = f" (now {metric.revision})" if metric and metric.revision != entry["revision"] else ""
            yield title, *shown, f"{entry['revision']}{now}"

    def run(self) -> Iterator[tuple[str, str]]:
        """Images, training, time and size."""
        counts, cost, size = self.record.counts, self.record.cost, self.record.size
        yield "Images", f"{counts['fit']} to fit on, {counts['test']} to test, of these {counts['defects']} defective"
        yield "Training", reduced_budget([self.record]) or ("as published" if self.record.training else "none")
        for key, name in (("fit_s", "Fit"), ("score_s", "Scoring")):
            yield name, f"{cost[key]:.1f} s" if cost.get(key) is not None else DASH
        yield "Peak RAM", f"{cost['peak_ram_mb']:.0f} MB" if cost.get("peak_ram_mb") is not None else DASH
        yield "Extra parameters", f"{size.get('extra_params', 0):,.0f}"
        yield "Stored statistics", f"{size.get('stored_mb', 0):.1f} MB"

    def speeds(self) -> Iterator[tuple[str, ...]]:
        """Setting, latency, its 95th percentile, images per second, and when it was measured."""
        for entry in self.record.speed:
            numbers = (entry.get(name) for name in ("latency_ms", "latency_p95_ms", "fps"))
            texts = [DASH if number is None else f"{number:.1f}" for number in numbers]
            yield str(Setting.of(entry)), *texts, str(entry.get("measured", DASH))

    def environment(self) -> Iterator[tuple[str, str]]:
        where = {name: self.record.cost.get(name) for name in ("device", "threads")}
        for name, value in {**where, **self.record.provenance}.items():
            yield name.replace("_", "-"), DASH if value is None else str(value)

    @property
    def settings(self) -> str:
        """The resolved configuration as YAML."""
        text: str = yaml.safe_dump(self.record.config, sort_keys=False, allow_unicode=True)
        return text

    @property
    def verification(self) -> str:
        """The command that computes the record again, typed in the folder of the site."""
        method: dict[str, Any] = self.record.config.get("method") or {}
        folders = (method.get("about") or {}).get("folders") or ()
        words = ["anomaly-bench verify", f"record={self.record.path.as_posix()}"]
        words += [] if self.record.dataset in NO_DATA else ["data_root=DIR"]
        words += ["folder=DIR"] if any(method.get(key) for key in folders) else []
        return " ".join([*words, *(["--config-dir MY_CONF"] if "_target_" in method else [])])
