"""Decoding: images and masks as methods and metrics see them, resized, masks as 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.data import readers
from anomaly_bench.data.dataset import RGB
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Plane, Sample, Source


FILTER = PILImage.Resampling.BILINEAR
Size = tuple[int, int]  # (H, W)


def decode_sample(sample: Sample, planes: Sequence[Plane], size: Size) -> NDArray[Any]:
    """One image (H, W, C): a single plane in its own type, several as float32 with 8 bits scaled to [0, 1]."""
    if len(planes) == 1:
        return decode_plane(sample.sources[0], planes[0], size)
    common_size(sample.sources, sample)
    parts = [decode_plane(source, plane, size) for source, plane in zip(sample.sources, planes, strict=True)]
    return np.concatenate([part / np.float32(255) if part.dtype == np.uint8 else part for part in parts], axis=-1)


def decode_plane(source: Source, plane: Plane, size: Size) -> NDArray[Any]:
    """One plane (H, W, C)."""
    if source.reader == "image" and plane == RGB:
        return decode_image(source, size)
    values = readers.read_source(source)
    values = values[..., None] if values.ndim == 2 else values
    if plane.channels == 3 and values.shape[2] == 1:  # grey
        values = np.repeat(values, 3, axis=2)
    fits = values.dtype == np.uint8 if plane.dtype == "uint8" else values.dtype.kind in "fiu"
    if values.shape[2] != plane.channels or not fits:
        raise DataError(
            f"{source}: {values.shape[2]} channels of {values.dtype}; expected {plane.channels} of {plane.dtype}, the "
            f"plane {plane.name}"
        )
    values = values.astype(plane.dtype)
    if values.shape[:2] == size:
        return np.ascontiguousarray(values)
    resample = PILImage.Resampling[plane.filter.upper()]
    channels = [
        PILImage.fromarray(values[..., index]).resize((size[1], size[0]), resample) for index in range(plane.channels)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def decode_image(source: Source, size: Size) -> NDArray[np.uint8]:
    """One image file as (H, W, 3) uint8: grey is repeated, alpha dropped, 16 bits are scaled to 8."""
    with readers.opened(source) as image:
        colour = eight_bit(image, source).convert("RGB")
        return np.asarray(colour.resize((size[1], size[0]), FILTER))


def decode_mask(sample: Sample, size: Size) -> NDArray[np.uint8]:
    """The union of one image's masks, (H, W) of 0 and 1; all 0 if it has none."""
    if not sample.masks:
        return np.zeros(size, np.uint8)
    defect = np.zeros(common_size((sample.sources[0], *sample.masks), sample), np.bool_)
    for mask in sample.masks:
        values = readers.read_source(mask)
        defect |= (values.reshape(*values.shape[:2], -1) != 0).any(axis=-1)
    resized = PILImage.fromarray(defect.astype(np.uint8)).resize((size[1], size[0]), PILImage.Resampling.NEAREST)
    return np.asarray(resized)


def common_size(sources: Sequence[Source], sample: Sample) -> Size:
    """(H, W) of an image's planes and masks; DataError: one differs in size from the first."""
    expected = readers.source_size(sources[0])
    for source in sources[1:]:
        found = readers.source_size(source)
        if found != expected:
            raise DataError(
                f"{source}: {found[1]}x{found[0]} pixels, but its image {sample.id} has {expected[1]}x{expected[0]}; "
                f"expected the same size: replace the {'mask' if source in sample.masks else 'file'}"
            )
    return expected


def eight_bit(image: PILImage.Image, source: Source) -> PILImage.Image:
    """16-bit grey scaled to 8 bits (65535 -> 255); every other mode as it is."""
    if image.mode == "F":
        raise DataError(f"{source}: 32-bit float pixels; expected 8 or 16 bits: convert the file")
    if not image.mode.startswith("I"):
        return image
    wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return PILImage.fromarray(((wide + 128) // 257).astype(np.uint8))
