"""Metrics: map a scored test set to numbers in [0, 1], higher = better. All are exact: no grid of thresholds.

Every metric here is a sum, or a maximum, over the distinct scores of the positives (defective images, defect
pixels). So the negatives are sorted once, each positive's rank among them is found by binary search, and this
ranking serves all metrics of its level. Tied scores are one threshold. Only ranks count: a strictly increasing
transform of the scores changes nothing.

Letters: P positives, Q negatives, T thresholds, R regions, V vertices of a curve; N, H, W as in `protocol`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.mapped import stretches
from anomaly_bench.metrics.ranking import _rank_images, _rank_pixels
from anomaly_bench.metrics.registry import standard_metrics

if TYPE_CHECKING:
    from anomaly_bench.metrics.ranking import Floats, Ranking, Steps
    from anomaly_bench.metrics.registry import Metric, MetricLevel
    from anomaly_bench.protocol import Maps, Outcome

PRO_LIMIT = 0.3  # false positive rate at which a returned PRO curve ends
CURVE_POINTS = 500  # in a returned curve
RUN_POINTS = 20_000  # in one run's piece of a curve, before the whole curve is thinned


class Ranked:
    """A metric computed from its level's ranking: `of` returns the part of each run of thresholds, `total` joins them.

    All metrics of a level share one ranking. Any other metric is a function of an `Outcome`.
    """

    def __init__(self, of: Callable[..., float], total: Callable[[Iterable[float]], float] = sum) -> None:
        self.of, self.total = of, total
        functools.update_wrapper(self, of)

    def __call__(self, runs: Iterable[Steps], **settings: Any) -> float:
        """The value for one ranking's `steps()`."""
        return self.total(self.of(steps, **settings) for steps in runs)


@Ranked
def auroc(steps: Steps) -> float:
    """Area under the ROC curve: P(positive > negative) + P(tied) / 2, the trapezoid with ties merged."""
    new = np.diff(steps.hits)
    not_below = float(new @ (steps.above + steps.reached)) / 2  # exact: summed in int64
    return (float(new.sum()) - not_below / steps.negatives) / steps.positives


@Ranked
def average_precision(steps: Steps) -> float:
    """Sum of (R_n - R_{n-1}) P_n over thresholds, as scikit-learn's; not the (optimistic) trapezoid."""
    precision = steps.hits[1:] / (steps.hits[1:] + steps.reached)
    return float(np.diff(steps.hits) @ precision) / steps.positives


@functools.partial(Ranked, total=max)
def f1_max(steps: Steps) -> float:
    """Largest F1 = 2 TP / (TP + FP + P) over thresholds: an oracle metric, as test labels choose the threshold."""
    return float(np.max(2 * steps.hits[1:] / (steps.hits[1:] + steps.reached + steps.positives)))


@Ranked
def pro(steps: Steps, limit: float = PRO_LIMIT) -> float:
    """Area under the per-region overlap curve up to a false positive rate of `limit`, L, divided by L.

    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, and its evaluation code: regions are
    8-connected, per image; negatives are the defect-free pixels of all test images; PRO at L is interpolated. A
    pixel raises the curve by its share of a region, along a ramp from the false positive rate above its score to
    the rate with the negatives tied with it; each ramp's integral over [0, L] is added up.
    """
    low, high = steps.above / steps.negatives, steps.reached / steps.negatives
    width = np.maximum(high - low, 1 / steps.negatives)  # ramps cut by L are at least that wide
    cut = np.maximum(limit - low, 0) ** 2 / (2 * width)
    area = np.where(high <= limit, limit - (low + high) / 2, cut)
    return float(np.diff(steps.overlap) @ area) / limit


