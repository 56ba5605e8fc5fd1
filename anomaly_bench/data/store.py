"""Every image is decoded and resized once, into a memory-mapped file that all methods share.

A file is named after what it holds: `<key>-<crc32>.npy`, the key a hash over the contents of the images and over
the transform, the crc32 that of the pixels. So a changed image, transform or damaged file is never read: it is
decoded anew. Files are written beside their place and renamed, under a lock: two processes decode once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray

from anomaly_bench.cache import cache_root
from anomaly_bench.data.decoding import FILTER, decode_image, decode_mask
from anomaly_bench.errors import DataError
from anomaly_bench.files import digest, safe_filename, write_atomically

if TYPE_CHECKING:
    from anomaly_bench.data.decoding import Size
    from anomaly_bench.protocol import Image

logger = logging.getLogger(__name__)
REVISION = 1  # raised when the pixels of a stored image change
MADE_BY = {"store": REVISION, "filter": FILTER.name}  # what stored pixels depend on besides their files and size
Advance = Callable[[int], Any]


def file_digests(paths: Sequence[Path], folder: Path) -> dict[Path, tuple[int, str]]:
    """(size in bytes, sha256) of each file of one category; remembered by size and time of change."""
    memory_path = cache_root() / "digests" / f"{digest(str(folder.resolve()))[:16]}.json"
    memory: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads(memory_path.read_bytes())
    known: dict[str, list[Any]] = {}
    for path in paths:
        try:
            status = path.stat()
            entry = memory.get(str(path), [])
            if entry[:2] != [status.st_size, status.st_mtime_ns]:
                with path.open("rb") as file:
                    entry = [
                        status.st_size,
                        status.st_mtime_ns,
                        hashlib.file_digest(file, "sha256").hexdigest(),
                    ]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
        known[str(path)] = entry
    if known != memory:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomically(memory_path, json.dumps(known))
    return {path: (known[str(path)][0], known[str(path)][2]) for path in paths}


def load_images(
    images: Sequence[Image], sha256: Sequence[str], resize: Size, place: str, threads: int, advance: Advance
) -> NDArray[np.uint8]:
    """Decoded, resized RGB images (N, H, W, 3), memory-mapped read-only.

    Args:
        sha256: of each image's file.
        resize: (H, W); PIL's bilinear filter, which antialiases; the aspect ratio is not kept.
        place: the folder below the store, the dataset's name.
        advance: called with the number of images done.

    Raises:
        DataError: a file that cannot be decoded.
    """
    paths = [image.path for image in images]
    return stored("image", paths, sha256, (*resize, 3), decode_image, place, threads, advance)


def load_masks(
    images: Sequence[Image], sha256: Sequence[str], resize: Size, place: str, threads: int
) -> NDArray[np.uint8]:
    """Masks (N, H, W) of 0 and 1, nearest neighbour, memory-mapped; see `load_images`."""
    return stored("mask", images, sha256, resize, decode_mask, place, threads, lambda done: None)


def stored(
    kind: str,
    sources: Sequence[Any],
    sha256: Sequence[str],
    shape: tuple[int, ...],
    decode: Callable[[Any, Size], NDArray[np.uint8]],
    place: str,
    threads: int,
    advance: Advance,
) -> NDArray[np.uint8]:
    """The stored array of `decode(source, (H, W))` for every source, made where it is missing or damaged."""
    about = {
        "revision": REVISION,
        "kind": kind,
        "shape": shape,
        "pillow": PIL.__version__,
        "files": list(sha256),
    }
    key, folder = digest(about)[:24], cache_root() / "store" / safe_filename(place)
    shape = (len(sources), *shape)

    def decoded() -> Iterator[NDArray[np.uint8]]:
        pool = ThreadPoolExecutor(threads)
        try:
            for array in pool.map(lambda source: decode(source, (shape[1], shape[2])), sources):
                yield array
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            found = find(folder, key, shape)
            if found is None:
                return write(folder, key, shape, decoded())
    except OSError as error:
        logger.warning("the cache %s failed (%s): decoded images stay in memory", folder, error.strerror or error)
        return np.stack(list(decoded()))
    advance(len(sources))
    return found


def find(folder: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The stored array of this key if it is whole; a damaged file is deleted."""
    for path in folder.glob(f"{key}-*.npy"):
        array = whole(path, shape)
        if array is not None:
            return array
        logger.warning("%s is damaged: its images are decoded anew", path)
        path.unlink(missing_ok=True)  # no longer mapped: Windows would refuse
    return None


def whole(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in a file, memory-mapped; None: it has another shape, or not the checksum in its name."""
    with contextlib.suppress(OSError, ValueError):
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        if array.shape == shape and f"{zlib.crc32(array.data):08x}" == path.stem.rpartition("-")[2]:
            return array
    return None


def write(folder: Path, key: str, shape: tuple[int, ...], arrays: Iterator[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Write arrays one after the other into `<key>-<crc32>.npy` and map it.

    Plain writes, not a writable map: on a full disk they raise, where a map would kill the process.
    """
    for left in folder.glob(f".tmp-{key}-*"):  # by a process that was killed: the lock is ours
        left.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".tmp-{key}-")
    crc = 0
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays:
                file.write(array.data)
                crc = zlib.crc32(array.data, crc)
        path = folder / f"{key}-{crc:08x}.npy"
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return mapped
