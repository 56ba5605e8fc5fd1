"""Masks: which pixels a mask file marks, at the size of the comparison, and which regions that size loses.

A pixel whose value is not 0 is defect. Where a file may mean something else (an alpha channel, a palette, lossy
compression, several pages), it is read if only one meaning is possible, and else refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.data import readers
from anomaly_bench.data.decoding import Decoded, margins, require_size
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample, Source
    from anomaly_bench.data.decoding import Size
    from anomaly_bench.data.findings import Facts

LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")  # these may be lossy
NOISE = 8  # levels: what lossy compression adds to black
HALF = 127  # above: nearer to white
GROUND = 0.75  # share of the border that a defect hardly covers
REMEDY = "save it as 8-bit grey PNG, 0 = normal, 255 = defect"


def decode_mask(sample: Sample, size: Size, crop: Size | None = None) -> Decoded:
    """The union of one image's masks, (H, W) of 0 and 1, nearest neighbour; all 0 if it has none.

    Its facts also hold the number of defect "regions" (8-connected).

    Args:
        crop: the central part that is compared later, in which regions are looked for.

    Raises:
        DataError: a mask cannot be read, has another size than its image, or cannot be understood.
    """
    if not sample.masks:
        return Decoded(np.zeros(size, np.uint8), {})
    expected = readers.source_size(sample.sources[0])
    facts: Facts = {}
    defect = np.zeros(expected, np.bool_)
    for mask in sample.masks:
        marked = read_mask(mask, facts)
        require_size(mask, marked.shape, expected, sample)
        look_at_extent(marked, facts)
        defect |= marked
    facts |= look_at_regions(defect, size, crop)
    resized = PILImage.fromarray(defect.view(np.uint8)).resize((size[1], size[0]), PILImage.Resampling.NEAREST)
    return Decoded(np.asarray(resized), facts)


def read_mask(source: Source, facts: Facts) -> NDArray[np.bool_]:
    """The (H, W) pixels that a mask marks, upright."""
    if source.reader != "image":
        return nonzero(readers.read_source(source))
    with readers.opened(source) as image:
        if getattr(image, "is_animated", False):
            raise DataError(f"{source}: a mask of {getattr(image, 'n_frames', 2)} pages; expected one: {REMEDY}")
        lossy = image.format in LOSSY
        readers.turn_upright(image, facts)
        if getattr(image, "has_transparency_data", image.mode in ("RGBA", "LA", "PA")):
            layered = np.asarray(image.convert("RGBA"))
            if layered[..., 3].min() < 255:
                return drawn(layered, lossy, source, facts)
            image = image.convert("RGB")
        if image.mode == "P":
            return indexed(image, source)
        if image.mode not in ("1", "L", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")
        values = np.asarray(image)
        if lossy:
            return bright(values, source, facts)
        if image.mode == "L":
            look_at_levels(image.histogram(), facts)
        marked = nonzero(values)
        if marked.all() and (values != values[0, 0]).any():
            raise DataError(f"{source}: no pixel is 0, which means normal; {REMEDY}")
        return marked


def nonzero(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels of (H, W) or (H, W, C) of which a channel is not 0."""
    marked: Any = values != 0
    found: NDArray[np.bool_] = marked if marked.ndim == 2 else marked.any(axis=-1)
    return found


def drawn(layered: NDArray[np.uint8], lossy: bool, source: Source, facts: Facts) -> NDArray[np.bool_]:
    """What is drawn on a transparent layer (H, W, 4): its opaque pixels, unless colour and alpha contradict each other.

    They do not if the colour is the same everywhere, if all opaque pixels are black, or none is.
    """
    opaque, colour = layered[..., 3] > 0, layered[..., :3]
    visible = nonzero(colour) & opaque
    constant = (colour == colour[0, 0]).all()
    if lossy or opaque.all() or not (constant or not visible.any() or (visible == opaque).all()):
        raise DataError(f"{source}: its colours and its alpha channel mark different pixels; {REMEDY}")
    if not opaque.any() and not constant:
        raise DataError(f"{source}: transparent everywhere, but not of one colour; {REMEDY}")
    facts["mask_alpha"] = True
    look_at_levels(np.bincount(layered[..., 3].ravel(), minlength=256), facts)
    return opaque


def indexed(image: PILImage.Image, source: Source) -> NDArray[np.bool_]:
    """A palette's colours, or its indices, which must agree on what is 0."""
    by_colour, by_index = nonzero(np.asarray(image.convert("RGB"))), nonzero(np.asarray(image))
    if (by_colour != by_index).any():
        raise DataError(f"{source}: a palette whose first colour is not black, or not the only black; {REMEDY}")
    return by_index


def bright(values: NDArray[Any], source: Source, facts: Facts) -> NDArray[np.bool_]:
    """The pixels of a lossy mask that are nearer to white than to black."""
    grey = values if values.ndim == 2 else values.max(axis=-1)
    highest = int(grey.max())
    if NOISE < highest <= HALF:
        raise DataError(
            f"{source}: a mask of a lossy format whose highest value is {highest}; its labels are lost; {REMEDY}"
        )
    if highest <= NOISE:
        return np.zeros(grey.shape, np.bool_)
    facts["mask_lossy"] = True
    marked: NDArray[np.bool_] = grey > HALF
    return marked


def look_at_levels(counts: Sequence[int] | NDArray[np.intp], facts: Facts) -> None:
    """How often each level appears; on both sides of half: edges that were smoothed, or many labels."""
    if any(counts[1 : HALF + 1]) and any(counts[HALF + 1 :]):
        facts["mask_soft"] = True


def look_at_extent(marked: NDArray[np.bool_], facts: Facts) -> None:
    """Whether a mask marks everything, or the ground."""
    if marked.all():
        facts["mask_full"] = True
    elif 2 * np.count_nonzero(marked) > marked.size:
        border = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
        if border.mean() > GROUND:
            facts["mask_white"] = True


def look_at_regions(defect: NDArray[np.bool_], size: Size, crop: Size | None) -> Facts:
    """How many regions there are, and how many of them have no pixel left."""
    from scipy import ndimage  # slow to import

    rows, columns = np.flatnonzero(defect.any(axis=1)), np.flatnonzero(defect.any(axis=0))
    if not len(rows):
        return {"mask_empty": True, "regions": 0}
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    labels, count = ndimage.label(defect[top:bottom, left:right], np.ones((3, 3)))
    skipped = margins(size, crop)
    used = [
        sampled(defect.shape[axis], size[axis], skipped[axis], (crop or size)[axis], int(first), int(last))
        for axis, first, last in ((0, top, bottom), (1, left, right))
    ]
    lost = count - np.count_nonzero(np.bincount(labels[np.ix_(*used)].ravel(), minlength=count + 1)[1:])
    return {"regions": int(count), **({"lost": int(lost)} if lost else {})}


def sampled(pixels: int, size: int, skipped: int, kept: int, first: int, last: int) -> NDArray[np.intp]:
    """Of a row, which pixels from `first` to `last` appear at another size within a crop, counted from `first`."""
    found = nearest(pixels, size)[skipped : skipped + kept]
    return found[(found >= first) & (found < last)] - first


@functools.lru_cache(maxsize=64)
def nearest(pixels: int, size: int) -> NDArray[np.intp]:
    """The pixel of a row that Pillow's nearest neighbour takes for each of `size` pixels."""
    row = PILImage.fromarray(np.arange(pixels, dtype=np.int32)[None])
    found: NDArray[np.int32] = np.asarray(row.resize((size, 1), PILImage.Resampling.NEAREST))[0]
    return found.astype(np.intp)
