"""What every metric must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.config.compose import compose
from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.metrics.registry import Metric, chosen_metrics
from anomaly_bench.protocol import Outcome

CLOSE = 1e-9  # between two orders of summation


def find(name: str, folders: Sequence[Path] = ()) -> Metric:
    """The metric of a YAML.

    Raises:
        UsageError: there is none of that name, or it cannot be used.
    """
    found = chosen_metrics(compose("config", [f"metric={name}"], folders))
    if list(found) != [name]:
        raise UsageError(
            f"metric={name}: found the metrics {', '.join(found)}, expected a single one; name one of them"
        )
    return found[name]


def value_of(metric: Metric, outcome: Outcome) -> float | None:
    return evaluate(outcome, {metric.name: metric}).values[metric.name]


def outcomes() -> Iterator[Outcome]:
    """Random test sets of 12 images of 16 x 16 pixels: scores without ties, with ties, and all the same."""
    for seed, levels in enumerate((None, 5, 2, 1)):
        random = np.random.default_rng(seed)
        labels = np.arange(12) % 3 == 0
        masks = np.zeros((12, 16, 16), bool)
        for row, mask in enumerate(masks[labels]):
            mask = masks[np.flatnonzero(labels)[row]]
            mask[2 : 4 + row, 3:7], mask[11:13, 10 : 12 + row] = True, True  # two regions
        scores = random.normal(size=12) + labels
        maps = random.normal(size=masks.shape) + masks
        if levels:
            scores, maps = (np.floor(levels * (each - each.min()) / np.ptp(each) / 1.0001) for each in (scores, maps))
        yield Outcome(labels, scores, maps.astype(np.float32), masks, between(scores), between(maps))


def between(values: NDArray[Any]) -> float:
    """A threshold that no value ties with, about in the middle."""
    distinct = np.append(np.unique(values), np.max(values) + 1)
    return float(distinct[(len(distinct) - 1) // 2 :][:2].mean())


def outcome_arrays(outcome: Outcome) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    return tuple(np.asarray(each) for each in (outcome.labels, outcome.scores, outcome.maps, outcome.masks))  # type: ignore[return-value]


def check_range(metric: Metric) -> None:
    for outcome in outcomes():
        value = value_of(metric, outcome)
        assert value is not None, "None though there are labels, scores, maps and masks of both kinds: return a number"
        if metric.unit == "%":
            assert 0 <= value <= 1, f"found {value}, expected a fraction from 0 to 1; give another unit for others"


def check_monotone(metric: Metric) -> None:
    for outcome in outcomes():
        labels, scores, maps, masks = outcome_arrays(outcome)
        maps = maps.astype(np.float64)
        limits = np.array([outcome.image_threshold, outcome.pixel_threshold], np.float64)
        scores, maps, (image, pixel) = (np.exp(each / 3) - 7 for each in (scores, maps, limits))
        raised = Outcome(labels, scores, maps, masks, float(image), float(pixel))
        one, two = value_of(metric, outcome), value_of(metric, raised)
        assert equal_values(one, two), (
            f"{one}, and {two} of a strictly increasing function of all scores: use ranks only"
        )


def check_ties(metric: Metric) -> None:
    for outcome in outcomes():
        order = np.random.default_rng(0).permutation(len(outcome.labels))
        labels, scores, maps, masks = (each[order] for each in outcome_arrays(outcome))
        mixed = replace(outcome, labels=labels, scores=scores, maps=maps, masks=masks)
        one, two = value_of(metric, outcome), value_of(metric, mixed)
        assert equal_values(one, two), f"{one}, and {two} of the images in another order: tied scores are one threshold"


def check_inputs(metric: Metric) -> None:
    for outcome in outcomes():
        before = [each.copy() for each in outcome_arrays(outcome)]
        value_of(metric, outcome)
        changed = [not np.array_equal(one, two) for one, two in zip(before, outcome_arrays(outcome), strict=True)]
        assert not any(changed), "labels, scores, maps or masks were changed: work on copies"


def check_undefined(metric: Metric) -> None:
    labels, scores, maps, masks = outcome_arrays(next(outcomes()))
    if metric.needs:
        value = value_of(metric, Outcome(labels, scores, None, None))
        assert value is None, f"{value} without maps, masks and thresholds, expected None"
    for kind in (True, False):
        chosen = labels == kind
        value_of(metric, Outcome(labels[chosen], scores[chosen], maps[chosen], masks[chosen], 0.0, 0.0))  # or None


def check_brute_force(metric: Metric, brute_force: Callable[..., float]) -> None:
    """Compare with a slow and obvious `brute_force(outcome, **settings)`, with and without ties."""
    for outcome in outcomes():
        one, two = value_of(metric, outcome), brute_force(outcome, **metric.settings)
        assert equal_values(one, two), f"{one}, expected {two} by brute force"


def equal_values(one: float | None, two: float | None) -> bool:
    return one is two if one is None or two is None else abs(one - two) <= CLOSE


METRIC_CHECKS: tuple[Callable[[Metric], None], ...] = (
    check_range,
    check_monotone,
    check_ties,
    check_inputs,
    check_undefined,
)
