"""Images and masks from files to arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from anomaly_bench.errors import DataError, one_line

if TYPE_CHECKING:
    from anomaly_bench.protocol import Image


FILTER = PILImage.Resampling.BILINEAR
Size = tuple[int, int]  # (H, W)


def decode_image(path: Path, size: Size) -> NDArray[np.uint8]:
    """One file as (H, W, 3) uint8: grey is repeated, alpha dropped, 16 bits are scaled to 8."""
    with opened(path) as image:
        colour = eight_bit(image, path).convert("RGB")
        return np.asarray(colour.resize((size[1], size[0]), FILTER))


def decode_mask(image: Image, size: Size) -> NDArray[np.uint8]:
    """The mask of one image as (H, W) of 0 and 1; all 0 where it has none."""
    if image.mask is None:
        return np.zeros(size, np.uint8)
    with opened(image.path) as picture:
        width, height = picture.size
    with opened(image.mask) as mask:
        if mask.size != (width, height):
            raise DataError(
                f"{image.mask}: {mask.width}x{mask.height} pixels, but its image {image.file} has {width}x{height}; "
                "expected the same size: replace the mask"
            )
        values = np.asarray(mask if mask.mode[0] in "1LIF" and mask.mode != "LA" else mask.convert("RGB"))
        defect = (values.reshape(*values.shape[:2], -1) != 0).any(axis=-1).astype(np.uint8)
    resized = PILImage.fromarray(defect).resize((size[1], size[0]), PILImage.Resampling.NEAREST)
    return np.asarray(resized)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[PILImage.Image]:
    """An open image; whatever goes wrong with it, now or while it is decoded, names the file.

    Raises:
        DataError: of a damaged file PIL's readers raise a dozen kinds, and not those that they document.
    """
    try:
        with PILImage.open(path) as image:
            yield image
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory; expected a smaller image: replace or remove it") from error
    except Exception as error:  # PIL's decoders raise a dozen kinds on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no format that PIL knows" if unknown else one_line(str(error)) or type(error).__name__
        raise DataError(f"{path}: cannot be decoded ({why}); expected an image: replace or remove the file") from error


def eight_bit(image: PILImage.Image, path: Path) -> PILImage.Image:
    """16-bit grey scaled to 8 bits (65535 -> 255); every other mode as it is."""
    if image.mode == "F":
        raise DataError(f"{path}: 32-bit float pixels; expected 8 or 16 bits: convert the file")
    if not image.mode.startswith("I"):
        return image
    wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return PILImage.fromarray(((wide + 128) // 257).astype(np.uint8))