@Ranked
def pro_at_ranks(steps: Steps, limit: float = PRO_LIMIT, thresholds: int = 5000) -> float:
    """The area under a per-region overlap curve of few points, as the evaluation code of MVTec 3D-AD (2022) has it.

    The points are at equal ranks of the Q sorted negatives: at the k-th smallest, the false positive rate counts as
    1 - k / Q also where others are tied with it, and overlap is what lies strictly above; (1, 1) ends the curve. It is
    `pro` within 1 / `thresholds` unless many negatives are tied.
    """
    ranks = np.linspace(0, steps.negatives - 1, thresholds, dtype=np.int64)
    rates = np.append((steps.negatives - 1 - ranks)[::-1], steps.negatives)  # times Q, ascending
    reached = np.searchsorted(rates, steps.reached)  # the first point at which a pixel is found
    low, high = rates[np.maximum(reached - 1, 0)] / steps.negatives, rates[reached] / steps.negatives
    cut = np.maximum(limit - low, 0) ** 2 / (2 * np.maximum(high - low, 1 / steps.negatives))
    area = np.where(high <= limit, limit - (low + high) / 2, cut)
    return float(np.diff(steps.overlap) @ area) / limit


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    values: metric -> a fraction (user-defined metrics: any number), None where undefined.
    curves: "image_roc", "pixel_roc" (x false, y true positive rate, x from 0 to 1) and "pro" (x false positive rate
    from 0 to 0.3, y overlap) -> {"x": [...], "y": [...]}, at most 500 points, rounded to 6 digits; an undefined curve
    is left out.
    """

    values: dict[str, float | None]
    curves: dict[str, dict[str, list[float]]]
    metrics: Mapping[str, Metric]

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The values as a record holds them, each with the revision of its metric."""
        return {name: self.metrics[name].entry(value) for name, value in self.values.items()}


def all_equal(outcome: Outcome) -> str:
    """'all 9 image scores are equal (0.5)', of which metrics tell nothing, and the same of the maps; else ''."""
    scores, maps = outcome.scores, () if outcome.maps is None else outcome.maps
    said = []
    if len(scores) > 1 and (scores == scores[0]).all():
        said.append(f"all {len(scores)} image scores are equal ({scores[0]:g})")
    if len(maps) and all((values == maps[0].flat[0]).all() for values in maps):
        said.append(f"all values of the maps are equal ({maps[0].flat[0]:g})")
    return " and ".join(said)


def evaluate(outcome: Outcome, metrics: Mapping[str, Metric] | None = None) -> Evaluation:
    """Compute every metric that is defined (those of `metric=standard` unless others are given), and the curves.

    Image metrics need normal and defective images; pixel metrics need maps, masks, and pixels of both kinds.
    Memory in addition to the outcome: 5 bytes per pixel, or 28 per defect pixel if these are more. Of more than
    `ranking.SORTED` pixels, the memory is that for so many, and maps in a file (`mapped`) are not read as a whole.

    Raises:
        ValueError: a shape or type is wrong, a score is NaN (it has no rank) or infinite (an overflow ties scores
            that differ), or a user-defined metric is not finite.
    """
    _check(outcome)
    chosen = standard_metrics() if metrics is None else metrics
    values: dict[str, float | None] = dict.fromkeys(chosen)
    curves: dict[str, dict[str, list[float]]] = {}
    rankings: dict[MetricLevel, Ranking | None] = {"image": _rank_images(outcome), "pixel": _rank_pixels(outcome)}
    for level, ranking in rankings.items():
        if ranking is not None:
            level_values, level_curves = _sweep(ranking, level, chosen)
            values |= level_values
            curves |= level_curves
    values |= {name: _call(each, outcome) for name, each in chosen.items() if not isinstance(each.function, Ranked)}
    return Evaluation(values, curves, chosen)


def _call(metric: Metric, outcome: Outcome) -> float | None:
    """The value of a metric that is a function of the outcome.

    Raises:
        ValueError: it is neither None nor a finite number.
    """
    if any(getattr(outcome, need) is None for need in metric.needs):
        return None
    value = metric.function(outcome, **metric.settings)
    if value is None:
        return None
    if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ValueError(f"metric {metric.name}: found {value!r}, expected a finite number, or None where undefined")
    return float(value)


