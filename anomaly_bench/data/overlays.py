"""Heat maps over images, all maps of one folder on one colour scale. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.data import decoding, readers
from anomaly_bench.data.dataset import Source
from anomaly_bench.heatmap import heat
from anomaly_bench.records.gallery import draw_outlines

LONGEST_SIDE = 1024  # pixels: limit of an overlay's longer side
OPACITY = 0.7  # of the upper half of the colour scale; the lower half fades out


def common_scale(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The ends of the colour scale shared by all maps, from each map's lowest and highest value.

    The bottom is the median of the lowest values, the top the largest highest value that is not an outlier (Tukey:
    above the upper quartile by more than 1.5 interquartile ranges), as one huge value would darken all others.
    """
    lowest, highest = np.array(ends).T
    first, third = np.percentile(highest, (25, 75))
    return float(np.median(lowest)), float(highest[highest <= third + 1.5 * (third - first)].max())


def overlay(
    file: Path,
    values: NDArray[np.float32],
    low: float,
    high: float,
    resize: decoding.Size,
    crop: decoding.Size | None,
    threshold: float | None = None,
    bits: int | None = None,
) -> PILImage.Image:
    """An image at its own aspect ratio with its (H, W) map as a heat map over it; low values are transparent.

    Args:
        low, high: map values at the ends of the colour scale.
        resize, crop: the (H, W) to which the image was resized and cropped; nothing is drawn outside the crop.
        threshold: what is above it is outlined.
        bits: see `decoding.decode_image`.
    """
    source = Source(file)
    size = readers.source_size(source)
    height, width = (max(1, round(side * min(1.0, LONGEST_SIDE / max(size)))) for side in size)
    picture = PILImage.fromarray(decoding.decode_image(source, (height, width), bits=bits).values)
    top, left = decoding.margins(resize, crop)
    box_height, box_width = crop or resize
    edges = (left / resize[1], top / resize[0], (left + box_width) / resize[1], (top + box_height) / resize[0])
    box = [round(edge * side) for edge, side in zip(edges, (width, height, width, height), strict=True)]
    alpha = np.clip(2 * (values - low) / max(high - low, 1e-12), 0, 1) * (255 * OPACITY)
    layer = PILImage.fromarray(np.dstack([heat(values, low, high), alpha.astype(np.uint8)]))
    layer = layer.resize((max(1, box[2] - box[0]), max(1, box[3] - box[1])), PILImage.Resampling.BILINEAR)
    picture.paste(layer, (box[0], box[1]), layer)
    if threshold is not None:
        draw_outlines(picture, values, threshold, (box[0], box[1], box[0] + layer.width, box[1] + layer.height))
    return picture
