"""Metrics against their definitions, scikit-learn, MVTec's algorithm, hand-computed values and invariances."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomaly_bench import mapped
from anomaly_bench.metrics import metrics, ranking
from anomaly_bench.metrics.metrics import all_equal, evaluate
from anomaly_bench.metrics.registry import packaged_metrics, standard_metrics
from anomaly_bench.protocol import Outcome

Array = NDArray[Any]
STANDARD = standard_metrics()
Point = tuple[float, float]
Masks = Callable[[np.random.Generator, tuple[int, ...]], Array]
quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def regions_of(mask: Array) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of a mask (H, W), by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, border = [], [left.pop()]
        while border:
            y, x = border.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        regions.append(region)
    return regions


def area_below(points: list[Point], limit: float) -> float:
    """Trapezoid area of a rising curve on [0, limit], interpolated at the limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(sorted(points)):
        if x0 < limit:
            stop = min(x1, limit)
            y_stop = y0 + (y1 - y0) * (stop - x0) / (x1 - x0) if x1 > x0 else y1
            area += (stop - x0) * (y0 + y_stop) / 2
    return area


def by_sweep(scores: Array, positive: Array) -> tuple[float, float, float] | None:
    """(AUROC, AP, F1-max) of flat scores, by trying every distinct score as a threshold."""
    p, q = int(positive.sum()), int((~positive).sum())
    if not p or not q:
        return None
    points: list[Point] = [(0.0, 0.0)]
    ap = best = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        tp, fp = int((found & positive).sum()), int((found & ~positive).sum())
        ap += (tp / p - recall) * tp / (tp + fp)
        recall = tp / p
        best = max(best, 2 * tp / (2 * tp + fp + p - tp))
        points.append((fp / q, tp / p))
    return area_below(points, 1.0), ap, best


def pro_by_sweep(maps: Array, masks: Array) -> float | None:
    """PRO as IJCV 2021 defines it: mean overlap of every region against the false positive rate."""
    if not masks.any() or masks.all():
        return None
    regions = [(image, region) for image, mask in enumerate(masks) for region in regions_of(mask)]
    points: list[Point] = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= threshold
        overlaps = [np.mean([found[image, y, x] for y, x in region]) for image, region in regions]
        points.append((float((found & ~masks).sum() / (~masks).sum()), float(np.mean(overlaps))))
    return area_below(points, 0.3) / 0.3


def pro_by_mvtec(maps: Array, masks: Array) -> float:
    """The algorithm of MVTec's evaluation code (2021): sort all pixels, cumulate, keep the last of a tie."""
    from skimage.measure import label

    false, share, count = (~masks).astype(float).ravel(), np.zeros(masks.shape), 0
    for image, mask in enumerate(masks):
        labels, found = label(mask, connectivity=2, return_num=True)
        for region in range(1, found + 1):
            share[image][labels == region] = 1 / (labels == region).sum()
        count += found
    order = np.argsort(maps, axis=None, kind="stable")[::-1]
    scores = maps.ravel()[order]
    last = np.append(np.diff(scores) != 0, True)
    fpr = np.cumsum(false[order])[last] / false.sum()
    overlap = np.cumsum(share.ravel()[order])[last] / count
    fpr, overlap = np.concatenate(([0], fpr, [1])), np.concatenate(([0], overlap, [1])).clip(max=1)
    inside = fpr <= 0.3
    x, y = np.append(fpr[inside], 0.3), np.append(overlap[inside], np.interp(0.3, fpr, overlap))
    return float(np.trapezoid(y, x) if hasattr(np, "trapezoid") else np.trapz(y, x)) / 0.3


