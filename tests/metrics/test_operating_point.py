"""Metrics at a threshold: by hand, by brute force, and where they are undefined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.metrics.registry import metric_set, packaged_metrics
from anomaly_bench.protocol import Outcome
from anomaly_bench.testing.metric_checks import check_brute_force, outcomes

OPERATING = metric_set("operating")


@pytest.fixture
def by_hand():
    """Two defects, one found; three normal images, one false alarm; 2 of 4 defect pixels and 1 other one above 0.5."""
    labels, scores = np.array([1, 1, 0, 0, 0], bool), np.array([0.9, 0.2, 0.7, 0.5, 0.1], np.float32)
    maps, masks = np.zeros((5, 2, 4), np.float32), np.zeros((5, 2, 4), bool)
    masks[0, 0], maps[0, 0, :2], maps[2, 1, 1], maps[3, 1, 1] = True, 0.6, 0.9, 0.5
    return Outcome(labels, scores, maps, masks, 0.5, 0.5)


def test_values_by_hand(by_hand):
    assert evaluate(by_hand, OPERATING).values == pytest.approx(
        {
            "image_f1": 2 / (2 + 2),
            "image_recall": 1 / 2,
            "image_false_alarms": 1 / 3,
            "image_f1_floor": 4 / (5 + 2),
            "pixel_f1": 4 / (3 + 4),
        }
    )


def test_brute_force():
    def pixels(outcome):
        above = [(values > outcome.pixel_threshold, mask) for values, mask in zip(outcome.maps, outcome.masks)]  # noqa: B905
        told = [(bool(alarm), bool(real)) for one, two in above for alarm, real in zip(one.flat, two.flat)]  # noqa: B905
        hits = told.count((True, True))
        return 2 * hits / (2 * hits + told.count((True, False)) + told.count((False, True)))

    check_brute_force(packaged_metrics()["pixel_f1"], pixels)


def test_no_threshold_is_better_than_the_oracle():
    both = {name: packaged_metrics()[name] for name in ("image_f1", "image_f1_max", "image_f1_floor")}
    for outcome in outcomes():
        for threshold in np.unique(outcome.scores):
            values = evaluate(replace(outcome, image_threshold=float(threshold)), both).values
            assert values["image_f1"] <= values["image_f1_max"]
        assert values["image_f1_floor"] <= values["image_f1_max"]


def test_undefined(by_hand):
    without = replace(by_hand, image_threshold=None, pixel_threshold=None)
    assert {name for name, value in evaluate(without, OPERATING).values.items() if value is not None} == {
        "image_f1_floor"
    }
    normal = Outcome(*(np.asarray(each)[~by_hand.labels] for each in list(vars(by_hand).values())[:4]), 0.5, 0.5)
    assert evaluate(normal, OPERATING).values == {
        **dict.fromkeys(OPERATING),
        "image_false_alarms": pytest.approx(1 / 3),
    }
