"""Errors that users can fix, reported in one line without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from enum import IntEnum

MANY = 30  # errors do not list more names than this
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Exit(IntEnum):
    """The exit status of a command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class UsageError(Exception):
    """A wrong command, key, choice or value; nothing was started (exit status 2)."""


class DataError(Exception):
    """An invalid file or folder of a dataset; its category fails, the others continue (exit status 1)."""


class TooLarge(MemoryError):
    """A job would need more memory than is free; it is rejected before it starts, and its category fails."""


class NotFittedError(Exception):
    """`score` was called before the method was fitted or loaded."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not fitted: call fit(normals), then eval(), or load a saved model")


def how_to_install(extra: str) -> str:
    """What installs an optional extra of this package."""
    return f"pip install '.[{extra}]' in the folder of anomaly-bench"


def closest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean padim?' or the list of valid names, as the end of an error message."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; valid: {', '.join(names)}" if 0 < len(names) <= MANY else "; see anomaly-bench --help"


def reason(error: Exception) -> str:
    """One line about what went wrong and, if the error itself does not say, what to do."""
    text = one_line(str(error))
    if isinstance(error, TooLarge):
        return text
    if ran_out(error):
        return f"ran out of memory ({text or 'unknown size'}); use a smaller batch_size, input.resize or input.crop"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{shown(str(error.filename))}: "
        advice = "free some space or use another folder" if error.errno in NO_ROOM else "check the file's permissions"
        return f"{where}{error.strerror}; {advice}, then run it again: finished work is kept"
    known = isinstance(error, (UsageError, DataError, ValueError, OSError))
    return text if known and text else f"{type(error).__name__}: {text}; see the log for the traceback"


def ran_out(error: Exception) -> bool:
    """Whether memory ran out: Python's or numpy's MemoryError, or one of torch's RuntimeErrors."""
    words = r"out of memory|(can't|cannot) allocate memory|not enough memory|bad_alloc"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(words, str(error), re.IGNORECASE) is not None
    )


def one_line(text: str) -> str:
    return shown(" ".join(text.split()))


def shown(text: str) -> str:
    """Text for a terminal: control characters, and those that change the direction, escaped as in Python strings."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def failure(error: Exception) -> str:
    """One line about what stopped a command."""
    return reason(error) if isinstance(error, (DataError, OSError)) else bug(error)


def bug(error: Exception) -> str:
    """One line about an unexpected error; the traceback goes to a file."""
    what = f"{type(error).__name__}: {one_line(str(error))}; this is a bug in anomaly-bench"
    try:
        handle, file = tempfile.mkstemp(prefix="anomaly-bench-", suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            traceback.print_exception(error, file=stream)
    except OSError:
        return f"{what}; its traceback could not be saved"
    return f"{what}: please report it with the traceback in {file}"


def shorten(names: Sequence[str] | map[str], most: int = 5) -> str:
    listed = list(map(shown, names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
