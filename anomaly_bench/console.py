"""Console output: progress bars on a terminal, plain lines elsewhere, everything in the log file.

Elsewhere, too, it is said what is being done whenever nothing was printed for some seconds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anomaly_bench.errors import shown

if TYPE_CHECKING:
    from anomaly_bench.protocol import Advance

logger = logging.getLogger("anomaly_bench")
TICK, QUIET_TICKS = 3.0, 2  # seconds; after so many ticks without a line, one is printed
logger.addHandler(logging.NullHandler())  # else Python prints warnings if there is no log file


class Reporter:
    """Prints messages to stderr (stdout is for tables) and logs them."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bars: Progress | None = None  # currently displayed
        self.quiet = 0  # ticks since the last line

    def say(self, line: str) -> None:
        line = shown(line)
        logger.info(line)
        self.write(line)

    def warn(self, line: str) -> None:
        line = shown(line)
        logger.warning(line)
        self.write(f"warning: {line}", style="yellow")

    def fail(self, line: str, error: BaseException | None = None) -> None:
        """Print one line, and log the whole traceback."""
        line = shown(line)
        logger.error(line, exc_info=error)
        self.write(f"error: {line}", style="red")

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        """A bar for one stage; yields `advance(done, note)`. Without a terminal, notes are only logged."""
        title = shown(title)
        logger.info("%s (%s)", title, total if total is not None else "until time is up")
        with self.display() as bars:
            task = bars.add_task(title, total=total)

            def advance(done: int, note: str = "") -> None:
                note = shown(note)
                bars.update(task, advance=done, description=f"{title} ({note})" if note else title)
                if note:
                    logger.info("%s: %s", title, note)

            yield advance
            bars.remove_task(task)

    @contextlib.contextmanager
    def display(self) -> Iterator[Progress]:
        """The displayed bars, to which nested stages add their own; without a terminal, lines now and then."""
        if self.bars is not None:
            yield self.bars
            return
        title = TextColumn("{task.description}", markup=False)  # category names may contain brackets
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        try:
            with (
                Progress(*columns, console=self.console, transient=True, disable=hidden) as self.bars,
                self.signs_of_life(self.bars) if hidden else contextlib.nullcontext(),
            ):
                yield self.bars
        finally:
            self.bars = None

    @contextlib.contextmanager
    def signs_of_life(self, bars: Progress) -> Iterator[None]:
        """Print the running stages whenever nothing was printed for `QUIET_TICKS`."""
        ended = threading.Event()

        def watch() -> None:
            self.quiet = 0
            while not ended.wait(TICK):
                self.quiet += 1
                if self.quiet >= QUIET_TICKS:
                    stages = [f"{task.description} {task.completed:g}/{task.total or '?'}" for task in bars.tasks]
                    self.write("; ".join(stages))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def write(self, line: str, style: str | None = None) -> None:
        self.quiet = 0
        self.console.print(line, style=style, markup=False)


@contextlib.contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Send the log, with Python's warnings, to a file (None: nowhere).

    If the file cannot be written, neither can results, and writing those reports the error.
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
    logger.setLevel(logging.INFO)  # unlike assigning `level`, clears cached answers
    raising, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk would print tracebacks
    try:
        yield
    finally:
        logger.setLevel(level)
        logging.raiseExceptions = raising
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
        logging.captureWarnings(False)
