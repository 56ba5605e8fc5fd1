"""The errors that a user can do something about: one line, no traceback on the screen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A wrong command, key, choice or value: nothing was started (exit status 2)."""


class DataError(Exception):
    """A data set's file or folder is not as it must be: its category fails, the others go on (exit status 1)."""


class NotFittedError(Exception):
    """A method was asked for scores before it was fitted or loaded."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not fitted: call fit(normals) first, or load a saved model")


def closest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean padim?' or the list of valid names, to end an error's sentence with."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; valid: {', '.join(names)}"
