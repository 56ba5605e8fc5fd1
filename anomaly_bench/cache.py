"""The cache of what can be recomputed: decoded images, networks, features, hashes, headers, generated datasets."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

CACHE_VARIABLE = "ANOMALY_BENCH_CACHE"
FEATURES = "features"  # the folder of backbone features
PROGRAMS = "programs"  # the folder of recorded networks
LOCKS = "locks"
BY_DATASET = ("store", FEATURES)
STANDSTILL = 60.0  # seconds


def cache_root() -> Path:
    """`$ANOMALY_BENCH_CACHE`, or the system's cache folder for this user."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("anomaly-bench", appauthor=False)


@contextlib.contextmanager
def turn(lock: Path, unfinished: str) -> Iterator[None]:
    """Wait while another process makes what this one needs, unless it stands still: it may be stopped.

    Args:
        lock: the lock of what is made.
        unfinished: the pattern, in the folder of the lock, of the files being written, which grow meanwhile.
    """

    def written() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_size) for path in lock.parent.glob(unfinished))

    with contextlib.ExitStack() as held:
        before = None
        while True:
            try:
                held.enter_context(FileLock(lock).acquire(timeout=STANDSTILL))
                break
            except Timeout:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile, so it is finished
                    if written() == before:
                        break
                    before = written()
        yield


def listing() -> list[tuple[str, int, int]]:
    """(folder, files, bytes) of each part: `store/<dataset>`, `features/<dataset>`, `programs`, `digests` and so on."""
    root = cache_root()
    folders = sorted(path for path in root.glob("*") if path.is_dir() and path.name not in BY_DATASET)
    folders += sorted(path for part in BY_DATASET for path in (root / part).glob("*") if path.is_dir())
    rows = []
    for folder in folders:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        rows.append((folder.relative_to(root).as_posix(), len(sizes), sum(sizes)))
    return rows


def clear() -> int:
    """Delete the cache and return the bytes freed; locks stay, as other processes may hold them."""
    freed = sum(size for name, _, size in listing() if name != LOCKS)
    for folder in cache_root().glob("*"):
        if folder.is_dir() and folder.name != LOCKS:
            shutil.rmtree(folder, ignore_errors=True)
    return freed
