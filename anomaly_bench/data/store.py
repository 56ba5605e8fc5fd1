"""The store of decoded images: each is decoded and resized once, into a memory-mapped file shared by all methods.

A file is named after its content: `<key>-<crc32>.npy`, where the key is a hash of the image files and the transform,
the crc32 that of the pixels. If an image or transform changes, or the file is damaged, the images are decoded again.
What was noticed about the files is in `<key>.json`. Files are written under a temporary name and renamed, under a
lock, so two processes decode once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from anomaly_bench.cache import cache_root, turn
from anomaly_bench.config.settings import FILTER
from anomaly_bench.data.dataset import RGB
from anomaly_bench.data.decoding import Decoded, decode_sample
from anomaly_bench.data.masks import decode_mask
from anomaly_bench.files import digest, safe_filename, write_atomically
from anomaly_bench.mapped import stretches
from anomaly_bench.protocol import no_progress

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample, Task
    from anomaly_bench.data.decoding import Size
    from anomaly_bench.data.findings import Facts
    from anomaly_bench.protocol import Advance

logger = logging.getLogger(__name__)
AT_ONCE = 256  # images decoded before the next are begun
STORE_REVISION = 3  # raised when the pixels of a stored image change


class Stored(NamedTuple):
    """An array of all parts, memory-mapped, read-only, and the facts of each."""

    values: NDArray[Any]
    facts: list[Facts]


def made_by(task: Task, filter: str) -> dict[str, Any]:
    """What stored pixels depend on, besides their files and size."""
    return {"store": STORE_REVISION, "filter": filter, **told_planes(task)}


def told_planes(task: Task) -> dict[str, Any]:
    """The planes, unless they are just RGB."""
    return {} if task.planes == (RGB,) else {"planes": [list(astuple(plane)) for plane in task.planes]}


class Wanted(NamedTuple):
    """Arrays of one shape and type, which are in the store or can be made.

    Attributes:
        key: a hash of all that they depend on.
        shape: of all in one array; the first axis counts them.
        decode: one function for each.
        place: the subfolder of the store, the dataset's name.
        threads: that decode.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    decode: Sequence[Callable[[], Decoded]]
    place: str
    threads: int

    @property
    def folder(self) -> Path:
        return cache_root() / "store" / safe_filename(self.place)

    def known(self) -> bool:
        """Whether the store has a file of them, be it intact or not."""
        return not self.decode or any(self.folder.glob(f"{self.key}-*.npy"))

    def load(self, advance: Advance = no_progress) -> Stored:
        """The arrays and the facts of each, made if they are missing or damaged.

        Args:
            advance: called with the number of arrays done.

        Raises:
            DataError: a file that cannot be decoded.
        """
        key, shape, dtype, folder = self.key, self.shape, self.dtype, self.folder
        if not self.decode:
            return Stored(np.empty(shape, dtype), [])
        facts: list[Facts] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with turn(folder / f".{key}.lock", f".tmp-{key}-*"):
                found = find_array(folder, key, shape, dtype)
                if found is None:
                    return Stored(write_arrays(folder, key, shape, dtype, self.decoded(facts, advance), facts), facts)
        except OSError as error:
            logger.warning("the cache %s failed (%s): decoded images stay in memory", folder, error.strerror or error)
            return Stored(np.stack(list(self.decoded(facts, advance))), facts)
        advance(len(self.decode))
        return found

    def decoded(self, facts: list[Facts], advance: Advance) -> Iterator[NDArray[Any]]:
        """The arrays, one after the other; the facts of each are put into the list."""
        facts.clear()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for start in range(0, len(self.decode), AT_ONCE):  # so that few wait to be written
                for array, noticed in in_order(pool, self.decode[start : start + AT_ONCE], self.threads):
                    facts.append(noticed)
                    yield array
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)


