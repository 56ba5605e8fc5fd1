"""Thresholds from held-out normal images alone: no test image and no label is used.

The threshold of a rate a is the k-th smallest of n held-out values, k = ceil((n + 1)(1 - a)); what lies above it is an
alarm. If a new normal image is exchangeable with the held-out ones, it raises an alarm with a probability of at most a
(split conformal prediction: Vovk et al. 2005; Papadopoulos et al. 2002). Given the threshold, the false-alarm rate
varies as Beta(n + 1 - k, k), so false alarms among m new images are beta-binomial.

- The image threshold is made from image scores.
- The pixel threshold is made from each image's largest map value: of normal images at most a share a has any pixel
  above it. The unit is the image, as in per-image false-positive rates (AUPIMO, Bertoldo et al. 2024); a = 1 / (n + 1)
  gives the maximum over all held-out pixels (Bergmann et al. 2021, IJCV). A quantile over pixels would outline
  something on nearly every good image, and pixels of one image are not independent.

With fewer than 1 / a - 1 images no finite value keeps the rate: there is no threshold, and its metrics are undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any


def rank_of(count: int, max_false_alarms: float) -> int:
    """k of n held-out values; above n where these are too few. Exact: 0.05 is a twentieth."""
    return math.ceil((count + 1) * (1 - Fraction(str(max_false_alarms))))


def threshold_of(values: Sequence[float], max_false_alarms: float) -> float | None:
    """The k-th smallest of (n,) values of held-out normal images; None: too few for this rate.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError("a score of a held-out image is NaN or infinite; a method must return finite scores")
    rank = rank_of(len(values), max_false_alarms)
    return None if rank > len(values) else sorted(values)[rank - 1]


def thresholds_of(held_out: Sequence[Mapping[str, Any]], max_false_alarms: float) -> dict[str, Any]:
    """A record's `thresholds` from its `held_out`; see `records.record.Record`."""
    peaks = [image["peak"] for image in held_out]
    return {
        "image": threshold_of([image["score"] for image in held_out], max_false_alarms),
        "pixel": None if None in peaks else threshold_of(peaks, max_false_alarms),
        "max_false_alarms": max_false_alarms,
        "images": len(held_out),
    }


def shortage(count: int, max_false_alarms: float) -> str:
    """'17 held-out images; max_false_alarms=0.05 needs 20: ...', or '' where there are at least 1 / a."""
    least = math.ceil(1 / Fraction(str(max_false_alarms)))
    if count >= least:
        return ""
    too_few = rank_of(count, max_false_alarms) > count
    effect = "no threshold keeps this rate" if too_few else "the threshold is their maximum"
    images = "held-out image" if count == 1 else "held-out images"
    return f"{count} {images}; max_false_alarms={max_false_alarms:g} needs {least}: {effect}"
