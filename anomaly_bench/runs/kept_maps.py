"""Recompute metrics from the maps that `save_maps=true` stored, and compare them with the records. No torch here."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench import records
from anomaly_bench.config.settings import input_size
from anomaly_bench.data.geometry import Frame, has_masks
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.files import composed, digest, tree
from anomaly_bench.mapped import gathered
from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.metrics.thresholds import thresholds_of
from anomaly_bench.protocol import Outcome
from anomaly_bench.records.record import DamagedRecord
from anomaly_bench.records.setups import describe
from anomaly_bench.runs.rescoring import POOLED, Result, Work
from anomaly_bench.runs.tasks import make_task

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter
    from anomaly_bench.data.dataset import Dataset, Sample
    from anomaly_bench.metrics.metrics import Evaluation
    from anomaly_bench.metrics.registry import Metric
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.corrected_labels import CorrectedLabels


def kept_maps(place: Path) -> list[Path]:
    """The records that have a `maps.npy`."""
    folders = [folder for folder in tree(place.resolve()) if (folder / "maps.npy").is_file()]
    return sorted(path for folder in folders if (path := folder.with_name(f"{folder.name}.json")).is_file())


def recorded(place: Path) -> list[Path]:
    """The records in a results folder, or in a folder of records."""
    root = place / "records" if (place / "records").is_dir() else place
    return sorted(path for folder in tree(root.resolve()) for path in folder.glob("*.json"))


def joined(parts: Sequence[Any]) -> list[Any] | None:
    """The images of all parts; None where one has none."""
    return None if any(part is None for part in parts) else [image for part in parts for image in part]


def needs_maps(metrics: Mapping[str, Metric]) -> bool:
    return any(metric.needs_maps for metric in metrics.values())


def source_category(record: Record) -> str:
    """The category of the test images, even if the model was fitted on several."""
    return record.test if record.test in (record.regime or {}).get("categories", ()) else record.task


class KeptMaps:
    """The maps that a run stored with its records.

    Args:
        kept: the records' files.
        metrics: to be computed.
        update: write the values into records that lack them or hold those of an older revision.
        labels: corrected ones, under which the metrics are computed as well.
        pooled: compute them also over the images of all categories together.
    """

    def __init__(
        self,
        dataset: Dataset,
        kept: list[Path],
        metrics: Mapping[str, Metric],
        threads: int,
        update: bool,
        reporter: Reporter,
        labels: CorrectedLabels | None = None,
        pooled: bool = False,
    ) -> None:
        self.dataset, self.metrics, self.threads, self.update = dataset, metrics, threads, update
        self.reporter, self.labels, self.pooled = reporter, labels, pooled
        self.records: dict[Path, Record] = {}
        for path in kept:
            try:
                self.records[path] = records.load(path)
            except DamagedRecord as error:
                reporter.warn(str(error))
        self.makers = makers(self.records)

    def work(self, categories: Sequence[str]) -> tuple[list[Work], list[str]]:
        """One piece per record, those with the same masks in a row; categories without a record are fine."""
        wanted = {
            path: record
            for path, record in self.records.items()
            if record.dataset == self.dataset.name and source_category(record) in categories
        }
        if self.labels:
            self.labels.check_known([each for each in self.records.values() if each.dataset == self.dataset.name])
        order = sorted(
            wanted, key=lambda path: (categories.index(source_category(wanted[path])), str(wanted[path].input), path)
        )
        work: list[Work] = [(path.stem, functools.partial(self.recompute, path, wanted[path])) for path in order]
        parts: dict[str, list[Path]] = defaultdict(list)
        for path in order if self.pooled else ():
            parts[self.makers[path]].append(path)
        return [*work, *((f"{maker}, pooled", functools.partial(self.pool, part)) for maker, part in parts.items())], []

    def nothing(self, categories: Sequence[str]) -> str:
        """Why there is no work."""
        have = sorted({f"{record.dataset} {record.category}" for record in self.records.values()})
        expected = f"{self.dataset.name} {shorten(categories)}"
        return f"it has maps of {shorten(have) or 'damaged records'}, none of {expected}; set dataset and category"

    def recompute(self, path: Path, record: Record) -> list[Result]:
        """Recompute the metrics of one record and compare them with its own.

        Raises:
            DataError: the dataset's test images differ from the record's, or the maps are damaged.
        """
        images = self.images(record)
        known = self.metrics_for(path, record)
        outcome = self.outcome(path, record, images, needs_maps(known))
        result = evaluate(outcome, known)
        self.compare(path, record, result)
        defects, about = int(outcome.labels.sum()), (source_category(record), record.category, len(images))
        fixed = self.correct(path, record, images, outcome) if self.labels else None
        return [Result(self.makers[path], *about, defects, result, fixed)]

    def pool(self, paths: Sequence[Path]) -> list[Result]:
        """The metrics over the images of several records of one maker, each with its own model; no thresholds."""
        shared = set.intersection(*(set(self.metrics_for(path, self.records[path])) for path in paths))
        known = {name: metric for name, metric in self.metrics.items() if name in shared and not metric.needs_threshold}
        parts = [
            self.outcome(path, self.records[path], self.images(self.records[path]), needs_maps(known)) for path in paths
        ]
        labels, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores"))
        whole = Outcome(labels, scores, joined([part.maps for part in parts]), joined([part.masks for part in parts]))
        count, defects = len(whole.labels), int(whole.labels.sum())
        return [Result(self.makers[paths[0]], POOLED, POOLED, count, defects, evaluate(whole, known))]

    def images(self, record: Record) -> tuple[Sample, ...]:
        """The dataset's images of a record; DataError: they are others."""
        regime = record.regime or {"name": "one_class"}
        parts = {name: self.dataset.task(name) for name in regime.get("categories", [record.task])}
        images = make_task(regime, record.task, parts, record.seed).tests.get(record.test, ())
        found = [(image.id, image.label) for image in images]
        recorded = [(composed(each["file"]), each["defect"] and composed(each["defect"])) for each in record.images]
        if found != recorded:
            raise DataError(
                f"{len(found)} test images in {self.dataset.root} differ from the record's {len(record.images)}; "
                "set data_root to the folder it was computed from"
            )
        return images

    def metrics_for(self, path: Path, record: Record) -> dict[str, Metric]:
        """Those to be computed; without the maps of a method that makes some, those of images."""
        whole = not record.localises or (path.with_suffix("") / "maps.npy").is_file()
        return {name: metric for name, metric in self.metrics.items() if whole or not metric.needs_maps}

    def outcome(self, path: Path, record: Record, images: tuple[Sample, ...], needs_maps: bool) -> Outcome:
        resize, crop = input_size(record.input)
        maps, masks = None, None
        if record.localises and needs_maps:
            masks = read_masks(images, Frame(resize, crop), self.threads) if has_masks(images) else None
            maps = read_kept(path.with_suffix("") / "maps.npy", (len(images), *(crop or resize)))
        scores = np.array([each["score"] for each in record.images], np.float32)
        labels = np.array([image.label is not None for image in images])
        limits = record.thresholds or {}
        return Outcome(labels, scores, maps, masks, limits.get("image"), limits.get("pixel"))

    def correct(self, path: Path, record: Record, images: tuple[Sample, ...], outcome: Outcome) -> Record:
        """The record with its values under corrected labels, written with `update`."""
        assert self.labels is not None
        rows, fixed, masks = self.labels.of(record), list(images), outcome.masks
        for place, row in rows.items():
            fixed[place] = row.applied(images[place], masked=masks is not None)
        result = None
        if rows:
            frame, labels = Frame(*input_size(record.input)), np.array([image.label is not None for image in fixed])
            if masks is not None:
                masks = [frame.mask(image, (0, 0)) if n in rows else masks[n] for n, image in enumerate(fixed)]
            result = evaluate(replace(outcome, labels=labels, masks=masks), self.metrics_for(path, record))
        made = replace(record, corrected=self.labels.entry(record, fixed, result))
        if self.update:
            made = replace(records.load(path), corrected=made.corrected)
            records.write_record(made, path)
        return made

    def compare(self, path: Path, record: Record, result: Evaluation) -> None:
        """Report values that changed, and report (or with `update` write) those missing from the record or outdated."""
        stale, changed = [], []
        for name, entry in result.entries.items():
            if self.metrics[name].needs_threshold and not record.thresholds:
                continue  # it is shown as undefined
            held = record.metrics.get(name)
            if held is None or held["revision"] != entry["revision"]:
                stale.append(name)
            elif not same(held["value"], entry["value"]):
                changed.append(name)
        if changed:
            self.reporter.warn(
                f"{path.stem}: {', '.join(changed)} not as recorded: masks or maps have changed since"
                + ("; the record is not updated" if stale and self.update else "")
            )
        elif stale and self.update:
            metrics, curves = {**record.metrics, **result.entries}, {**record.curves, **result.curves}
            records.write_record(replace(record, metrics=metrics, curves=curves), path)
            self.reporter.say(f"{path.stem}: updated ({', '.join(stale)})")
        elif stale:
            self.reporter.warn(
                f"{path.stem}: {', '.join(stale)} missing from the record or outdated; update=true fixes it"
            )


def at_rate(record: Record, max_false_alarms: float) -> Record:
    """A record with thresholds at this rate, without the metrics at another; the same where it has no thresholds."""
    if not record.thresholds or not record.held_out or record.thresholds["max_false_alarms"] == max_false_alarms:
        return record
    known = {name: find_metric(name, [record.metrics]) for name in record.metrics}
    kept = {name: record.metrics[name] for name, each in known.items() if not (each and each.needs_threshold)}
    return replace(record, metrics=kept, thresholds=thresholds_of(record.held_out, max_false_alarms))


def same(one: float | None, other: float | None) -> bool:
    """Equal up to the order of summation, which may differ between machines."""
    return one is other if one is None or other is None else math.isclose(one, other, abs_tol=1e-9)


def makers(found: Mapping[Path, Record]) -> dict[Path, str]:
    """Table titles of records: method, backbone, seed and input; a hash where other settings differ."""
    names, settings = {}, {}
    for path, record in found.items():
        titles = [record.titles["method"], *([] if record.backbone == "none" else [record.titles["backbone"]])]
        names[path] = f"{' on '.join(titles)}, seed {record.seed}, {describe(record)}"
        settings[path] = digest({key: value for key, value in record.config.items() if key != "batch_size"})
    variants = defaultdict(set)
    for path, name in names.items():
        variants[name].add(settings[path])
    several = {path for path, name in names.items() if len(variants[name]) > 1}
    return {
        path: name + (f", settings {settings[path][:8]}" if path in several else "") for path, name in names.items()
    }


@functools.lru_cache(maxsize=1)  # shared by all methods and seeds of one category
def read_masks(images: tuple[Sample, ...], frame: Frame, threads: int) -> NDArray[np.bool_]:
    """(N, H, W) masks at an input's size; many are kept in a file."""
    with ThreadPoolExecutor(threads) as pool:
        masks = gathered(pool.map(lambda image: frame.mask(image, (0, 0))[None], images), len(images))
    assert masks is not None, "a test set has at least one image"
    return masks


def read_kept(path: Path, expected: tuple[int, ...]) -> NDArray[np.float32]:
    """The (N, H, W) maps of a `maps.npy`, memory-mapped."""
    try:
        maps: NDArray[np.float32] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save_maps=true overwrite=true recreates it") from error
    if maps.shape != expected:
        raise DataError(f"{path}: maps {maps.shape}; expected {expected}: save_maps=true overwrite=true recreates them")
    return maps
