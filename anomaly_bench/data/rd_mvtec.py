"""Rd-MVTec AD, for methods on non-aligned images (PaDiM; Defard et al. 2020, arXiv 2011.08785, section V-C).

Training and test images of MVTec AD, and their masks alike, are rotated by up to 10 degrees either way, resized to 256
and cropped to 224 at random; the paper averages five draws. Angles and offsets depend on the draw, the category and the
image only, not on a method's seed. The paper does not say what fills the corners; here they are black, and no defect.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.config.settings import whole_number
from anomaly_bench.data.dataset import Root, Sample, Source, Task, find_root
from anomaly_bench.data.mvtec import MVTecDataset, by_category
from anomaly_bench.data.readers import READERS, read_source
from anomaly_bench.errors import DataError

DEGREES, WHOLE, CROP = 10.0, 256, 224
Filter = PILImage.Resampling


@dataclass(frozen=True)
class Rotated(MVTecDataset):
    """MVTec AD's categories, each image with the rotation and crop of one draw."""

    draw: int = 0

    def task(self, category: str) -> Task:
        """See `MVTecDataset.task`."""
        task = super().task(category)

        def moved(images: Sequence[Sample]) -> tuple[Sample, ...]:
            return tuple(move(image, f"{self.draw}/{category}/{image.id}") for image in images)

        return replace(task, fit=moved(task.fit), tests={name: moved(test) for name, test in task.tests.items()})


def move(image: Sample, seed: str) -> Sample:
    """An image and its masks with a random angle and offsets; `member` of each source is "angle/top/left"."""
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    top, left = random.integers(0, WHOLE - CROP, 2, endpoint=True)
    how = f"{random.uniform(-DEGREES, DEGREES):.4f}/{top}/{left}"
    return replace(
        image,
        sources=tuple(Source(source.path, how, "rotated") for source in image.sources),
        masks=tuple(Source(mask.path, how, "rotated_mask") for mask in image.masks),
    )


def rd_mvtec(name: str, title: str, categories: Mapping[str, Sequence[str]], draw: int, data_root: Root) -> Rotated:
    """Rd-MVTec AD from MVTec AD below `data_root`, else below `$ANOMALY_BENCH_DATA/mvtec`.

    Raises:
        UsageError: no root is given, or it does not exist; no such draw.
    """
    whole_number({"dataset.draw": draw}, "dataset.draw", 0)
    root = find_root("mvtec", data_root, "MVTec AD's folder, which contains bottle, cable, ...")
    return Rotated(name, title, root, by_category(categories), draw=draw)


def read_rotated(source: Source) -> NDArray[np.uint8]:
    """The image (224, 224, 3)."""
    values = read_source(Source(source.path))
    if values.dtype != np.uint8:
        raise DataError(f"{source.path}: {values.dtype}; expected 8 bits, as MVTec AD has: replace the file")
    return turned(PILImage.fromarray(values).convert("RGB"), source.member, Filter.BILINEAR)


def read_rotated_mask(source: Source) -> NDArray[np.uint8]:
    """The mask (224, 224), 0 and 1, nearest neighbour."""
    values = read_source(Source(source.path))
    defect = (values.reshape(*values.shape[:2], -1) != 0).any(axis=-1)
    return turned(PILImage.fromarray(defect.astype(np.uint8)), source.member, Filter.NEAREST)


def turned(picture: PILImage.Image, how: str, filter: Filter) -> NDArray[np.uint8]:
    """Rotated about its centre, counter-clockwise, resized and cropped."""
    angle, top, left = map(float, how.split("/"))
    whole = np.asarray(picture.rotate(angle, filter).resize((WHOLE, WHOLE), filter))
    return whole[int(top) : int(top) + CROP, int(left) : int(left) + CROP]


READERS |= {"rotated": read_rotated, "rotated_mask": read_rotated_mask}
