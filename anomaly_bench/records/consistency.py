"""What cannot be true in a record whose file is intact: for records that others made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anomaly_bench.metrics.metrics import PRO_LIMIT, evaluate
from anomaly_bench.metrics.registry import packaged_metrics
from anomaly_bench.protocol import Outcome
from anomaly_bench.records.record import DamagedRecord, Record, load

TOLERANCE = 1e-9  # of a metric that is computed again
AREAS = {"pixel_auroc": ("pixel_roc", 1.0), "pro": ("pro", PRO_LIMIT)}  # metric: its curve, most false positives
AREA_TOLERANCE = 1e-3  # of the area under a curve thinned to 500 points; found on real records: 1e-5
RECOMPUTED = ("image_auroc", "image_ap", "image_f1_max")  # from the image scores in the record


def check_records(results: Path) -> tuple[int, list[str]]:
    """The number of records below a results folder, and one line for each thing that is wrong with them."""
    paths = sorted((results / "records").rglob("*.json"))
    found: list[str] = []
    for path in paths:
        try:
            record = load(path)
        except DamagedRecord as error:
            found.append(str(error))
            continue
        if path != results / record.path:
            found.append(f"{path}: expected at {results / record.path}, by its content")
        found += [f"{path}: {fault}" for fault in faults(record)]
    return len(paths), found


def faults(record: Record) -> Iterator[str]:
    """What contradicts itself or is impossible."""
    yield from counts(record)
    for name, metric in packaged_metrics().items():
        value = record.value(name)
        if value is not None and not 0 <= value <= 1:
            yield f"{metric.title} is {value:g}; expected 0 to 1"
    yield from copied(record)
    yield from areas(record)
    scores = [image["score"] for image in record.images]
    if not all(map(math.isfinite, scores)):
        yield "an image score is NaN or infinite"
    elif len(scores) > 1 and len(set(scores)) == 1:
        yield f"all {len(scores)} image scores are {scores[0]:g}: the method told no image from another"
    else:
        yield from recomputed(record, scores)


def counts(record: Record) -> Iterator[str]:
    defects = sum(image["defect"] is not None for image in record.images)
    for name, number in (("test", len(record.images)), ("defects", defects)):
        if record.counts.get(name) != number:
            yield f"counts.{name} is {record.counts.get(name)}; the list of images has {number}"


def copied(record: Record) -> Iterator[str]:
    """Values of the pixel level that suggest a constant map, or one metric printed as another."""
    auroc, pro = record.value("pixel_auroc"), record.value("pro")
    if auroc == 0.5:
        yield "pixel AUROC is 0.5 exactly: of constant maps"
    elif auroc is not None and auroc == pro and auroc < 1:
        yield f"PRO and pixel AUROC are both {auroc:g}: one of them is the other's value"


def areas(record: Record) -> Iterator[str]:
    """Values that are not the area under their curve."""
    for name, (kind, most) in AREAS.items():
        value, curve, metric = record.value(name), record.curves.get(kind), packaged_metrics()[name]
        if value is None or not curve or not curve["x"] or record.metrics[name]["revision"] != metric.revision:
            continue
        x, y = np.array(curve["x"]), np.array(curve["y"])
        inside = np.append(x[x < most], most)
        heights = np.interp(inside, x, y)
        area = float((np.diff(inside) * (heights[1:] + heights[:-1])).sum()) / 2 / most
        if abs(area - value) > AREA_TOLERANCE:
            yield f"{metric.title} is {value:g}; the area under its curve is {area:g}"


def recomputed(record: Record, scores: Sequence[float]) -> Iterator[str]:
    """Image-level metrics that do not follow from the image scores."""
    known = packaged_metrics()
    names = [
        name
        for name in RECOMPUTED
        if name in record.metrics and record.metrics[name]["revision"] == known[name].revision
    ]
    labels = np.array([image["defect"] is not None for image in record.images], np.bool_)
    if not names or not len(scores):
        return
    values = evaluate(Outcome(labels, np.array(scores), None, None), {name: known[name] for name in names}).values
    for name in names:
        then, now = record.value(name), values[name]
        same = then == now if then is None or now is None else abs(then - now) <= TOLERANCE
        if not same:
            yield f"{known[name].title} is {then}; the image scores give {now}"
