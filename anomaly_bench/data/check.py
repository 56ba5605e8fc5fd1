"""`anomaly-bench data check dataset=NAME data_root=DIR`: what is there, and what is wrong with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anomaly_bench.cache import cache_root
from anomaly_bench.config import names
from anomaly_bench.data.mvtec import Dataset, shorten, subfolders
from anomaly_bench.data.store import opened
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.jobs import open_dataset, selected
from anomaly_bench.protocol import Task
from anomaly_bench.records import digest, write_atomically

COUNTED = {"train": "train", "good": "test good", "defects": "test defects", "kinds": "kinds of defect"}
Memory = dict[str, list[int]]  # file -> bytes, time of change in ns, width, height


def check(config: Any) -> bool:
    """Print one row per category; True: every category is there and sound.

    Folders, counts (against `about.counts` of the dataset's YAML), the match of images and masks, and each file's
    header are looked at; pixels are not decoded.

    Raises:
        UsageError: the root is no folder, or none of the dataset's categories is in it.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    dataset = open_dataset(values["dataset"], as_path(values["data_root"]))
    wanted = chosen(dataset, values["category"])
    if len(dataset.missing) == len(dataset.categories):
        raise UsageError(nothing_found(dataset))
    official = (values["dataset"].get("about") or {}).get("counts", {})
    table = Table("category", "group", *COUNTED.values(), "masks", "state", title=dataset.title)
    sound = True
    for name in wanted:
        numbers, problems = examine(dataset, name, official.get(name, {}))
        table.add_row(*map(escape, (name, dataset.categories[name] or "", *numbers, "; ".join(problems) or "ok")))
        sound = sound and not problems
    Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(table)
    return sound


def as_path(data_root: Any) -> Path | None:
    """The key `data_root`, which may look like a number."""
    return None if data_root is None else Path(str(data_root))


def chosen(dataset: Dataset, category: Any) -> list[str]:
    """The categories that the key `category`, a name or a list, stands for."""
    return selected(dataset, names(category, "category"))


def nothing_found(dataset: Dataset) -> str:
    there = shorten([path.name for path in subfolders(dataset.root)])
    return (
        f"{dataset.root}: no category of {dataset.title} in it (folders there: {there or 'none'}); expected "
        f"{shorten(list(dataset.categories))}: give their parent as data_root, or see anomaly-bench data download"
    )


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
