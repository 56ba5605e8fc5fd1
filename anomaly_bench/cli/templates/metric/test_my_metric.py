"""My metric: brute force, ties, a value computed by hand, increasing functions of the scores, undefined cases."""

import numpy as np
import pytest
from my_metric import my_metric

from anomaly_bench.protocol import Outcome


def outcome(labels, scores):
    return Outcome(np.array(labels, bool), np.array(scores, float), maps=None, masks=None)


def brute_force(made, limit):
    normal, defective = made.scores[~made.labels], made.scores[made.labels]
    thresholds = [-np.inf, *made.scores]
    return max((defective > each).mean() for each in thresholds if (normal > each).mean() <= limit)


@pytest.mark.parametrize("limit", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_brute_force_with_ties(seed, limit):
    random = np.random.default_rng(seed)
    made = outcome(random.random(60) < 0.4, random.integers(0, 12, 60))
    assert my_metric(made, limit) == pytest.approx(brute_force(made, limit))


def test_a_value_computed_by_hand():
    made = outcome([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 9, 2, 4, 10])  # one false alarm is allowed: 9
    assert my_metric(made, limit=0.25) == pytest.approx(2 / 3)


def test_an_increasing_function_changes_nothing():
    random = np.random.default_rng(0)
    labels, scores = random.random(50) < 0.5, random.normal(size=50)
    assert my_metric(outcome(labels, np.exp(3 * scores))) == my_metric(outcome(labels, scores))


def test_it_is_undefined_without_both_kinds():
    assert my_metric(outcome([0, 0], [1, 2])) is None
    assert my_metric(outcome([1, 1], [1, 2])) is None
