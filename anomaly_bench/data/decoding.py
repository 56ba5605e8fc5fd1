"""Decoding: images and masks as methods and metrics see them, resized, masks as 0 and 1.

The filters of `input.filter`; output pixel x covers [x n / m, (x + 1) n / m] of the n input pixels of its row:

- bilinear, bicubic, lanczos: Pillow's, whose triangle, cubic (a = -1/2) or Lanczos kernel (a = 3) is widened by n / m
  where the image is made smaller (antialiasing); rows first, 8-bit values rounded in between. torchvision's resize of
  PIL images is the first.
- area: the mean over what the output pixel covers, parts of pixels counted as parts; OpenCV's INTER_AREA where the
  image is made smaller.
- nearest: the input pixel at the output pixel's centre, floor((x + 1/2) n / m), between two pixels either.
- bilinear_no_antialias: between the four input pixels around the output pixel's centre, whatever n / m; OpenCV's
  INTER_LINEAR, rounded to the nearest integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.config.settings import FILTER
from anomaly_bench.data import readers
from anomaly_bench.data.dataset import RGB
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Plane, Sample, Source


PILLOW = {name: PILImage.Resampling[name.upper()] for name in ("bilinear", "lanczos", "bicubic", "nearest")}
Size = tuple[int, int]  # (H, W)


def decode_sample(sample: Sample, planes: Sequence[Plane], size: Size, filter: str = FILTER) -> NDArray[Any]:
    """One image (H, W, C): a single plane in its own type, several as float32 with 8 bits scaled to [0, 1]."""
    if len(planes) == 1:
        return decode_plane(sample.sources[0], planes[0], size, filter)
    common_size(sample.sources, sample)
    pairs = zip(sample.sources, planes, strict=True)
    parts = [decode_plane(source, plane, size, filter) for source, plane in pairs]
    return np.concatenate([part / np.float32(255) if part.dtype == np.uint8 else part for part in parts], axis=-1)


def decode_plane(source: Source, plane: Plane, size: Size, filter: str) -> NDArray[Any]:
    """One plane (H, W, C)."""
    if source.reader == "image" and plane == RGB:
        return decode_image(source, size, filter)
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
    used = filter if plane.filter == FILTER else plane.filter
    channels = [resize(PILImage.fromarray(values[..., index]), size, used) for index in range(plane.channels)]
    return np.stack(channels, axis=-1)


def decode_image(source: Source, size: Size, filter: str = FILTER) -> NDArray[np.uint8]:
    """One image file as (H, W, 3) uint8: grey is repeated, alpha dropped, 16 bits are scaled to 8."""
    with readers.opened(source) as image:
        colour = eight_bit(image, source).convert("RGB")
        return resize(colour, size, filter)


def resize(picture: PILImage.Image, size: Size, filter: str) -> NDArray[Any]:
    """The (H, W) or (H, W, 3) pixels of a picture at another size, in its own type; at its own size as they are."""
    if picture.size == size[::-1]:
        return np.asarray(picture)
    if filter in PILLOW:
        return np.asarray(picture.resize(size[::-1], PILLOW[filter]))
    means: NDArray[np.floating[Any]]
    if filter == "area":
        from skimage.transform import resize_local_mean  # slow to import

        values = np.asarray(picture)
        means = resize_local_mean(values, size, preserve_range=True, channel_axis=2 if values.ndim == 3 else None)
    else:  # of 8 bits Pillow would cut off the fractions
        scales = (picture.width / size[1], 0, 0, 0, picture.height / size[0], 0)
        affine, bilinear = PILImage.Transform.AFFINE, PILImage.Resampling.BILINEAR
        bands = [band.convert("F").transform(size[::-1], affine, scales, bilinear) for band in picture.split()]
        means = np.stack([np.asarray(band) for band in bands], axis=-1)
        means = means if len(bands) > 1 else means[..., 0]
    pixels = means.astype(np.float32) if picture.mode == "F" else np.rint(means).astype(np.uint8)
    return np.ascontiguousarray(pixels)


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