def wanted_images(
    task: Task,
    images: Sequence[Sample],
    hashes: Sequence[str],
    resize: Size,
    filter: str,
    place: str,
    threads: int,
    bits: int | None = None,
) -> Wanted:
    """Decoded, resized images (N, H, W, C) in the task's type and channels.

    Args:
        hashes: one per image, of all that its pixels depend on, besides planes, size and filter.
        resize: (H, W); the aspect ratio is not kept.
        filter: see `data.decoding`.
        place, threads: see `Wanted`.
        bits: see `data.decoding.decode_image`.
    """
    about = {"kind": "image", "shape": (*resize, task.channels), "files": list(hashes), **told_planes(task)}
    about |= {"filter": filter} if filter != FILTER else {}
    about |= {"bits": bits} if bits else {}
    decode = [functools.partial(decode_sample, image, task.planes, resize, filter, bits) for image in images]
    return wanted(about, task.dtype, decode, place, threads)


def wanted_masks(
    images: Sequence[Sample], hashes: Sequence[str], resize: Size, crop: Size | None, place: str, threads: int
) -> Wanted:
    """Masks (N, H, W) of 0 and 1, nearest neighbour; see `wanted_images`, and for the crop `decode_mask`."""
    about = {"kind": "mask", "shape": resize, "crop": crop, "files": list(hashes)}
    decode = [functools.partial(decode_mask, image, resize, crop) for image in images]
    return wanted(about, np.dtype(np.uint8), decode, place, threads)


def wanted(
    about: Mapping[str, Any], dtype: np.dtype[Any], decode: Sequence[Callable[[], Decoded]], place: str, threads: int
) -> Wanted:
    """What the functions `decode` return.

    Args:
        about: all that it depends on; "shape": the shape of one part.
    """
    key = digest({**about, "revision": STORE_REVISION, "pillow": PIL.__version__})[:24]
    return Wanted(key, (len(decode), *about["shape"]), dtype, decode, place, threads)


def in_order(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], Decoded]], threads: int) -> Iterator[Decoded]:
    """What the calls return, several in one task of the pool, as a task of its own costs a small image a fifth more."""
    step = max(1, len(calls) // (4 * threads))
    parts = [calls[start : start + step] for start in range(0, len(calls), step)]
    for made in pool.map(lambda part: [call() for call in part], parts):
        yield from made


def find_array(folder: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored | None:
    """The stored array of this key, with its facts, if it is intact; a damaged file is deleted."""
    for path in folder.glob(f"{key}-*.npy"):
        array, facts = sound(path, shape, dtype), read_facts(folder / f"{key}.json", shape[0])
        if array is not None and facts is not None:
            return Stored(array, facts)
        logger.warning("%s is damaged: decoding its images again", path)
        path.unlink(missing_ok=True)  # no longer mapped, which Windows would refuse
    return None


def read_facts(path: Path, count: int) -> list[Facts] | None:
    """The facts of so many images; None: the file is not whole."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        if isinstance(found, list) and len(found) == count and all(isinstance(each, dict) for each in found):
            return found
    return None


def sound(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The array in a file, memory-mapped; None: its shape or checksum is wrong."""
    with contextlib.suppress(OSError, ValueError):
        array = mapped_array(path, shape, dtype)
        crc = 0
        for part in stretches(array):
            crc = zlib.crc32(array[part].data, crc)
        if f"{crc:08x}" == path.stem.rpartition("-")[2]:
            return array
    return None


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def mapped_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in a file; ValueError: it is of another shape or type.

    Without np.load, which parses the header as Python code: in Python 3.11, that breaks an import in another thread.
    """
    header = npy_header(shape, dtype)
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"{path}: expected an array of shape {shape} and type {dtype}")
    return np.memmap(path, dtype, "r", len(header), shape)


def write_arrays(
    folder: Path,
    key: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    arrays: Iterator[NDArray[Any]],
    facts: Sequence[Facts],
) -> NDArray[Any]:
    """Write arrays one after the other into `<key>-<crc32>.npy` and map it; then `facts` holds those of each.

    Plain writes, not a writable map: on a full disk they raise, whereas a map would kill the process.
    """
    for left in folder.glob(f".tmp-{key}-*"):  # left by a process that was killed or stands still: it is our turn
        left.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".tmp-{key}-")
    crc = 0
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(npy_header(shape, dtype))
            for array in arrays:
                file.write(array.data)
                crc = zlib.crc32(array.data, crc)
        write_atomically(folder / f"{key}.json", json.dumps(facts, separators=(",", ":")))
        path = folder / f"{key}-{crc:08x}.npy"
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return mapped_array(path, shape, dtype)
