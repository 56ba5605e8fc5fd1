"""`anomaly-bench data check dataset=NAME data_root=DIR`: what is there, and what is wrong with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_bench.cache import cache_root
from anomaly_bench.data.decoding import opened
from anomaly_bench.errors import DataError
from anomaly_bench.files import digest, write_atomically

if TYPE_CHECKING:
    from anomaly_bench.data.mvtec import Dataset
    from anomaly_bench.protocol import Task

COUNTED = {"train": "train", "good": "test good", "defects": "test defects", "kinds": "kinds of defect"}
Memory = dict[str, list[int]]  # file -> bytes, time of change in ns, width, height


def examine(dataset: Dataset, name: str, official: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The cells of one category's row, and what is wrong with it."""
    cells, problems = [""] * (len(COUNTED) + 1), []
    try:
        if name in dataset.missing:
            raise DataError(f"no folder {dataset.folder(name)}")
        task = dataset.task(name)
        found, masks = count(task)
        cells = [str(number) for number in (*found.values(), masks)]
        problems += differences(found, official)
        look_at_headers(task, dataset.folder(name))
    except DataError as error:
        problems.append(str(error))
    return cells, problems


def count(task: Task) -> tuple[dict[str, int], int]:
    """The numbers of `COUNTED`, and of masks."""
    tested = [image for test in task.tests.values() for image in test]
    defects = [image for image in tested if image.defect is not None]
    kinds = {image.defect for image in defects}
    numbers = (len(task.fit), len(tested) - len(defects), len(defects), len(kinds))
    return dict(zip(COUNTED, numbers, strict=True)), sum(image.mask is not None for image in defects)


def differences(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """At most one line: every count that is not the official one, where there is one."""
    wrong = [
        f"{COUNTED[key]} {found[key]}, official {number}" for key, number in official.items() if found[key] != number
    ]
    return [f"counts differ: {'; '.join(wrong)}"] if wrong else []


def look_at_headers(task: Task, folder: Path) -> None:
    """Raise DataError for the first file that is no image, or mask that has not its image's size."""
    with remembered(folder) as memory:
        for image in (*task.fit, *(image for test in task.tests.values() for image in test)):
            size = pixels(image.path, memory)
            if image.mask is None:
                continue
            found = pixels(image.mask, memory)
            if found != size:
                raise DataError(f"{image.mask}: {found} pixels, its image {image.file} has {size}; expected the same")


@contextlib.contextmanager
def remembered(folder: Path) -> Iterator[Memory]:
    """The headers of one category that were sound before, to be added to; they are kept in the cache."""
    path = cache_root() / "headers" / f"{digest(str(folder.resolve()))[:16]}.json"
    memory: Memory = {}
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads(path.read_bytes())
    before = dict(memory)
    try:
        yield memory
    finally:
        if memory != before:
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
                write_atomically(path, json.dumps(memory))


def pixels(path: Path, memory: Memory) -> str:
    """WIDTHxHEIGHT from the header, which is read again only where the file has changed."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
    entry = memory.get(str(path), [])
    if entry[:2] != [status.st_size, status.st_mtime_ns]:
        with opened(path) as image:
            entry = [status.st_size, status.st_mtime_ns, *image.size]
        memory[str(path)] = entry
    return f"{entry[2]}x{entry[3]}"