def _sweep(
    ranking: Ranking, level: MetricLevel, chosen: Mapping[str, Metric]
) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """Values and curves of one level, in one pass over the thresholds."""
    metrics = {
        name: (metric.function, metric.settings)
        for name, metric in chosen.items()
        if metric.level == level and isinstance(metric.function, Ranked)
    }
    parts: dict[str, list[float]] = {name: [] for name in metrics}
    roc, overlap = [], []
    for steps in ranking.steps():
        for name, (function, settings) in metrics.items():
            parts[name].append(function.of(steps, **settings))
        x = np.column_stack((steps.above, steps.reached)).ravel() / steps.negatives  # the ends of each ramp
        roc.append(_thin(x, _ends(steps.hits) / steps.positives, RUN_POINTS))
        overlap.append(_thin(x, _ends(steps.overlap), RUN_POINTS))
    # rounding must not lift a perfect score above 1
    values = {name: min(float(function.total(parts[name])), 1.0) for name, (function, _) in metrics.items()}
    curves = {f"{level}_roc": _curve(roc, 1.0)}
    if level == "pixel":
        curves["pro"] = _curve(overlap, PRO_LIMIT)
    return values, curves


def _ends(column: NDArray[Any]) -> NDArray[Any]:
    """(T+1,) values before and after each threshold -> (2T,) both, alternating."""
    return np.column_stack((column[:-1], column[1:])).ravel()


def _curve(pieces: list[tuple[Floats, Floats]], limit: float) -> dict[str, list[float]]:
    """Join a curve's pieces from (0, 0) to (1, 1), cut it at x = limit and thin it."""
    x = np.concatenate([[0.0], *(piece[0] for piece in pieces), [1.0]])
    y = np.concatenate([[0.0], *(piece[1] for piece in pieces), [1.0]])
    if limit < 1:
        y = np.append(y[x < limit], np.interp(limit, x, y))
        x = np.append(x[x < limit], limit)
    x, y = _thin(x, y, CURVE_POINTS)
    return {"x": x.round(6).tolist(), "y": y.round(6).tolist()}


def _thin(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """At most `points` points of a rising line through V vertices, equally spaced in x + y, including both ends.

    Between two of them, dx + dy = s, the area is off by at most dx dy / 2 <= s^2 / 8: 0.001 in total for 500 points.
    """
    along = x + y
    distinct = np.concatenate(([True], along[1:] > along[:-1]))
    x, y, along = x[distinct], y[distinct], along[distinct]
    if len(along) <= points:
        return x, y
    at = np.linspace(along[0], along[-1], points)
    return np.interp(at, along, x), np.interp(at, along, y)


def _check(outcome: Outcome) -> None:
    """Raise ValueError if the outcome's arrays do not match or a score is not finite."""
    count = len(outcome.labels)
    if outcome.labels.shape != (count,) or outcome.scores.shape != (count,):
        raise ValueError(f"expected a label and score per image, found {outcome.labels.shape}, {outcome.scores.shape}")
    maps = None if outcome.maps is None else [each.shape for each in outcome.maps]
    masks = None if outcome.masks is None else [each.shape for each in outcome.masks]
    if maps is not None and (len(maps) != count or any(len(shape) != 2 for shape in maps)):
        raise ValueError(f"expected maps (N={count}, H, W), found {_sizes(maps)}")
    if maps is not None and masks is not None and maps != masks:
        raise ValueError(f"expected masks as large as the maps {_sizes(maps)}, found {_sizes(masks)}")
    for name, flags in (("labels", [outcome.labels]), ("masks", outcome.masks)):
        wrong = set() if flags is None else {each.dtype for each in flags} - {np.dtype(np.bool_)}
        if wrong:
            raise ValueError(f"expected {name} of type bool, found {', '.join(map(str, wrong))}")
    _check_finite("image scores", outcome.scores)
    if outcome.maps is not None:
        _check_finite("map scores", outcome.maps)


def _sizes(shapes: list[tuple[int, ...]]) -> str:
    """'(N, H, W)' if all images have one size."""
    return str((len(shapes), *shapes[0])) if len(set(shapes)) == 1 else f"{len(shapes)} images of several sizes"


def _check_finite(name: str, scores: Maps) -> None:
    """Raise ValueError unless every score of every image is finite; one image at a time, to save memory."""
    sizes = [image.size for image in scores]
    found = (np.count_nonzero(np.isfinite(image)) for part in stretches(scores) for image in scores[part])
    bad = np.array([size - finite for size, finite in zip(sizes, found, strict=True)], np.int64)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {sum(sizes)} {name} are NaN or infinite, in {np.count_nonzero(bad)} of {len(bad)} "
            f"images, the first at index {np.flatnonzero(bad)[0]}; a method must return finite scores"
        )
