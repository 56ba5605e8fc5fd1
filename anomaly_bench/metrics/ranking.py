"""Positives ranked among negatives: the one pass that serves every metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from anomaly_bench.protocol import Maps, Masks, Outcome

RUN = 1 << 20  # positives processed at a time, which limits the memory for 64-bit columns
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
    """positives (P,), negatives (Q,), both ascending; region (P,) int32: index in weight (R,) = 1 / (R * its size)."""

    positives: NDArray[Any]
    negatives: NDArray[Any]
    region: NDArray[np.int32]
    weight: Floats

    def steps(self) -> Iterator[Steps]:
        """All thresholds, from the highest to the lowest, RUN positives or one tie at a time."""
        stop, overlap = len(self.positives), 0.0
        while stop:
            cut = self.positives[max(stop - RUN, 0)]
            start = int(np.searchsorted(self.positives, cut))  # a tie is not split
            scores = self.positives[start:stop][::-1]
            first = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))  # (T,)
            shares = np.add.reduceat(self.weight[self.region[start:stop][::-1]], first)
            overlaps = overlap + np.concatenate(([0.0], np.cumsum(shares)))
            yield Steps(
                hits=len(self.positives) - stop + np.append(first, len(scores)),
                overlap=overlaps,
                above=len(self.negatives) - np.searchsorted(self.negatives, scores[first], "right"),
                reached=len(self.negatives) - np.searchsorted(self.negatives, scores[first], "left"),
                positives=len(self.positives),
                negatives=len(self.negatives),
            )
            stop, overlap = start, float(overlaps[-1])


def _rank(positives: NDArray[Any], negatives: NDArray[Any], region: NDArray[np.int32], weight: Floats) -> Ranking:
    """Sort both kinds of scores; `negatives` in place."""
    negatives.sort()
    order = np.argsort(positives)
    return Ranking(positives[order], negatives, region[order], weight)


def _rank_images(outcome: Outcome) -> Ranking | None:
    """The image scores; None if there is only one kind of image. All defects are one region."""
    positives, negatives = outcome.scores[outcome.labels], outcome.scores[~outcome.labels]
    if not len(positives) or not len(negatives):
        return None
    return _rank(positives, negatives, np.zeros(len(positives), np.int32), np.array([1 / len(positives)]))


def _rank_pixels(outcome: Outcome) -> Ranking | None:
    """The pixel scores of all images; None without maps or masks, or if there is only one kind of pixel."""
    maps, masks = outcome.maps, outcome.masks
    if maps is None or masks is None:
        return None
    defects, pixels = sum(int(np.count_nonzero(mask)) for mask in masks), sum(mask.size for mask in masks)
    if defects in (0, pixels):
        return None
    region, sizes = _regions(masks)
    positives, negatives = _split(maps, masks, defects, pixels)
    return _rank(positives, negatives, region, 1 / (len(sizes) * sizes))


def _split(maps: Maps, masks: Masks, defects: int, pixels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scores of all defect pixels (P,) and of all other pixels (Q,), image by image: images may differ in size."""
    kind = np.result_type(*{each.dtype for each in maps})
    positives, negatives = np.empty(defects, kind), np.empty(pixels - defects, kind)
    hits = misses = 0
    for scores, mask in zip(maps, masks, strict=True):
        inside, outside = scores[mask], scores[~mask]
        positives[hits : hits + len(inside)], negatives[misses : misses + len(outside)] = inside, outside
        hits, misses = hits + len(inside), misses + len(outside)
    return positives, negatives


def _regions(masks: Masks) -> tuple[NDArray[np.int32], Counts]:
    """The 8-connected region of each defect pixel (P,), in the order of `_split`, and region sizes (R,)."""
    from scipy import ndimage  # slow to import, so not at the top

    regions, sizes, found = [], [], 0
    for mask in masks:
        if mask.any():  # much quicker than labelling
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            inside = labels[mask] - 1
            regions.append(inside + np.int32(found))
            sizes.append(np.bincount(inside))
            found += count
    return np.concatenate(regions, dtype=np.int32), np.concatenate(sizes)