def pro_by_mvtec_3d(maps: Array, masks: Array, thresholds: int) -> float:
    """The algorithm of MVTec 3D-AD's evaluation code: thresholds at equal ranks of the scores of normal pixels."""
    from skimage.measure import label

    labels = [label(mask, connectivity=2) for mask in masks]
    pairs = zip(maps, labels, strict=True)
    regions = [values[found == number] for values, found in pairs for number in range(1, found.max() + 1)]
    normal = np.sort(maps[~masks])
    points = [(1.0, 1.0)]
    for position in np.linspace(0, len(normal) - 1, num=thresholds, dtype=int):
        overlap = float(np.mean([(region > normal[position]).mean() for region in regions]))
        points.append((1.0 - (position + 1) / len(normal), overlap))
    return area_below(points[::-1], 0.3) / 0.3


def outcome(maps: Array, masks: Array, labels: Array | None = None) -> Outcome:
    """An outcome whose image scores are the maps' maxima and whose arrays are read-only."""
    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, bool)
    labels = masks.any((1, 2)) if labels is None else np.asarray(labels, bool)
    arrays = [labels, maps.max((1, 2)), maps, masks]
    for array in arrays:
        array.setflags(write=False)
    return Outcome(*arrays)


def row(scores: list[float], mask: str) -> Outcome:
    """One image of one row; '#' is a defect pixel."""
    return outcome(np.array([[scores]]), np.array([[[letter == "#" for letter in mask]]]))


SCORES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "continuous": lambda random, shape: random.standard_normal(shape),
    "tied": lambda random, shape: random.integers(-3, 3, shape) / 4,
    "heavy tail": lambda random, shape: np.exp(6 * random.standard_normal(shape)),
    "constant": lambda random, shape: np.full(shape, 0.25),
}
MASKS: dict[str, Masks] = {
    "sparse": lambda random, shape: random.random(shape) < 0.08,  # regions of one pixel, often two by a corner
    "dense": lambda random, shape: random.random(shape) < 0.45,  # large regions, connected through corners
    "good images too": lambda random, shape: (random.random(shape) < 0.2) & (random.random((shape[0], 1, 1)) < 0.5),
    "all": lambda random, shape: np.ones(shape, bool),
    "all but one image": lambda random, shape: np.arange(shape[0])[:, None, None] * np.ones(shape) > 0,
    "none": lambda random, shape: np.zeros(shape, bool),
}


