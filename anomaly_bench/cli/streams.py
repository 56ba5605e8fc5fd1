"""Standard streams that may be closed, or whose reader may leave: neither is a failure of the work."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class Pipe(io.FileIO):
    """What its reader does not take any more is dropped."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            return len(content)


def prepare_streams() -> None:
    """Give the process a standard input, output and error that can be written to as long as it runs."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get its number
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = (prepared(sys.stdout, 1), prepared(sys.stderr, 2))


def prepared(stream: Any, number: int) -> Any:
    """The stream, with characters that its encoding lacks escaped."""
    if stream is not None and stream.isatty():
        stream.reconfigure(errors="backslashreplace")
        return stream
    encoding = "utf-8" if stream is None else stream.encoding
    pipe = io.BufferedWriter(Pipe(number, "w", closefd=False))
    return io.TextIOWrapper(pipe, encoding, errors="backslashreplace", line_buffering=number == 2)
