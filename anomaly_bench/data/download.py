"""The transfer of an archive: it goes on where it stopped, and its hash decides whether it is the right one.

All work is done in `<data_root>/.download`, on the disk of its result. `archive.part` there is what has come so far:
an interrupted call leaves it, and the next one goes on at its end, from whichever address answers, since the sha256
decides in the end. Nothing is unpacked before that is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from anomaly_bench.data.archive import megabyte_bar, megabytes, require_space
from anomaly_bench.errors import DataError
from anomaly_bench.files import write_atomically
from anomaly_bench.version import __version__

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter
    from anomaly_bench.data.archive import Archive

READ_SECONDS = 30  # without a byte, then an address is given up
CHUNK = 2**18  # bytes


class TransferError(Exception):
    """One address did not give the archive; the next one may."""


@dataclass
class Part:
    """The first bytes of an archive: a file, and the sha256 of what is in it."""

    path: Path
    size: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.sha256.update(chunk)

    @property
    def source(self) -> Path:
        """A file beside it: the address of its first byte -> the ETag that came with it."""
        return self.path.with_name("source.json")

    def etag(self, address: str) -> str | None:
        """The strong ETag of these bytes at an address, if it is known."""
        with contextlib.suppress(OSError, ValueError):
            tag = json.loads(self.source.read_bytes()).get(address)
            return None if tag is None or tag.startswith("W/") else str(tag)
        return None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.size, self.sha256 = 0, hashlib.sha256()


@contextlib.contextmanager
def workplace(root: Path) -> Iterator[Path]:
    """The folder of one download at a time; nothing of it stays but a part of an archive."""
    folder = root / ".download"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"{folder}: another download is at work there; wait for its end") from error
    try:
        yield folder
    finally:
        lock.release()
        if not (folder / "archive.part").exists():
            shutil.rmtree(folder, ignore_errors=True)


def read_part(path: Path, reporter: Reporter) -> Part:
    """What earlier calls left."""
    part = Part(path)
    if path.exists():
        with path.open("rb") as file, megabyte_bar(reporter, "hash", path.stat().st_size) as reached:
            while chunk := file.read(CHUNK):
                part.add(chunk)
                reached(part.size)
    return part


def fetch(archive: Archive, part: Part, reporter: Reporter) -> None:
    """Add to `part` what it lacks of the archive.

    Raises:
        DataError: no address gave it, or the disk is too small.
    """
    if part.sha256.hexdigest() == archive.sha256:
        return
    for address in archive.addresses:
        try:
            transfer(address, archive, part, reporter)
            return
        except TransferError as error:
            reporter.say(f"{address}: {error}")
    kept = f"{megabytes(part.size)} are kept and the same command goes on there" if part.size else "try again later"
    raise DataError(f"no address gave the whole archive: {kept}, or save it by other means as {part.path}")


def transfer(address: str, archive: Archive, part: Part, reporter: Reporter) -> None:
    """Add what one address sends, from the end of `part` where the server can, else from the start.

    Raises:
        TransferError: it could not be reached, broke off, stalled, or sent something else.
        DataError: the disk is too small.
    """
    with ask(address, part) as response:
        if response.status == 206:
            span = str(response.headers.get("Content-Range"))
            if not span.startswith(f"bytes {part.size}-"):
                raise TransferError(f"asked for the bytes from {part.size} on, it sent {span}")
        else:
            part.discard()
            write_atomically(part.source, json.dumps({address: response.headers.get("ETag")}))
        left = response.length  # None: it does not say
        total = None if left is None else part.size + left
        require_space(part.path.parent, (left or 0) + archive.unpacked)
        kept = f", after the {megabytes(part.size)} that are here" if part.size else ""
        reporter.say(f"fetching {'a file' if left is None else megabytes(left)} from {address}{kept}")
        with part.path.open("ab") as file, megabyte_bar(reporter, "archive", total) as reached:
            for chunk in received(response, left):
                file.write(chunk)
                part.add(chunk)
                reached(part.size)
    if part.size < (total or 0):
        raise TransferError(f"broke off after {megabytes(part.size)} of {megabytes(total or 0)}")
    found = part.sha256.hexdigest()
    if found != archive.sha256:
        part.discard()
        raise TransferError(f"what came has sha256 {found}, expected {archive.sha256}; it is deleted")


def ask(address: str, part: Part) -> HTTPResponse:
    """An answer of HTTP status 206, which begins at the end of `part`, or 200."""
    headers = {"User-Agent": f"anomaly-bench/{__version__}", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if etag := part.etag(address):
            headers["If-Range"] = etag
    try:
        response = urlopen(Request(address, headers=headers), timeout=READ_SECONDS)
    except HTTPError as error:
        if error.code == 416 and part.size:  # it has no byte after these, and their sha256 is wrong
            part.discard()
            return ask(address, part)
        raise TransferError(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise TransferError(failure_reason(error)) from error
    page = response.headers.get("Content-Type", "").startswith(("text/", "application/json"))  # "no such share"
    if page or not isinstance(response, HTTPResponse):
        response.close()
        raise TransferError("sent a page, not an archive" if page else "expected an address of http or https")
    return response


def received(response: HTTPResponse, left: int | None) -> Iterator[bytes]:
    """What comes, until `left` bytes have come or the connection is closed."""
    try:
        while left != 0 and (chunk := response.read1(CHUNK if left is None else min(CHUNK, left))):
            left = None if left is None else left - len(chunk)
            yield chunk
    except (OSError, HTTPException) as error:
        raise TransferError(failure_reason(error)) from error


def failure_reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return f"no byte for {READ_SECONDS} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
