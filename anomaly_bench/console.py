"""What a run says: bars with the time left on a terminal, plain lines elsewhere, everything in the log file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from anomaly_bench.protocol import Advance

logger = logging.getLogger("anomaly_bench")


logger.addHandler(logging.NullHandler())  # without one Python shows warnings, where there is no log file


class Reporter:
    """Speaks to the screen (stderr, so that stdout holds tables only) and to the log."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bars: Progress | None = None  # what is on the screen now

    def say(self, line: str) -> None:
        line = shown(line)
        logger.info(line)
        self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        line = shown(line)
        logger.warning(line)
        self.console.print(f"warning: {line}", style="yellow", markup=False)

    def fail(self, line: str, error: BaseException | None = None) -> None:
        """One line on the screen, the whole traceback in the log."""
        line = shown(line)
        logger.error(line, exc_info=error)
        self.console.print(f"error: {line}", style="red", markup=False)

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        """A bar for one stage; yields `advance(done, note)`. Off a terminal it is silent: notes go to the log."""
        logger.info("%s (%s)", title, total if total is not None else "until time is up")
        with self.display() as bars:
            task = bars.add_task(title, total=total)

            def advance(done: int, note: str = "") -> None:
                bars.update(task, advance=done, description=f"{title} ({note})" if note else title)
                if note:
                    logger.info("%s: %s", title, note)

            yield advance
            bars.remove_task(task)

    @contextlib.contextmanager
    def display(self) -> Iterator[Progress]:
        """The bars on the screen, to which a stage within a stage adds its own."""
        if self.bars is not None:
            yield self.bars
            return
        title = TextColumn("{task.description}", markup=False)  # a category's name may have brackets
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        try:
            with Progress(*columns, console=self.console, transient=True, disable=hidden) as self.bars:
                yield self.bars
        finally:
            self.bars = None


def shown(text: str) -> str:
    """One line without control characters, which are written as in Python's strings."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextlib.contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Send the log, with Python's warnings, to a file (None: nowhere).

    Where that cannot be written, nothing else can be, and that is said by whoever tries.
    """
    root = logging.getLogger()
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(path, encoding="utf-8", delay=True, errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    root.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)  # the method: it also forgets what was answered at the level before
    complain, logging.raiseExceptions = logging.raiseExceptions, False  # of a full disk: a traceback on the screen
    try:
        yield
    finally:
        logger.setLevel(level)
        logging.raiseExceptions = complain
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
        logging.captureWarnings(False)