@st.composite
def cases(draw: st.DrawFn) -> Outcome:
    """Small outcomes with all kinds of scores and masks; defects score slightly higher or not."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    masks = MASKS[draw(st.sampled_from(sorted(MASKS)))](random, shape)
    maps = SCORES[draw(st.sampled_from(sorted(SCORES)))](random, shape) + draw(st.sampled_from([0, 0.25, 3])) * masks
    labels = draw(st.sampled_from([None, random.random(shape[0]) < 0.5]))
    return outcome(maps, masks, labels)


def same(values: dict[str, float | None], others: dict[str, float | None], within: float) -> None:
    """Assert that both define the same metrics, with the same values."""
    assert values.keys() == others.keys()
    for name, value in values.items():
        assert value == (None if others[name] is None else pytest.approx(others[name], abs=within)), name


@quick
@given(case=cases(), run=st.sampled_from([1, 3, ranking.RUN]))
def test_every_metric_matches_its_definition(case: Outcome, run: int) -> None:
    """Within 1e-6 of a threshold sweep, however many positives are processed at a time."""
    assert case.maps is not None
    assert case.masks is not None
    images = by_sweep(case.scores, case.labels) or (None, None, None)
    pixels = by_sweep(case.maps.ravel(), case.masks.ravel()) or (None, None, None)
    names = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max")
    expected = dict(zip(names, images + pixels, strict=True))
    expected["pro"] = pro_by_sweep(case.maps, case.masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "RUN", run)
        same(evaluate(case).values, expected, within=1e-6)


def large(scores: str, seed: int = 0) -> Outcome:
    """12 maps of 48 x 48, three of them good, with blobs and single pixels as defects."""
    random = np.random.default_rng(seed)
    masks = random.random((12, 48, 48)) < 0.01
    for image, (y, x) in enumerate(random.integers(0, 40, (12, 2))):
        masks[image, y : y + 6, x : x + 9] = True
    masks[:3] = False
    maps = SCORES[scores](random, masks.shape)
    return outcome(maps + 0.5 * np.abs(maps).mean() * masks, masks)


@pytest.mark.parametrize("scores", SCORES)
def test_agrees_with_scikit_learn_and_mvtec(scores: str) -> None:
    case = large(scores)
    values = evaluate(case).values
    expected: dict[str, float | None] = {}
    assert case.maps is not None
    assert case.masks is not None
    for level, truth, score in (("image", case.labels, case.scores), ("pixel", case.masks.ravel(), case.maps.ravel())):
        precision, recall, _ = precision_recall_curve(truth, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        expected[f"{level}_auroc"] = float(roc_auc_score(truth, score))
        expected[f"{level}_ap"] = float(average_precision_score(truth, score))
        expected[f"{level}_f1_max"] = float(f1.max())
    expected["pro"] = pro_by_mvtec(case.maps, case.masks)
    same(values, expected, within=1e-9)


@pytest.mark.parametrize(
    ("scores", "mask", "expected"),
    [
        # regions of 1 and 2 pixels, 10 background pixels; vertices (0, 1/2) (.2, 1/2) (.3, 3/4), then (.3, 1)
        ([9, 7, 5, 1, 6, 5, 0, 0, 0, 0, 0, 0, 0], "#.##.........", (0.2 * 0.5 + 0.1 * 0.625) / 0.3),
        # the region is tied with 4 of 10 background pixels: the ramp (0, 0) (.4, 1) is cut at .3
        ([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], "#..........", 0.3**2 / (2 * 0.4) / 0.3),
        # a ramp from .2 to .4, cut in the middle
        ([1, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0], "#..........", 0.1**2 / (2 * 0.2) / 0.3),
        # a ramp from .1 to .2, then flat at twice its mid-height
        ([1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0], "#..........", (0.1 / 2 + 0.1) / 0.3),
        # first reached at .4, beyond the limit
        ([1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0], "#..........", 0.0),
        ([1, 1, 1, 1, 1, 1], "##....", 0.15),  # constant: the diagonal
    ],
)
def test_pro_by_hand(scores: list[float], mask: str, expected: float) -> None:
    assert evaluate(row(scores, mask)).values["pro"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("thresholds", [4, 50])
@pytest.mark.parametrize("scores", SCORES)
def test_the_evaluation_of_mvtec_3d_ad(scores: str, thresholds: int) -> None:
    case, metric = large(scores), packaged_metrics()["pro_3d"]
    metric = dataclasses.replace(metric, settings={**metric.settings, "thresholds": thresholds})
    assert case.maps is not None
    assert case.masks is not None
    expected = pro_by_mvtec_3d(np.asarray(case.maps), np.asarray(case.masks), thresholds)
    assert evaluate(case, {"pro_3d": metric}).values["pro_3d"] == pytest.approx(expected, abs=1e-12)


def test_the_evaluation_of_mvtec_3d_ad_differs_on_tied_maps() -> None:
    """In a constant map nothing lies strictly above a threshold: no area, where the exact curve is the diagonal."""
    case = row([1, 1, 1, 1, 1, 1], "##....")
    chosen = {name: packaged_metrics()[name] for name in ("pro", "pro_3d")}
    assert evaluate(case, chosen).values == {"pro": pytest.approx(0.15), "pro_3d": 0.0}
    apart = evaluate(large("continuous"), chosen).values
    assert apart["pro"] == pytest.approx(apart["pro_3d"], abs=1e-3)


def test_regions_are_8_connected_and_per_image() -> None:
    """Two pixels touching at a corner, one of them found, are one region, half found; regions end with their image."""
    masks = np.zeros((3, 3, 4), bool)
    masks[0, [0, 1], [0, 1]] = masks[1, 1, 1:3] = True  # a corner pair, an edge pair
    maps = np.zeros((3, 3, 4))
    maps[masks] = [9, -9, 9, 9]
    assert evaluate(outcome(maps.copy(), masks.copy())).values["pro"] == pytest.approx((0.5 + 1) / 2)
    masks[2, 1, 2] = True  # in memory right after a defect pixel of the previous image, and not found
    maps[2, 1, 2] = -9
    assert evaluate(outcome(maps, masks)).values["pro"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_good_images_count_as_background() -> None:
    """One of 3 background pixels outscores the defect; with a low-scoring good image it is one of 7."""
    maps, masks = np.array([[[5, 9, 0, 0]], [[0, 0, 0, 0]]]), np.array([[[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    assert evaluate(outcome(maps[:1], masks[:1])).values["pro"] == 0
    assert evaluate(outcome(maps, masks)).values["pro"] == pytest.approx((0.3 - 1 / 7) / 0.3)


def test_separated_scores_give_one_and_reversed_zero() -> None:
    masks = np.zeros((4, 8, 8), bool)
    masks[:2, :3, :5] = True
    maps, labels = masks.astype(np.float32), masks.any((1, 2))
    perfect = evaluate(Outcome(labels, labels.astype(np.float32), maps, masks)).values
    assert perfect == dict.fromkeys(STANDARD, 1.0)
    worst = evaluate(Outcome(labels, 1 - labels.astype(np.float32), 1 - maps, masks)).values
    same(
        worst,
        {
            **{"image_auroc": 0, "pixel_auroc": 0, "pro": 0},
            **{"image_ap": 1 / 2, "pixel_ap": 30 / 256},  # precision at full recall
            **{"image_f1_max": 2 / 3, "pixel_f1_max": 60 / 286},
        },
        within=1e-12,
    )


@pytest.mark.parametrize("seed", range(10))
def test_rounding_does_not_lift_a_perfect_score_above_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((3, 20, 20)) < 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "RUN", 7)
        for name, value in evaluate(outcome(random.random(masks.shape) + masks, masks, [1, 1, 0])).values.items():
            assert value is not None
            assert name.startswith("image") or 1 - 1e-12 < value <= 1, name


def test_signed_zeros_are_tied() -> None:
    assert evaluate(row([-0.0, 0.0, -1, -1], "#...")).values["pixel_auroc"] == pytest.approx(2.5 / 3)


def test_counts_beyond_32_bits() -> None:
    """51,200 pixels of each kind, all tied: the pairs exceed 2^31."""
    masks = np.zeros((1, 320, 320), bool)
    masks[:, ::2] = True
    values = evaluate(outcome(np.ones(masks.shape), masks)).values
    assert (values["pixel_auroc"], values["pixel_ap"]) == (0.5, 0.5)
    assert values["pixel_f1_max"] == pytest.approx(2 / 3)


def test_metrics_without_their_input_are_none() -> None:
    case = large("tied")
    image, pixel = (
        {name for name, metric in STANDARD.items() if metric.level == level} for level in ("image", "pixel")
    )
    no_maps = Outcome(case.labels, case.scores, None, case.masks)
    no_masks = Outcome(case.labels, case.scores, case.maps, None)
    assert case.masks is not None
    one_class = Outcome(np.ones_like(case.labels), case.scores, case.maps, case.masks)
    no_defects = Outcome(case.labels, case.scores, case.maps, np.zeros_like(case.masks))
    all_defects = Outcome(case.labels, case.scores, case.maps, np.ones_like(case.masks))
    for changed, undefined, curves in (
        (case, set(), {"image_roc", "pixel_roc", "pro"}),
        (no_maps, pixel, {"image_roc"}),
        (no_masks, pixel, {"image_roc"}),
        (no_defects, pixel, {"image_roc"}),
        (all_defects, pixel, {"image_roc"}),
        (one_class, image, {"pixel_roc", "pro"}),
        (Outcome(~one_class.labels, case.scores, None, None), image | pixel, set()),
    ):
        evaluation = evaluate(changed)
        assert list(evaluation.values) == list(STANDARD)
        assert {name for name, value in evaluation.values.items() if value is None} == undefined
        assert evaluation.curves.keys() == curves


EXACT: dict[str, Callable[[Array], Array]] = {  # strictly increasing, and exact in float32 on -30..30
    "shift": lambda scores: scores + 4096,
    "scale": lambda scores: scores * 2.0**-100,
    "cube": lambda scores: scores**3,
    "heavy tail": lambda scores: np.exp2(4 * scores),
}


@quick
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(EXACT)))
def test_only_ranks_count(seed: int, name: str) -> None:
    random = np.random.default_rng(seed)
    masks = MASKS["good images too"](random, (5, 6, 6))
    scores = random.integers(-30, 30, masks.shape).astype(np.float32) + 5 * masks.astype(np.float32)
    before, after = evaluate(outcome(scores - 5, masks)), evaluate(outcome(EXACT[name](scores - 5), masks))
    same(before.values, after.values, within=1e-12)
    assert before.curves == after.curves


@quick
@given(case=cases())
def test_dense_ranks_score_the_same(case: Outcome) -> None:
    assert case.maps is not None
    ranks = np.unique(case.maps, return_inverse=True)[1].reshape(case.maps.shape).astype(np.float32)
    ranked = Outcome(case.labels, ranks.max((1, 2)), ranks, case.masks)
    same(evaluate(case).values, evaluate(ranked).values, within=1e-12)


@quick
@given(case=cases(), seed=st.integers(0, 2**32))
def test_image_order_does_not_matter(case: Outcome, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(case.labels))
    assert case.maps is not None
    assert case.masks is not None
    shuffled = Outcome(case.labels[order], case.scores[order], case.maps[order], case.masks[order])
    same(evaluate(case).values, evaluate(shuffled).values, within=1e-12)


def area_of(curve: dict[str, list[float]], limit: float) -> float:
    """Area under a returned curve, after checking its form."""
    x, y = curve["x"], curve["y"]
    assert all(type(value) is float for value in x + y)
    assert len(x) == len(y) <= 500
    assert (x[0], y[0], x[-1]) == (0, 0, limit)
    assert all(a <= b for a, b in [*pairwise(x), *pairwise(y)])
    return area_below(list(zip(x, y, strict=True)), limit)


@pytest.mark.parametrize("run", [100, ranking.RUN])
@pytest.mark.parametrize("scores", SCORES)
def test_area_under_curve_equals_the_metric(scores: str, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "RUN", run)
    evaluation = evaluate(large(scores))
    assert area_of(evaluation.curves["image_roc"], 1.0) == pytest.approx(evaluation.values["image_auroc"], abs=1e-5)
    assert area_of(evaluation.curves["pixel_roc"], 1.0) == pytest.approx(evaluation.values["pixel_auroc"], abs=2e-5)
    assert area_of(evaluation.curves["pro"], 0.3) / 0.3 == pytest.approx(evaluation.values["pro"], abs=2e-5)
    assert evaluation.curves["image_roc"]["y"][-1] == evaluation.curves["pixel_roc"]["y"][-1] == 1


@pytest.mark.parametrize("steps", [200, 251, 300, 499, 1000])
def test_thinning_keeps_the_area_of_a_staircase(steps: int) -> None:
    """The worst case: with 499 steps every corner falls midway between two points."""
    labels = np.tile([True, False], steps)
    evaluation = evaluate(Outcome(labels, np.arange(2 * steps, 0, -1, dtype=np.float32), None, None))
    assert len(evaluation.curves["image_roc"]["x"]) == min(2 * steps + 1, 500)
    within = 1e-5 if steps < 250 else 1.01e-3
    assert area_of(evaluation.curves["image_roc"], 1.0) == pytest.approx(evaluation.values["image_auroc"], abs=within)


def test_images_of_different_sizes() -> None:
    """A list of arrays counts as one array of all pixels: by hand, and against the array if the sizes are equal."""
    random = np.random.default_rng(3)
    case = outcome(random.random((4, 9, 7)), MASKS["sparse"](random, (4, 9, 7)))
    as_list = Outcome(case.labels, case.scores, list(case.maps), list(case.masks))
    assert evaluate(as_list) == evaluate(case)
    maps = [np.array([[5, 1, 2]], np.float64), np.array([[4, 0], [3, 6]], np.float32)]
    masks = [np.array([[True, False, False]]), np.array([[False, False], [False, True]])]
    values = evaluate(Outcome(np.array([True, True]), np.array([5.0, 6.0]), maps, masks)).values
    assert (values["pixel_auroc"], values["pixel_ap"], values["pro"]) == (1.0, 1.0, 1.0)
    masks[0], masks[1] = np.array([[False, True, False]]), np.array([[True, False], [False, False]])
    values = evaluate(Outcome(np.array([True, True]), np.array([5.0, 6.0]), maps, masks)).values
    assert values["pixel_auroc"] == pytest.approx((1 + 3) / (2 * 5))  # 1 is above 0; 4 above 2, 0, 3
    with pytest.raises(ValueError, match=r"masks .* 2 images of several sizes"):
        evaluate(Outcome(np.array([True, True]), np.array([5.0, 6.0]), maps, masks[::-1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_rejected(bad: float) -> None:
    case = large("continuous")
    assert case.maps is not None
    maps, scores = case.maps.copy(), case.scores.copy()
    maps[7, :2, 3] = maps[9, 0, 0] = bad
    with pytest.raises(ValueError, match=r"^3 of 27648 map scores .* in 2 of 12 images, the first at index 7;"):
        evaluate(Outcome(case.labels, case.scores, maps, None))
    scores[4] = bad
    with pytest.raises(ValueError, match=r"^1 of 12 image scores .* the first at index 4;"):
        evaluate(Outcome(case.labels, scores, case.maps, case.masks))


def test_mismatched_arrays_are_rejected() -> None:
    case = large("continuous")
    assert case.maps is not None
    assert case.masks is not None
    bytes_: Any = case.masks.astype(np.uint8)
    for wrong, message in (
        (Outcome(case.labels[1:], case.scores, case.maps, case.masks), r"\(11,\), \(12,\)"),
        (Outcome(case.labels, case.scores, case.maps[1:], case.masks[1:]), r"N=12.*found \(11, 48, 48\)"),
        (Outcome(case.labels, case.scores, case.maps, case.masks[:, 1:]), r"masks .* found \(12, 47, 48\)"),
        (Outcome(case.labels, case.scores, case.maps, bytes_), "masks of type bool, found uint8"),
        (Outcome(case.labels.astype(bytes_.dtype), case.scores, None, None), "labels of type bool"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(wrong)


def peak_bytes(case: Outcome) -> int:
    """Memory that `evaluate` needs besides the outcome."""
    tracemalloc.start()
    try:
        evaluate(case)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_per_pixel() -> None:
    """160 maps of 1024 x 1024 must fit 8 GiB, 51 bytes per pixel; the outcome has 5, the interpreter about 3."""
    random = np.random.default_rng(0)
    masks = np.zeros((40, 512, 512), bool)
    masks[10:, 100:160, 200:280] = True
    maps = random.standard_normal(masks.shape, np.float32)
    assert peak_bytes(outcome(maps, masks)) < 7 * masks.size  # a 64-bit column for all pixels takes 8


RUNS_ON_DISK = {"SORTED": 1 << 18, "RUN": 1 << 12}  # as small parts of the cases here as of a long test set


@pytest.mark.parametrize("scores", SCORES)
def test_runs_on_disk_give_the_values_of_one_sort_in_memory(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, chosen = large(scores), {name: packaged_metrics()[name] for name in (*STANDARD, "pro_3d")}
    whole = evaluate(case, chosen)
    monkeypatch.setattr(ranking, "SORTED", 48 * 48 * 5)  # 3 runs, the last of fewer images
    monkeypatch.setattr(ranking, "RUN", 100)
    parts = evaluate(case, chosen)
    same(parts.values, whole.values, within=1e-12)
    assert parts.curves.keys() == whole.curves.keys()


def test_4000_frames_need_no_more_memory_than_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps and masks are made, kept in files, and evaluated; in memory the maps alone would be 12 MB more."""
    frame = np.zeros((32, 32), bool)
    frame[10:14, 20:30] = True
    monkeypatch.setattr(mapped, "LARGE", 0)
    monkeypatch.setattr(metrics, "RUN_POINTS", 300)
    for name, value in RUNS_ON_DISK.items():
        monkeypatch.setattr(ranking, name, value)

    def peak(count: int) -> tuple[int, Outcome]:
        tracemalloc.start()
        try:
            random = np.random.default_rng(0)
            labels = np.arange(count) % 10 == 0
            masks = mapped.gathered((frame[None] & label for label in labels), count)
            assert masks is not None
            drawn = (random.standard_normal((1, 32, 32), np.float32) + mask for mask in masks)
            maps = mapped.gathered(drawn, count)
            assert maps is not None
            case = Outcome(labels, maps[:, 12, 25] + 0, maps, masks)
            evaluate(case)
            return tracemalloc.get_traced_memory()[1], case
        finally:
            tracemalloc.stop()

    few, many = peak(1000)[0], peak(4000)
    assert many[0] < few + 2e6, "what grows are scores, labels and the sizes of regions"
    monkeypatch.undo()
    expected = evaluate(many[1]).values
    for name, value in RUNS_ON_DISK.items():
        monkeypatch.setattr(ranking, name, value)
    same(evaluate(many[1]).values, expected, within=1e-12)


