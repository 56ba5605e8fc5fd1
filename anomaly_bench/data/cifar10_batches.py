"""CIFAR-10's official batches, binary or Python: labels and images of 32 x 32 pixels."""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data.dataset import Source
from anomaly_bench.data.readers import READERS
from anomaly_bench.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW = 1 + 3 * 32 * 32  # bytes of an image in a binary batch: its label, then the planes red, green, blue


def batch(reader: str, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels (N,) and images (N, 3, 32, 32) of one file, cached in memory until it changes."""
    return (binary_batch if reader == "cifar10_binary" else pickled_batch)(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=6)
def binary_batch(path: Path, modified: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rows = np.fromfile(path, np.uint8)
    if not len(rows) or len(rows) % ROW or rows[::ROW].max() >= len(CLASSES):
        raise DataError(f"{path}: {len(rows)} bytes; expected rows of {ROW} bytes, a label of 0 to 9 first: replace it")
    rows = rows.reshape(-1, ROW)
    return rows[:, 0], rows[:, 1:].reshape(-1, 3, 32, 32)


class PlainArrays(pickle.Unpickler):
    """Builds only lists, dictionaries, text and numeric arrays: any other name in the file is refused."""

    ALLOWED = re.compile(r"numpy(\._?core)?(\.multiarray)? (_reconstruct|ndarray|dtype)|_codecs encode")

    def find_class(self, module: str, name: str) -> Any:
        if not self.ALLOWED.fullmatch(f"{module} {name}"):
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return super().find_class(module, name)


@functools.lru_cache(maxsize=6)
def pickled_batch(path: Path, modified: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        with path.open("rb") as file:
            values = PlainArrays(file, encoding="bytes").load()
        labels, rows = np.asarray(values[b"labels"], np.uint8), np.asarray(values[b"data"], np.uint8)
        return labels, rows.reshape(len(labels), 3, 32, 32)
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path}: not a batch of CIFAR-10 ({error}); replace it by the official file") from error


def read_row(source: Source) -> NDArray[np.uint8]:
    """The image (32, 32, 3) at index `member` of a batch."""
    images = batch(source.reader, source.path)[1]  # (N, 3, 32, 32)
    return np.moveaxis(images[int(source.member)], 0, 2)


READERS["cifar10_binary"] = READERS["cifar10_pickle"] = read_row
