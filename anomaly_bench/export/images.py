"""The images that a graph is checked on: a folder, or the test images of the model's record."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from anomaly_bench import records
from anomaly_bench.config.settings import input_size, resize_filter, used_bits
from anomaly_bench.console import Reporter
from anomaly_bench.data import decoding, readers
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.geometry import centred
from anomaly_bench.errors import UsageError
from anomaly_bench.files import image_files, tree
from anomaly_bench.records.record import DamagedRecord
from anomaly_bench.runs.runner import Runner
from anomaly_bench.runs.verification import configured


@dataclass(frozen=True)
class Images:
    """Sources of images and, of a record's, their labels (True: defective)."""

    sources: Sequence[Source]
    labels: Sequence[bool] | None = None

    def whole(self) -> Iterator[NDArray[np.uint8]]:
        """(H, W, 3) at their own size."""
        for source in self.sources:
            yield decoding.decode_image(source, readers.source_size(source)).values

    def fitted(self, node: Mapping[str, Any]) -> Iterator[NDArray[np.uint8]]:
        """(H, W, 3) resized and cropped as a model's `input` says."""
        size, crop = input_size(node)
        for source in self.sources:
            yield centred(decoding.decode_image(source, size, resize_filter(node), used_bits(node)).values, crop)


def as_fitted(images: NDArray[np.uint8], node: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(B, H, W, 3) images of their own size, resized by Pillow and cropped as a model's `input` says."""
    size, crop = input_size(node)
    pictures = map(PILImage.fromarray, images)
    return np.stack([centred(decoding.resize(each, size, resize_filter(node)), crop) for each in pictures])


def of_folder(folder: Path) -> Images:
    """Every image below a folder.

    Raises:
        UsageError: there is none.
    """
    files = [file for each in tree(folder, links=False) for file in image_files(each)]
    if not files:
        raise UsageError(f"images={folder}: no image in it or its subfolders; expected png, jpg, tif, bmp, ...")
    return Images([Source(file) for file in files])


def of_record(model: Path, wanted: Mapping[str, Any], folders: Sequence[Path]) -> Images:
    """The test images of the record beside a model.

    Args:
        wanted: `data_root`, `weights` and `folder`.

    Raises:
        UsageError: there is no such record, or its images are not in image files.
    """
    file = model.parent / f"{model.name}.json"
    try:
        record = records.load(file)
    except DamagedRecord as error:
        raise UsageError(f"{model}: its record cannot be used ({error}); give images=DIR to check on") from error
    with tempfile.TemporaryDirectory() as nowhere:
        config = configured(record, {**wanted, "device": "cpu"}, folders, nowhere)
        samples = Runner(config, Reporter()).job(record.task).task.tests[record.test]
    if any(len(sample.sources) > 1 or sample.sources[0].reader != "image" for sample in samples):
        raise UsageError(f"{record.dataset}: its images are not single image files; give images=DIR to check on")
    return Images([sample.sources[0] for sample in samples], [sample.label is not None for sample in samples])
