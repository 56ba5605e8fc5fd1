"""Decoding: images as methods see them, upright and resized, with what was noticed about them.

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

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.config.settings import FILTER
from anomaly_bench.data import readers
from anomaly_bench.data.dataset import RGB
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Plane, Sample, Source
    from anomaly_bench.data.findings import Facts

STRIP = 2**20  # pixels of 16 bits that are scaled at once
PILLOW = {name: PILImage.Resampling[name.upper()] for name in ("bilinear", "lanczos", "bicubic", "nearest")}
Size = tuple[int, int]  # (H, W)


class Decoded(NamedTuple):
    """An image or mask at the size that was asked for, and what was noticed about its file; see `findings.KINDS`."""

    values: NDArray[Any]
    facts: Facts


def decode_sample(
    sample: Sample, planes: Sequence[Plane], size: Size | None, filter: str = FILTER, bits: int | None = None
) -> Decoded:
    """One image (H, W, C): a single plane in its own type, several as float32 with 8 bits scaled to [0, 1].

    Args:
        size: None: its own.

    Its facts also hold a hash of its "pixels".
    """
    facts: Facts = {}
    if len(planes) > 1:
        common_size(sample.sources, sample)
    pairs = zip(sample.sources, planes, strict=True)
    parts = [decode_plane(source, plane, size, filter, bits, facts) for source, plane in pairs]
    values = parts[0]
    if len(parts) > 1:
        scaled = [part / np.float32(255) if part.dtype == np.uint8 else part for part in parts]
        values = np.concatenate(scaled, axis=-1)
    facts["pixels"] = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()
    if (values[0] == values[0, 0]).all() and (values == values[0, 0]).all():  # the first row settles most
        facts["blank"] = True
    return Decoded(values, facts)


def decode_plane(
    source: Source, plane: Plane, size: Size | None, filter: str, bits: int | None, facts: Facts
) -> NDArray[Any]:
    """One plane (H, W, C)."""
    if source.reader == "image" and plane == RGB:
        found = decode_image(source, size, filter, bits)
        facts |= found.facts
        return found.values
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


def decode_image(source: Source, size: Size | None, filter: str = FILTER, bits: int | None = None) -> Decoded:
    """One image file, upright, as (H, W, 3) uint8: grey is repeated, alpha dropped, 16 bits are scaled to 8.

    Args:
        bits: how many of 16 bits the camera used; None: all, but for a file that says otherwise.
    """
    facts: Facts = {}
    with readers.opened(source) as image:
        if getattr(image, "is_animated", False):
            facts["pages"] = getattr(image, "n_frames", 2)
        coding = str(getattr(image, "tile", ""))
        readers.turn_upright(image, facts)
        if has_transparent_pixels(image):
            facts["transparent"] = True
        picture = eight_bit(image, source, bits or (12 if "I;12" in coding else None), facts)
        if ";16" in coding and not image.mode.startswith("I"):
            facts["highest"] = high_bytes(picture, source, bits)
        values = resize(picture, size, filter)
    return Decoded(np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values, facts)


def has_transparent_pixels(image: PILImage.Image) -> bool:
    if not getattr(image, "has_transparency_data", image.mode in ("RGBA", "LA", "PA")):
        return False
    layered = image if image.mode in ("RGBA", "LA", "PA") else image.convert("RGBA")
    extrema: Any = layered.getchannel("A").getextrema()
    return bool(extrema[0] < 255)


def high_bytes(picture: PILImage.Image, source: Source, bits: int | None) -> int:
    """The highest 16-bit value of a colour image, of which Pillow keeps the high bytes only."""
    if bits is not None:
        raise DataError(
            f"{source}: 16 bits a colour; expected 16-bit grey or 8 bits with input.bits={bits}: convert the file"
        )
    extrema: Any = picture.getextrema()
    return 256 * int(np.max(extrema)) + 255


def resize(picture: PILImage.Image, size: Size | None, filter: str) -> NDArray[Any]:
    """The (H, W) or (H, W, 3) pixels of a picture at another size, in its own type; at its own size as they are."""
    if size is None or picture.size == size[::-1]:
        return pixels_of(picture)
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


def pixels_of(picture: PILImage.Image) -> NDArray[Any]:
    """The pixels of a picture; of 8-bit colours faster than by `np.asarray`, which matters for small images."""
    if picture.mode != "RGB":
        return np.asarray(picture)
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, 3)


def common_size(sources: Sequence[Source], sample: Sample) -> Size:
    """(H, W) of an image's planes; DataError: one differs in size from the first."""
    expected = readers.source_size(sources[0])
    for source in sources[1:]:
        require_size(source, readers.source_size(source), expected, sample)
    return expected


def require_size(source: Source, found: Sequence[int], expected: Sequence[int], sample: Sample) -> None:
    """DataError: a plane or mask has not the (H, W) of its image."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{source}: {found[1]}x{found[0]} pixels, but its image {sample.id} has {expected[1]}x{expected[0]}; "
            f"expected the same size: replace the {'mask' if source in sample.masks else 'file'}"
        )


def eight_bit(image: PILImage.Image, source: Source, bits: int | None, facts: Facts) -> PILImage.Image:
    """8 bits, grey or RGB; 16-bit grey is scaled (65535, or the highest value of so many bits -> 255)."""
    if image.mode == "F":
        raise DataError(f"{source}: 32-bit float pixels; expected 8 or 16 bits: convert the file")
    if not image.mode.startswith("I"):
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    most = 2 ** (bits or 16) - 1
    scaled = np.empty((image.height, image.width), np.uint8)
    rows, highest = max(1, STRIP // image.width), 0
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        lowest, highest = int(strip.min()), max(highest, int(strip.max()))
        if lowest < 0 or highest > most:
            raise DataError(
                f"{source}: values from {lowest} to {highest}; expected 0 to {most} of {bits or 16} bits: "
                + ("raise input.bits, or leave it out" if bits else "convert the file")
            )
        scaled[top : top + rows] = to_eight(most)[strip]
    facts |= {} if bits else {"highest": highest}
    return PILImage.fromarray(scaled)


@functools.lru_cache(maxsize=4)
def to_eight(most: int) -> NDArray[np.uint8]:
    """For each value up to `most` what it is in 8 bits."""
    return ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)


def margins(size: Size, crop: Size | None) -> Size:
    """How many pixels a central crop (H, W) leaves out at the top and on the left."""
    return (0, 0) if crop is None else (round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2))
