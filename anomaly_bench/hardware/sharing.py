"""Sharing a machine between jobs: timing runs alone, and each GPU runs one job. No torch here.

Locks are files in the user's cache folder, one subfolder per host, as hosts may share the cache. They are released
when their process ends, even if killed. On file systems without locks, jobs run without, and timing says so.
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
NO_LOCK = (OSError, sqlite3.Error, ValueError)  # raised by filelock if locking is not possible


def locks() -> Path:
    """The folder of this host's locks."""
    folder = cache_root() / LOCKS / safe_filename(platform.node() or "host")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Mark a job as computing: it starts after any running or waiting timing, and no timing starts meanwhile."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(*NO_LOCK):
            turn, machine = _turn_and_machine(held)
            with turn:
                held.enter_context(machine.read_lock())
        yield


@contextlib.contextmanager
def exclusive(waiting: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other job of this user is computing here, and let none start; yields whether that succeeded.

    Args:
        waiting: called once if there is something to wait for.
    """
    with contextlib.ExitStack() as held:
        alone = False
        with contextlib.suppress(*NO_LOCK):
            alone = _acquire_machine(held, waiting)
        yield alone


def _acquire_machine(held: contextlib.ExitStack, waiting: Callable[[], None]) -> bool:
    turn, machine = _turn_and_machine(held)
    deadline, reported = timing.clock() + LONGEST_WAIT, False
    for lock in (turn.acquire, machine.write_lock):
        while True:
            try:
                held.enter_context(lock(timeout=POLL if reported else 0))
                break
            except Timeout:
                if timing.clock() > deadline:
                    return False
            if not reported:
                reported = True
                waiting()
    return True


def _turn_and_machine(held: contextlib.ExitStack) -> tuple[FileLock, ReadWriteLock]:
    """Timing holds the turn while it waits, so that a stream of new jobs cannot starve it."""
    machine = ReadWriteLock(locks() / "machine.db", is_singleton=False)
    held.callback(machine.close)
    return FileLock(locks() / "turn.lock"), machine


@contextlib.contextmanager
def one_of(names: Sequence[str], waiting: Callable[[], None]) -> Iterator[int]:
    """Reserve one of several resources, such as GPUs, for this job; wait while all are taken.

    Args:
        names: of the resources, the same in all processes on this machine.
        waiting: called once if all are taken.

    Yields:
        The index in `names`; 0 if locks are not available.
    """
    with contextlib.ExitStack() as held:
        place, reported = None, False
        while place is None:
            try:
                place = _first_free(names, held)
            except NO_LOCK:
                place = 0
            if place is None:
                if not reported:
                    reported = True
                    waiting()
                time.sleep(POLL)
        yield place


def _first_free(names: Sequence[str], held: contextlib.ExitStack) -> int | None:
    for place, name in enumerate(names):
        with contextlib.suppress(Timeout):
            held.enter_context(FileLock(locks() / f"{safe_filename(name)}.lock").acquire(timeout=0))
            return place
    return None
