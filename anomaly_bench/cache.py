"""Where anomaly-bench keeps what can be made again: decoded images, hashes, headers, generated datasets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "ANOMALY_BENCH_CACHE"


def cache_root() -> Path:
    """`$ANOMALY_BENCH_CACHE`, else the user's cache folder of this system."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("anomaly-bench", appauthor=False)


def listing() -> list[tuple[str, int, int]]:
    """(folder, files, bytes) of each part of the cache: `store/<dataset>`, `digests`, `outlines`, `synthetic-...`."""
    root = cache_root()
    store = root / "store"
    folders = sorted(path for path in root.glob("*") if path.is_dir() and path != store)
    folders += sorted(path for path in store.glob("*") if path.is_dir())
    rows = []
    for folder in folders:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        rows.append((folder.relative_to(root).as_posix(), len(sizes), sum(sizes)))
    return rows


def clear() -> int:
    """Delete the cache and return how many bytes that freed."""
    freed = sum(size for _, _, size in listing())
    shutil.rmtree(cache_root(), ignore_errors=True)
    return freed
