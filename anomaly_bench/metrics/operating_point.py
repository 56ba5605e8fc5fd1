"""Metrics at a threshold from held-out normal images, see `thresholds`; what lies above it counts as defective.

None where a test set has not what they are a share of; F1, as F1-max, where it has one kind of images or pixels only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.mapped import release, stretches

if TYPE_CHECKING:
    from anomaly_bench.protocol import Outcome


def image_f1(outcome: Outcome) -> float | None:
    """F1 = 2 TP / (TP + FP + P) of the images above the threshold."""
    alarms = _alarms(outcome)
    return _f1(int(alarms[outcome.labels].sum()), int(alarms.sum()), int(outcome.labels.sum()), len(alarms))


def image_recall(outcome: Outcome) -> float | None:
    """The share of defective images above the threshold."""
    found = _alarms(outcome)[outcome.labels]
    return float(found.mean()) if len(found) else None


def image_false_alarms(outcome: Outcome) -> float | None:
    """The share of normal images above the threshold; `max_false_alarms` is what was asked for."""
    alarms = _alarms(outcome)[~outcome.labels]
    return float(alarms.mean()) if len(alarms) else None


def image_f1_floor(outcome: Outcome) -> float | None:
    """F1 of calling every image defective: what any F1, F1-max too, must be held against."""
    defects, images = int(outcome.labels.sum()), len(outcome.labels)
    return _f1(defects, images, defects, images)


def pixel_f1(outcome: Outcome) -> float | None:
    """F1 of the pixels above the threshold, over all pixels of all test images."""
    assert outcome.maps is not None
    assert outcome.masks is not None
    assert outcome.pixel_threshold is not None
    hits = alarms = defects = pixels = 0
    for part in stretches(outcome.maps):
        for values, mask in zip(outcome.maps[part], outcome.masks[part], strict=True):
            above = values > outcome.pixel_threshold
            hits += int(np.count_nonzero(above & mask))
            alarms += int(np.count_nonzero(above))
            defects += int(np.count_nonzero(mask))
            pixels += mask.size
        release(outcome.masks)
    return _f1(hits, alarms, defects, pixels)


def _alarms(outcome: Outcome) -> NDArray[np.bool_]:
    """(N,) whether an image is above the threshold."""
    assert outcome.image_threshold is not None
    return np.asarray(outcome.scores > outcome.image_threshold)


def _f1(hits: int, alarms: int, positives: int, count: int) -> float | None:
    """None where all or none of the `count` are positives."""
    return 2 * hits / (alarms + positives) if 0 < positives < count else None
