"""Leases: which process is working on which job in a results folder shared by processes or machines.

A lease is a file in <results>/leases with its owner's host and process. The owner touches it every 15 seconds; it
expires when it has not been touched for 60 seconds by the file system's clock, or when its owner, a process on this
machine, has died. Claims are made one at a time, under a lock file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from anomaly_bench.documents import read_json
from anomaly_bench.files import write_atomically

BEAT, LIFE = 15.0, 60.0  # seconds


@dataclass(frozen=True)
class Lease:
    """A piece of work of a results folder; `ours`: it was free when it was claimed."""

    results: Path
    path: Path
    ours: bool

    @contextlib.contextmanager
    def kept(self) -> Iterator[bool]:
        """Whether no other process has taken it since, having found it without a beat; in the block none can."""
        with locked(self.results):
            ours = is_ours(self.path)
            if ours:
                write_atomically(self.path, json.dumps({**owner(), "saving": True}))
        yield ours


@contextlib.contextmanager
def claim(results: Path, name: str) -> Iterator[Lease]:
    """Yields True if this process owns the work within the block; False: another process is working on it."""
    path = results / "leases" / f"{name}.json"
    with locked(results):
        ours = not is_held(path)
        if ours:
            write_atomically(path, json.dumps(owner()))
    if not ours:
        yield Lease(results, path, False)
        return
    over = threading.Event()
    heart = threading.Thread(target=beat, args=(path, over), daemon=True)
    heart.start()
    try:
        yield Lease(results, path, True)
    finally:
        over.set()
        heart.join()
        with contextlib.suppress(OSError), locked(results):
            if is_ours(path):
                path.unlink()
                path.parent.rmdir()  # if it was the last


@contextlib.contextmanager
def locked(results: Path) -> Iterator[None]:
    """Hold the lock of the leases; one that is held for as long as a lease lives is replaced: its holder is stopped.

    When it continues, it finds the work done, or that its lease is another's.
    """
    path = results / ".leases.lock"
    with contextlib.ExitStack() as held:
        while True:
            before = file_id(path)
            try:
                held.enter_context(FileLock(path).acquire(timeout=LIFE))
                break
            except Timeout:
                if file_id(path) == before:
                    with contextlib.suppress(OSError):  # Windows deletes no open file
                        path.unlink()
        yield


def file_id(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None


def beat(path: Path, over: threading.Event) -> None:
    """Touch a lease until the work is over, or another process has taken it over as expired."""
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            if not is_ours(path):
                return
            os.utime(path)


def is_held(path: Path) -> bool:
    """Whether a lease exists, has not expired, and its owner may be alive."""
    held_by = read_lease(path)
    if held_by is None:
        return False
    saving = bool(held_by.get("saving"))
    if held_by.get("host") == owner()["host"] and not is_ours(path):
        if not alive(held_by):
            return False
        if saving:
            return True
    probe = path.with_name(f".now-{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime < (10 * LIFE if saving else LIFE)
    finally:
        probe.unlink()


def is_ours(path: Path) -> bool:
    held_by = read_lease(path) or {}
    return all(held_by.get(name) == value for name, value in owner().items())


def read_lease(path: Path) -> dict[str, Any] | None:
    """The holder of a lease; None: nobody, or a truncated file."""
    with contextlib.suppress(OSError, ValueError):
        held_by = read_json(path)
        return held_by if isinstance(held_by, dict) else None
    return None


@functools.cache
def host() -> str:
    """This machine since it booted, and the container: the scope in which process numbers are unique."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def owner() -> dict[str, Any]:
    return {"host": host(), "process": os.getpid(), "started": started(os.getpid())}


def alive(held_by: dict[str, Any]) -> bool:
    """Whether an owner on this machine is still running; True if the system cannot tell."""
    if not sys.platform.startswith("linux"):
        return True
    return held_by.get("started") == started(held_by.get("process", 0))


def started(process: int) -> str | None:
    """When a process started, in kernel ticks; None: it has ended. Process numbers are reused."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
        return None if status[0] in "ZX" else status[19]
    return None
