"""The store of decoded images: each is decoded and resized once, into a memory-mapped file shared by all methods.

A file is named after its content: `<key>-<crc32>.npy`, where the key is a hash of the image files and the transform,
the crc32 that of the pixels. If an image or transform changes, or the file is damaged, the images are decoded again.
Files are written under a temporary name and renamed, under a lock, so two processes decode once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray

from anomaly_bench.cache import cache_root
from anomaly_bench.config.settings import FILTER
from anomaly_bench.data.dataset import RGB
from anomaly_bench.data.decoding import decode_mask, decode_sample
from anomaly_bench.files import digest, safe_filename
from anomaly_bench.mapped import stretches
from anomaly_bench.protocol import no_progress

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample, Task
    from anomaly_bench.data.decoding import Size
    from anomaly_bench.protocol import Advance

logger = logging.getLogger(__name__)
AT_ONCE = 256  # images decoded before the next are begun
STORE_REVISION = 1  # raised when the pixels of a stored image change


def made_by(task: Task, filter: str) -> dict[str, Any]:
    """What stored pixels depend on, besides their files and size."""
    return {"store": STORE_REVISION, "filter": filter, **told_planes(task)}


def told_planes(task: Task) -> dict[str, Any]:
    """The planes, unless they are just RGB."""
    return {} if task.planes == (RGB,) else {"planes": [list(astuple(plane)) for plane in task.planes]}


def load_images(
    task: Task,
    images: Sequence[Sample],
    hashes: Sequence[str],
    resize: Size,
    filter: str,
    place: str,
    threads: int,
    advance: Advance = no_progress,
) -> NDArray[Any]:
    """Decoded, resized images (N, H, W, C) in the task's type and channels, memory-mapped, read-only.

    Args:
        hashes: one per image, of all that its pixels depend on, besides planes, size and filter.
        resize: (H, W); the aspect ratio is not kept.
        filter: see `data.decoding`.
        place: the subfolder of the store, the dataset's name.
        advance: called with the number of images done.

    Raises:
        DataError: a file that cannot be decoded.
    """
    about = {"kind": "image", "shape": (*resize, task.channels), "files": list(hashes), **told_planes(task)}
    about |= {"filter": filter} if filter != FILTER else {}
    decode = [functools.partial(decode_sample, image, task.planes, resize, filter) for image in images]
    return stored(about, task.dtype, decode, place, threads, advance)


def load_masks(
    images: Sequence[Sample], hashes: Sequence[str], resize: Size, place: str, threads: int
) -> NDArray[np.uint8]:
    """Masks (N, H, W) of 0 and 1, nearest neighbour, memory-mapped; see `load_images`."""
    about = {"kind": "mask", "shape": resize, "files": list(hashes)}
    decode = [functools.partial(decode_mask, image, resize) for image in images]
    return stored(about, np.dtype(np.uint8), decode, place, threads)


def stored(
    about: Mapping[str, Any],
    dtype: np.dtype[Any],
    decode: Sequence[Callable[[], NDArray[Any]]],
    place: str,
    threads: int,
    advance: Advance = no_progress,
) -> NDArray[Any]:
    """The stored array of what the functions `decode` return, made if it is missing or damaged.

    Args:
        about: all that it depends on; "shape": the shape of one part.
    """
    key = digest({**about, "revision": STORE_REVISION, "pillow": PIL.__version__})[:24]
    folder, shape = cache_root() / "store" / safe_filename(place), (len(decode), *about["shape"])
    if not decode:
        return np.empty(shape, dtype)

    def decoded() -> Iterator[NDArray[Any]]:
        pool = ThreadPoolExecutor(threads)
        try:
            for start in range(0, len(decode), AT_ONCE):  # so that few wait to be written
                for array in pool.map(lambda call: call(), decode[start : start + AT_ONCE]):
                    yield array
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            found = find_array(folder, key, shape)
            if found is None:
                return write_arrays(folder, key, shape, dtype, decoded())
    except OSError as error:
        logger.warning("the cache %s failed (%s): decoded images stay in memory", folder, error.strerror or error)
        return np.stack(list(decoded()))
    advance(len(decode))
    return found


def find_array(folder: Path, key: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The stored array of this key if it is intact; a damaged file is deleted."""
    for path in folder.glob(f"{key}-*.npy"):
        array = sound(path, shape)
        if array is not None:
            return array
        logger.warning("%s is damaged: decoding its images again", path)
        path.unlink(missing_ok=True)  # no longer mapped, which Windows would refuse
    return None


def sound(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The array in a file, memory-mapped; None: its shape or checksum is wrong."""
    with contextlib.suppress(OSError, ValueError):
        array: NDArray[Any] = np.load(path, mmap_mode="r")
        crc = 0
        for part in stretches(array) if array.shape == shape else ():
            crc = zlib.crc32(array[part].data, crc)
        if array.shape == shape and f"{crc:08x}" == path.stem.rpartition("-")[2]:
            return array
    return None


def write_arrays(
    folder: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any], arrays: Iterator[NDArray[Any]]
) -> NDArray[Any]:
    """Write arrays one after the other into `<key>-<crc32>.npy` and map it.

    Plain writes, not a writable map: on a full disk they raise, whereas a map would kill the process.
    """
    for left in folder.glob(f".tmp-{key}-*"):  # left by a killed process: we hold the lock
        left.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".tmp-{key}-")
    crc = 0
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays:
                file.write(array.data)
                crc = zlib.crc32(array.data, crc)
        path = folder / f"{key}-{crc:08x}.npy"
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped
