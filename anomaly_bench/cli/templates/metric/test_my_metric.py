"""My metric: the contract of all metrics, brute force, and a value computed by hand."""

from pathlib import Path

import numpy as np
import pytest
from my_metric import my_metric

from anomaly_bench.protocol import Outcome
from anomaly_bench.testing.metric_checks import METRIC_CHECKS, check_brute_force, find

METRIC = find("my_metric", [Path(__file__).parent])


@pytest.mark.parametrize("check", METRIC_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(METRIC)


def outcome(labels, scores):
    return Outcome(np.array(labels, bool), np.array(scores, float), maps=None, masks=None)


def brute_force(made, limit):
    normal, defective = made.scores[~made.labels], made.scores[made.labels]
    thresholds = [-np.inf, *made.scores]
    return max((defective > each).mean() for each in thresholds if (normal > each).mean() <= limit)


def test_brute_force():
    check_brute_force(METRIC, brute_force)


def test_a_value_computed_by_hand():
    made = outcome([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 9, 2, 4, 10])  # one false alarm is allowed: 9
    assert my_metric(made, limit=0.25) == pytest.approx(2 / 3)


def test_it_is_undefined_without_both_kinds():
    assert my_metric(outcome([0, 0], [1, 2])) is None
    assert my_metric(outcome([1, 1], [1, 2])) is None
