"""Large arrays in files that are mapped into memory: only the pages that are being read take memory."""

from __future__ import annotations

import itertools
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 10**9  # bytes: larger arrays are kept in a file
PIECE = 1 << 26  # values read at a time


def gathered(parts: Iterable[NDArray[Any]], count: int) -> NDArray[Any] | None:
    """Parts (n, ...) of one shape joined to (`count`, ...): in memory or, if large, in a file; None: no parts."""
    coming = iter(parts)
    first = next(coming, None)
    if first is None:
        return None
    shape, every = (count, *first.shape[1:]), itertools.chain([first], coming)
    if first[:1].nbytes * count > LARGE:
        return in_file(every, shape, first.dtype)
    whole, start = np.empty(shape, first.dtype), 0
    for part in every:
        whole[start : start + len(part)] = part
        start += len(part)
    if start != count:
        raise ValueError(f"found {start} maps or masks of {count} images; expected one of each")
    return whole


def in_file(parts: Iterable[NDArray[Any]], shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Parts joined along their first axis in a temporary file, read-only; it goes when the array does.

    The file is written, not mapped for writing: on a full disk that raises, whereas a map would kill the process.
    """
    file = tempfile.TemporaryFile(prefix="anomaly-bench-")  # noqa: SIM115 (the map keeps it)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype).data)
    file.flush()
    return np.asarray(np.memmap(file, dtype, "r", shape=tuple(shape)))


def stretches(arrays: Sequence[NDArray[Any]] | NDArray[Any], most: int = PIECE) -> Iterator[slice]:
    """Consecutive rows of an array, or arrays of a list: at least one, else at most `most` values in all.

    When the next one is asked for, the pages of the last one are released.
    """
    start = values = 0
    for number, array in enumerate(arrays):
        if values and values + array.size > most:
            yield slice(start, number)
            release(arrays)
            start, values = number, 0
        values += array.size
    yield slice(start, len(arrays))
    release(arrays)


def release(array: Any) -> None:
    """Return the pages of an array that is mapped from a file to the system, which reads them again when needed."""
    while isinstance(array, np.ndarray):
        array = array.base
    if sys.platform != "win32" and isinstance(array, mmap.mmap):
        array.madvise(mmap.MADV_DONTNEED)
