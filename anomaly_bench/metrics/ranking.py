"""Positives ranked among negatives: the one pass that serves every metric.

Pixels of a long test set are sorted in runs, which lie in files and are merged from the highest score to the lowest.
Ranks are exact, so the metrics are those of one sort in memory, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.mapped import in_file, release, stretches

if TYPE_CHECKING:
    from anomaly_bench.protocol import Maps, Masks, Outcome

RUN = 1 << 20  # positives processed at a time, which limits the memory for 64-bit columns
SORTED = 1 << 27  # pixels sorted in memory at a time; more are sorted in runs on disk
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """A run of consecutive thresholds, descending; each is the score of at least one positive.

    hits (T+1,): positives >= threshold, before the run and after each threshold; overlap (T+1,): the same with
    each pixel counted as its share of a region, averaged over regions; above (T,) and reached (T,): negatives
    > threshold and >= threshold; positives, negatives: their total numbers.
    """

    hits: Counts
    overlap: Floats
    above: Counts
    reached: Counts
    positives: int
    negatives: int


@dataclass(frozen=True)
class Ranking:
    """Ascending scores in one run or, on disk, in several, which are merged a stretch at a time.

    positives: per run (P,) scores, and (P,) int32: each one's region, as an index in weight (R,) = 1 / (R * its size);
    negatives: (Q,) scores per run.
    """

    positives: list[tuple[NDArray[Any], NDArray[np.int32]]]
    negatives: list[NDArray[Any]]
    weight: Floats

    def steps(self) -> Iterator[Steps]:
        """All thresholds, from the highest to the lowest, about RUN positives or one tie at a time."""
        stops, done, overlap = [len(scores) for scores, _ in self.positives], 0, 0.0
        positives, negatives = sum(stops), sum(map(len, self.negatives))
        while any(stops):
            stops, scores, region = self._highest(stops)
            first = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))  # (T,)
            overlaps = overlap + np.concatenate(([0.0], np.cumsum(np.add.reduceat(self.weight[region], first))))
            yield Steps(
                hits=done + np.append(first, len(scores)),
                overlap=overlaps,
                above=negatives - self._negatives(scores[first], "right"),
                reached=negatives - self._negatives(scores[first], "left"),
                positives=positives,
                negatives=negatives,
            )
            done, overlap = done + len(scores), float(overlaps[-1])

    def _highest(self, stops: list[int]) -> tuple[list[int], NDArray[Any], NDArray[np.int32]]:
        """The next positives in descending order with their regions, and where they start in each run."""
        share = max(RUN // len(stops), 1)
        ends = list(zip(self.positives, stops, strict=True))
        cut = max(scores[max(stop - share, 0)] for (scores, _), stop in ends if stop)
        starts = [int(np.searchsorted(scores[:stop], cut)) for (scores, _), stop in ends]  # a tie is not split
        parts = [(run, slice(start, stop)) for (run, stop), start in zip(ends, starts, strict=True)]
        if len(parts) == 1:
            (scores, region), part = parts[0]
            return starts, scores[part][::-1], region[part][::-1]
        scores = np.concatenate([run[0][part] for run, part in parts])
        order = np.argsort(scores)[::-1]
        return starts, scores[order], np.concatenate([run[1][part] for run, part in parts])[order]

    def _negatives(self, thresholds: NDArray[Any], side: Literal["left", "right"]) -> Counts:
        """(T,) negatives below thresholds ("left"), or not above them ("right")."""
        below = np.zeros(len(thresholds), np.int64)
        for run in self.negatives:
            below += np.searchsorted(run, thresholds, side)
            release(run)
        return below


def _rank_images(outcome: Outcome) -> Ranking | None:
    """The image scores; None if there is only one kind of image. All defects are one region."""
    positives, negatives = np.sort(outcome.scores[outcome.labels]), np.sort(outcome.scores[~outcome.labels])
    if not len(positives) or not len(negatives):
        return None
    region = np.zeros(len(positives), np.int32)
    return Ranking([(positives, region)], [negatives], np.array([1 / len(positives)]))


def _rank_pixels(outcome: Outcome) -> Ranking | None:
    """The pixel scores of all images; None without maps or masks, or if there is only one kind of pixel."""
    maps, masks = outcome.maps, outcome.masks
    if maps is None or masks is None:
        return None
    defects = sum(np.count_nonzero(mask) for part in stretches(masks) for mask in masks[part])
    if defects in (0, sum(mask.size for mask in masks)):
        return None
    kind = np.result_type(*{each.dtype for each in maps})
    positives, negatives, sizes = [], [], np.empty(0, np.int64)
    for part in stretches(masks, SORTED):
        inside, outside = _split(maps[part], masks[part], kind)
        with ThreadPoolExecutor(1) as apart:  # it needs no lock of Python's
            sorting = apart.submit(outside.sort)
            region, more = _regions(masks[part], len(sizes))
            order = np.argsort(inside)
            sorting.result()
        run = inside[order], region[order], outside
        release(maps)
        scores, region, outside = run if part == slice(0, len(masks)) else map(_in_file, run)
        positives.append((scores, region))
        negatives.append(outside)
        sizes = np.concatenate((sizes, more))
    return Ranking(positives, negatives, 1 / (len(sizes) * sizes))


def _in_file(run: NDArray[Any]) -> NDArray[Any]:
    return in_file([run], run.shape, run.dtype) if len(run) else run


def _split(maps: Maps, masks: Masks, kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scores of all defect pixels (P,) and of all other pixels (Q,), image by image: images may differ in size."""
    defects, pixels = sum(int(np.count_nonzero(mask)) for mask in masks), sum(mask.size for mask in masks)
    positives, negatives = np.empty(defects, kind), np.empty(pixels - defects, kind)
    hits = misses = 0
    for scores, mask in zip(maps, masks, strict=True):
        inside, outside = scores[mask], scores[~mask]
        positives[hits : hits + len(inside)], negatives[misses : misses + len(outside)] = inside, outside
        hits, misses = hits + len(inside), misses + len(outside)
    return positives, negatives


def _regions(masks: Masks, found: int) -> tuple[NDArray[np.int32], Counts]:
    """The 8-connected region of each defect pixel (P,), in the order of `_split`, and region sizes (R,).

    Args:
        found: the number of regions in other images, where the numbers start.
    """
    from scipy import ndimage  # slow to import, so not at the top

    regions, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for mask in masks:
        if mask.any():  # much quicker than labelling
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            inside = labels[mask] - 1
            regions.append(inside + np.int32(found))
            sizes.append(np.bincount(inside))
            found += count
    return np.concatenate(regions, dtype=np.int32), np.concatenate(sizes)
