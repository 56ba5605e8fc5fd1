"""Sizes, crops and the position of an anomaly map on its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench.config.settings import describe_input
from anomaly_bench.data.decoding import Size, margins
from anomaly_bench.data.masks import decode_mask
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.anomaly_maps import MapValues
    from anomaly_bench.data.dataset import Sample


def has_masks(images: Sequence[Sample]) -> bool:
    """Whether the dataset marks the defects of these images; true if there are no defects to mark."""
    return any(image.masks for image in images) or not any(image.label for image in images)


def centre(images: NDArray[Any], crop: Size | None) -> NDArray[Any]:
    """The central (H, W) of (N, H, W, ...), as a view."""
    if crop is None:
        return images
    top, left = margins((images.shape[1], images.shape[2]), crop)
    return images[:, top : top + crop[0], left : left + crop[1]]


@dataclass(frozen=True)
class Frame:
    """The size at which maps and masks are compared: the input's, or each image's own if `resize` is None."""

    resize: Size | None
    crop: Size | None

    def __str__(self) -> str:
        if self.resize is None:
            return "the images' own size"
        return describe_input({"resize": self.resize, "crop": self.crop})

    def mask(self, image: Sample, own: Size) -> NDArray[np.bool_]:
        """(H, W), True = defect; `own` is the image's size."""
        mask: NDArray[np.bool_] = decode_mask(image, self.resize or own).values.astype(np.bool_)
        return centred(mask, self.crop)

    def map(self, values: MapValues, own: Size) -> MapValues:
        """A map, resized and cropped if it has not this size yet.

        Raises:
            DataError: it is ambiguous how.
        """
        wanted = self.crop or self.resize or own
        if values.shape == wanted:
            return values
        if values.shape == own[::-1] != own:
            raise DataError(
                f"a map of {shape(values.shape)}, its image has {shape(own)}; transpose it: height comes first"
            )
        if self.crop is None:
            return resized(values, wanted)
        if self.resize is None or values.shape not in (own, self.resize):
            expected = f"{shape(wanted)} (input.crop) or {shape(own)}, its image's own size"
            raise DataError(f"a map of {shape(values.shape)}; expected {expected}")
        return centred(resized(values, self.resize), self.crop)


def centred(plane: NDArray[Any], crop: Size | None) -> NDArray[Any]:
    """The central (H, W) of one (H, W, ...) array, as a run crops its images."""
    return np.asarray(centre(plane[None], crop)[0])


def shape(size: Sequence[int]) -> str:
    """'256×224', height first."""
    return "×".join(map(str, size))


def resized(values: MapValues, size: Size) -> MapValues:
    """(H, W) values resized (bilinear, antialiased when made smaller), float32."""
    picture = PILImage.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), PILImage.Resampling.BILINEAR))
