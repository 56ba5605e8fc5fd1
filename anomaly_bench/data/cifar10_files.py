"""CIFAR-10's image files: in folders, in a zip archive of folders, or in the official batches."""

from __future__ import annotations

import functools
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data.dataset import Source
from anomaly_bench.data.readers import READERS, archive
from anomaly_bench.errors import DataError
from anomaly_bench.files import image_files

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOSSY = (".jpg", ".jpeg", ".webp")
ROW = 1 + 3 * 32 * 32  # bytes of an image in a binary batch: its label, then the planes red, green, blue
Images = Mapping[tuple[str, str], Sequence[tuple[str, Source]]]  # (split, class) -> (id, source) of each image
Found = Iterator[tuple[str, str, str, Source]]  # split, class, id, source


def find_images(root: Path) -> Images:
    """Every image below a folder or in a zip archive, in order; {}: there are none.

    Raises:
        DataError: a batch that cannot be read.
    """
    images: dict[tuple[str, str], list[tuple[str, Source]]] = defaultdict(list)
    for split, kind, name, source in in_zip(root) if root.is_file() else (*in_folders(root), *in_batches(root)):
        images[split, kind].append((name, source))
    return images


def lossy(images: Images) -> bool:
    """Whether any image is stored in a lossy format."""
    return any(name.lower().endswith(LOSSY) for part in images.values() for name, _ in part)


def in_folders(root: Path) -> Found:
    for split in ("train", "test"):
        for kind in CLASSES:
            folder = root / split / kind
            for path in image_files(folder) if folder.is_dir() else ():
                yield split, kind, f"{split}/{kind}/{path.name}", Source(path)


def in_zip(root: Path) -> Found:
    """Members such as train/airplane/0001.png, below any folder of the archive."""
    for member in sorted(archive(root, root.stat().st_mtime_ns).namelist()):
        match = re.search(r"(?:^|/)((train|test)/(\w+)/[^/]+)$", member)
        if match and match[3] in CLASSES:
            yield match[2], match[3], match[1], Source(root, member)


def in_batches(root: Path) -> Found:
    """The official files, in `root` or in the folder of the official archive."""
    for reader, folder, suffix in (("cifar10_binary", "bin", ".bin"), ("cifar10_pickle", "py", "")):
        for path in [*root.glob(f"*_batch*{suffix}"), *(root / f"cifar-10-batches-{folder}").glob(f"*_batch*{suffix}")]:
            split = "test" if path.name == f"test_batch{suffix}" else "train"
            if re.fullmatch(rf"(data_batch_[1-5]|test_batch){re.escape(suffix)}", path.name):
                for row, label in enumerate(batch(reader, path)[0]):
                    yield split, CLASSES[label], f"{path.stem}/{row:05}", Source(path, str(row), reader)


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