def test_memory_per_defect_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nearly all pixels are defects, 28 bytes each; in a constant map all are tied."""
    monkeypatch.setattr(ranking, "RUN", 1 << 14)  # as small a fraction of this case as of a large one
    monkeypatch.setattr(metrics, "RUN_POINTS", 300)
    masks = np.ones((8, 512, 512), bool)
    masks[0, 0] = False
    maps = np.random.default_rng(0).standard_normal(masks.shape, np.float32)
    assert peak_bytes(outcome(maps, masks)) < 32 * masks.size
    assert peak_bytes(outcome(np.ones(masks.shape), masks)) < 32 * masks.size


def test_titles_need_neither_torch_nor_scipy() -> None:
    code = (
        "import sys; from anomaly_bench.metrics.registry import packaged_metrics; packaged_metrics();"
        "print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_registry() -> None:
    assert all(type(metric.revision) is int for metric in packaged_metrics().values())
    assert len({metric.title for metric in packaged_metrics().values()}) == len(packaged_metrics())
    assert packaged_metrics()["image_f1_max"].title == "image F1-max (test oracle)"
    assert packaged_metrics()["pixel_f1_max"].title == "pixel F1-max (test oracle)"


def test_equal_scores_are_said():
    labels, level = np.array([False, True, True]), np.full((3, 4, 4), 0.5)
    assert all_equal(Outcome(labels, np.ones(3), level, None)) == (
        "all 3 image scores are equal (1) and all values of the maps are equal (0.5)"
    )
    assert all_equal(Outcome(labels, np.ones(3), None, None)) == "all 3 image scores are equal (1)"
    level[2, 3, 3] = 0.6
    assert all_equal(Outcome(labels, np.array([1.0, 1.0, 1.1]), list(level), None)) == ""
    assert all_equal(Outcome(labels[:1], np.ones(1), None, None)) == "", "one is equal to itself"
