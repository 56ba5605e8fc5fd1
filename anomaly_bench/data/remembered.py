"""Facts about files, kept in the cache: a file is read again only if its status has changed.

That is its size, modification time, inode and change time: archives and copying programs set the modification time, so
that a changed file of equal size may have the old one, but no program sets the change time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.cache import cache_root
from anomaly_bench.data.dataset import Source
from anomaly_bench.errors import DataError
from anomaly_bench.files import digest, write_atomically

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Digests

Facts = list[Any]  # JSON values
_anew: ContextVar[bool] = ContextVar("anew", default=False)


@contextlib.contextmanager
def reading_anew() -> Iterator[None]:
    """Within the block every file is read, whatever is remembered of it."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)


def stamp_of(path: Path) -> list[int]:
    """What changes when a file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


@contextlib.contextmanager
def remembered(part: str, place: Path, find: Callable[[Source], Facts]) -> Iterator[Callable[[Source], Facts]]:
    """A function that returns `find(source)`, from the cache if the file is unchanged.

    Args:
        part: the folder in the cache.
        place: usually a category's folder; each place has one cache file.
    """
    memory_file = cache_root() / part / f"{digest(str(place.resolve()))[:16]}.json"
    memory: dict[str, list[Any]] = {}  # source -> its file's stamp, what was found
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads(memory_file.read_bytes())
    before = dict(memory)

    def look_up(source: Source) -> Facts:
        try:
            stamp = stamp_of(source.path)
            if _anew.get() or memory.get(str(source), [None])[0] != stamp:
                memory[str(source)] = [stamp, find(source)]
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror}); check the file's permissions") from error
        facts: Facts = memory[str(source)][1]
        return facts

    try:
        yield look_up
    finally:
        if memory != before:
            with contextlib.suppress(OSError):  # without the cache it is only slower
                write_atomically(memory_file, json.dumps(memory))


def file_digests(paths: Sequence[Path], folder: Path) -> Digests:
    """(size in bytes, sha256) of each file of one category, whose folder is `folder`."""

    def find(source: Source) -> Facts:
        with source.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return [file.tell(), sha256]

    with remembered("digests", folder, find) as look_up:
        facts = {path: look_up(Source(path)) for path in paths}
    return {path: (size, sha256) for path, (size, sha256) in facts.items()}


def content_hash(sources: Sequence[Source], digests: Digests) -> str:
    """The content of sources, independent of their location: the sha256 of each file, and the member."""
    return "+".join(digests[each.path][1] + (f"/{each.member}" if each.member else "") for each in sources)
