"""Features on disk: written once, read by every later pass, evicted when space is needed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from anomaly_bench.cache import FEATURES, cache_root
from anomaly_bench.files import digest, safe_filename, write_atomically
from anomaly_bench.hardware import timing

logger = logging.getLogger(__name__)
INDEX = "pass.json"


class NoRoomError(Exception):
    """The features do not fit in the cache."""


class DamagedError(Exception):
    """A feature file is corrupt."""


class StoredLevel(NamedTuple):
    """One level of a stored pass, as in its index.

    Attributes:
        shape: (C, h, w).
        strides: of the network's output, by batch size: sums may depend on them.
        crc32: of each batch.
        seconds: duration of the pass over all images.
        date: of the pass.
    """

    shape: tuple[int, int, int]
    strides: dict[str, tuple[int, ...]]
    crc32: list[int]
    seconds: float
    date: str


class CachedPass(NamedTuple):
    """Levels of one set, stored in a folder.

    Attributes:
        images: number of images in the set.
        batch: images per batch, except the last.
        levels: by module path.
    """

    folder: Path
    images: int
    batch: int
    levels: Mapping[str, StoredLevel]

    @classmethod
    def load(cls, folder: Path, images: int, batch: int) -> CachedPass:
        """The pass stored in a folder; no levels if its index is missing or damaged."""
        levels: dict[str, StoredLevel] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            index = json.loads((folder / INDEX).read_bytes())
            if index.pop("checksum") == digest(index):
                levels = {path: StoredLevel(**level) for path, level in index["levels"].items()}
        return cls(folder, images, batch, levels)

    def save(self) -> None:
        index: dict[str, Any] = {"images": self.images, "batch": self.batch}
        index["levels"] = {path: level._asdict() for path, level in self.levels.items()}
        write_atomically(self.folder / INDEX, json.dumps({**index, "checksum": digest(index)}))

    def file(self, path: str) -> Path:
        return self.folder / f"{safe_filename(path)}.f32"

    def read(self, path: str, start: int, device: torch.device) -> Tensor:
        """(B, C, h, w) of the batch that begins at `start`, with the network's original strides.

        Raises:
            DamagedError: the content differs from what was written.
            OSError: another job has evicted the file.
        """
        level, count = self.levels[path], min(self.batch, self.images - start)
        channels, height, width = level.shape
        buffer = torch.empty(count, height, width, channels)
        content: Any = buffer.numpy()
        with self.file(path).open("rb") as file:
            file.seek(start * buffer[0].nbytes)
            whole = file.readinto(content) == buffer.nbytes
        if not whole or zlib.crc32(content) != level.crc32[start // self.batch]:
            raise DamagedError(f"{self.file(path)} is damaged")
        strides = level.strides[str(count)]
        features = buffer.permute(0, 3, 1, 2)
        if features.stride() == tuple(strides) and device.type == "cpu":
            return features
        return torch.empty_strided(features.shape, strides, device=device).copy_(features)


class Writer:
    """Writes the levels of a pass to their reserved files, and renames these once all are complete.

    It uses plain writes rather than memory maps: on a full disk they raise, while a map would kill the process.
    """

    def __init__(self, stored: CachedPass, paths: Sequence[str]) -> None:
        self.stored, self.paths = stored, paths
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.strides: dict[str, dict[str, tuple[int, ...]]] = {path: {} for path in paths}
        self.crc32: dict[str, list[int]] = {path: [] for path in paths}

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Sequence[Tensor]], None]]:
        """Yield a function that writes the levels of one batch at a time; unfinished files are deleted."""
        files = {path: self.stored.folder / temporary(path) for path in self.paths}
        try:
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(file.open("r+b")) for file in files.values()]

                def write(levels: Sequence[Tensor]) -> None:
                    for path, file, level in zip(self.paths, opened, levels, strict=True):
                        content: Any = level.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                        file.write(content)
                        self.shapes[path] = (level.shape[1], level.shape[2], level.shape[3])
                        self.strides[path][str(len(level))] = level.stride()
                        self.crc32[path].append(zlib.crc32(content))

                yield write
            for path, file in files.items():
                os.replace(file, self.stored.file(path))
        finally:
            for file in files.values():
                file.unlink(missing_ok=True)

    def finish(self, seconds: float) -> CachedPass:
        """Add the new levels to the pass and save its index."""
        new = {
            path: StoredLevel(self.shapes[path], self.strides[path], self.crc32[path], seconds, timing.today())
            for path in self.paths
        }
        merged = self.stored._replace(levels={**self.stored.levels, **new})
        merged.save()
        return merged


@dataclass(frozen=True)
class FeatureCache:
    """All stored passes of the current user, within a size limit in bytes."""

    limit: float

    @property
    def root(self) -> Path:
        return cache_root() / FEATURES

    def folder(self, dataset: str, key: str) -> Path:
        return self.root / safe_filename(dataset) / key

    def reserve(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Reserve sparse files of these sizes, evicting least recently used passes until they fit the limit.

        They take no disk space yet, but other jobs count them. The caller holds the folder's lock.

        Raises:
            NoRoomError: they exceed the limit or the free disk space.
        """
        with FileLock(self.root / ".lock"):
            self.make_room(folder, sum(sizes.values()))
            folder.mkdir(exist_ok=True)
            for name, size in sizes.items():
                with (folder / name).open("wb") as file:
                    file.truncate(size)

    def make_room(self, target: Path, needed: int) -> None:
        """See `reserve`."""
        entries = {folder: self.size(folder) for folder in self.root.glob("*/*") if folder.is_dir()}
        taken = sum(entries.values())
        possible = needed + entries.get(target, 0) <= self.limit
        for folder in sorted(entries.keys() - {target}, key=last_use) if possible else ():
            if taken + needed <= self.limit:
                break
            if drop(folder):
                logger.info("evicted from the cache: %s, %.0f MB", folder, entries[folder] / 1e6)
                taken -= entries[folder]
        if taken + needed > self.limit:
            raise NoRoomError(f"{needed / 1e9:.2f} GB do not fit into cache_gb={self.limit / 1e9:g}")
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise NoRoomError(f"{needed / 1e9:.2f} GB do not fit on the disk, which has {free / 1e9:.2f} GB free")

    @staticmethod
    def size(folder: Path) -> int:
        total = 0
        for file in folder.glob("*"):
            with contextlib.suppress(OSError):  # evicted in the meantime
                total += file.stat().st_size
        return total


def temporary(path: str) -> str:
    """The name of a level's file while it is being written."""
    return f".tmp-{safe_filename(path)}"


def last_use(folder: Path) -> float:
    """When a pass was last used; 0: it has no index, because its job was killed."""
    with contextlib.suppress(OSError):
        return (folder / INDEX).stat().st_mtime
    return 0.0


def drop(folder: Path) -> bool:
    """Delete a stored pass; False: a job is using it, or the system refuses."""
    try:
        with FileLock(lock_file(folder), timeout=0):
            (folder / INDEX).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except (Timeout, OSError):
        return False
    return True


def lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
