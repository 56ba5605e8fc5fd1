"""`anomaly-bench cache list|clear`: files that can be recreated at any time."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cache import cache_root, clear, listing
from anomaly_bench.errors import Exit, UsageError


def command(subject: str, arguments: Sequence[str]) -> int:
    if arguments:
        raise UsageError(f"cache {subject}: takes no keys, found {arguments[0]}")
    if subject == "clear":
        print(f"freed {clear() / 1e6:.1f} MB in {cache_root()}")
        return Exit.DONE
    rows = listing()
    for folder, files, size in rows:
        print(f"{size / 1e6:10.1f} MB  {files:6} files  {folder}")
    print(f"{sum(row[2] for row in rows) / 1e6:10.1f} MB  in {cache_root()}")
    return Exit.DONE
