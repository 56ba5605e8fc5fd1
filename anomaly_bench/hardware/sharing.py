"""One machine shared by several jobs: timing has it alone, a GPU has one job. No torch here.

The locks lie in the user's cache folder, in a folder of each host's own, as several may share the cache. They end with
the process that holds them, killed or not. Where a file system has no locks, jobs go on without, and timing says so.
"""

from __future__ import annotations

import contextlib
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, ReadWriteLock, Timeout

from anomaly_bench.cache import LOCKS, cache_root
from anomaly_bench.files import safe_filename
from anomaly_bench.hardware import timing

LONGEST_WAIT = 300.0  # seconds that timing waits for other jobs, which may train for hours
POLL = 0.5  # seconds
NO_LOCK = (OSError, sqlite3.Error, ValueError)  # of filelock, where the cache or its file system has none


def locks() -> Path:
    """The folder of this host's locks."""
    folder = cache_root() / LOCKS / safe_filename(platform.node() or "host")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """A job computes: no timing begins meanwhile, and this begins after a timing that is under way or waiting."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(*NO_LOCK):
            turn, machine = _turn_and_machine(held)
            with turn:
                held.enter_context(machine.read_lock())
        yield


@contextlib.contextmanager
def exclusive(waiting: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other job of this user computes here, and let none begin; yields whether that was so.

    Args:
        waiting: called once, where there is something to wait for.
    """
    with contextlib.ExitStack() as held:
        had = False
        with contextlib.suppress(*NO_LOCK):
            had = _have_machine(held, waiting)
        yield had


def _have_machine(held: contextlib.ExitStack, waiting: Callable[[], None]) -> bool:
    turn, machine = _turn_and_machine(held)
    deadline, told = timing.clock() + LONGEST_WAIT, False
    for lock in (turn.acquire, machine.write_lock):
        while True:
            try:
                held.enter_context(lock(timeout=POLL if told else 0))
                break
            except Timeout:
                if timing.clock() > deadline:
                    return False
            if not told:
                told = True
                waiting()
    return True


def _turn_and_machine(held: contextlib.ExitStack) -> tuple[FileLock, ReadWriteLock]:
    """Who times keeps the turn while it waits, so that jobs that begin one after the other cannot keep it waiting."""
    machine = ReadWriteLock(locks() / "machine.db", is_singleton=False)
    held.callback(machine.close)
    return FileLock(locks() / "turn.lock"), machine


@contextlib.contextmanager
def one_of(names: Sequence[str], waiting: Callable[[], None]) -> Iterator[int]:
    """Take one of several things, such as GPUs, that no other job has; wait while all are taken.

    Args:
        names: of the things, alike in all processes of this machine.
        waiting: called once, where all are taken.

    Yields:
        The place in `names`; the first where there are no locks.
    """
    with contextlib.ExitStack() as held:
        place, told = None, False
        while place is None:
            try:
                place = _first_free(names, held)
            except NO_LOCK:
                place = 0
            if place is None:
                if not told:
                    told = True
                    waiting()
                time.sleep(POLL)
        yield place


def _first_free(names: Sequence[str], held: contextlib.ExitStack) -> int | None:
    for place, name in enumerate(names):
        with contextlib.suppress(Timeout):
            held.enter_context(FileLock(locks() / f"{safe_filename(name)}.lock").acquire(timeout=0))
            return place
    return None
