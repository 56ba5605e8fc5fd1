"""Downloads of archives: resumed where they stopped, verified by hash.

All work is done in `<data_root>/.download`, on the same disk as the result. It holds `archive.part`, the bytes so far:
an interrupted call leaves it, and the next one resumes from whichever address answers. Nothing is unpacked until the
sha256 is right.
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

READ_SECONDS = 30  # timeout without a byte, before the next address is tried
CHUNK = 2**18  # bytes


class TransferError(Exception):
    """One address did not deliver the archive; the next one may."""


@dataclass
class Part:
    """The first bytes of an archive: a file, its size and its sha256 so far."""

    path: Path
    size: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.sha256.update(chunk)

    @property
    def source(self) -> Path:
        """A JSON file beside it: the address of its first byte -> the ETag sent with it."""
        return self.path.with_name("source.json")

    def etag(self, address: str) -> str | None:
        """The strong ETag of these bytes at an address, if known."""
        with contextlib.suppress(OSError, ValueError):
            tag = json.loads(self.source.read_bytes()).get(address)
            return None if tag is None or tag.startswith("W/") else str(tag)
        return None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.size, self.sha256 = 0, hashlib.sha256()


@contextlib.contextmanager
def workplace(root: Path) -> Iterator[Path]:
    """The working folder, locked for one download at a time; only a partial archive is left behind."""
    folder = root / ".download"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"{folder}: another download is running there; wait for it to end") from error
    try:
        yield folder
    finally:
        lock.release()
        if not (folder / "archive.part").exists():
            shutil.rmtree(folder, ignore_errors=True)


def read_part(path: Path, reporter: Reporter) -> Part:
    """The part that earlier calls left."""
    part = Part(path)
    if path.exists():
        with path.open("rb") as file, megabyte_bar(reporter, "hash", path.stat().st_size) as reached:
            while chunk := file.read(CHUNK):
                part.add(chunk)
                reached(part.size)
    return part


def fetch(archive: Archive, part: Part, reporter: Reporter) -> None:
    """Download the rest of the archive into `part`.

    Raises:
        DataError: no address delivered it, or the disk is too small.
    """
    if part.sha256.hexdigest() == archive.sha256:
        return
    for address in archive.addresses:
        try:
            transfer(address, archive, part, reporter)
            return
        except TransferError as error:
            reporter.say(f"{address}: {error}")
    kept = f"{megabytes(part.size)} are kept, run the same command to resume" if part.size else "try again later"
    raise DataError(f"no address delivered the whole archive: {kept}, or save it by other means as {part.path}")


def transfer(address: str, archive: Archive, part: Part, reporter: Reporter) -> None:
    """Add what one address sends, from the end of `part` if the server supports that, else from the start.

    Raises:
        TransferError: it could not be reached, broke off, stalled, or sent something else.
        DataError: the disk is too small.
    """
    with ask(address, part) as response:
        if response.status == 206:
            span = str(response.headers.get("Content-Range"))
            if not span.startswith(f"bytes {part.size}-"):
                raise TransferError(f"requested the bytes from {part.size} on, received {span}")
        else:
            part.discard()
            write_atomically(part.source, json.dumps({address: response.headers.get("ETag")}))
        left = response.length  # None: unknown
        total = None if left is None else part.size + left
        require_space(part.path.parent, (left or 0) + archive.unpacked)
        kept = f", after the {megabytes(part.size)} received earlier" if part.size else ""
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
        raise TransferError(f"received a file with sha256 {found}, expected {archive.sha256}; it is deleted")


def ask(address: str, part: Part) -> HTTPResponse:
    """A response of HTTP status 206, which starts at the end of `part`, or 200."""
    headers = {"User-Agent": f"anomaly-bench/{__version__}", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if etag := part.etag(address):
            headers["If-Range"] = etag
    try:
        response = urlopen(Request(address, headers=headers), timeout=READ_SECONDS)
    except HTTPError as error:
        if error.code == 416 and part.size:  # it has no more bytes, and the sha256 of ours is wrong
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
    """The chunks received, until `left` bytes have arrived or the connection is closed."""
    try:
        while left != 0 and (chunk := response.read1(CHUNK if left is None else min(CHUNK, left))):
            left = None if left is None else left - len(chunk)
            yield chunk
    except (OSError, HTTPException) as error:
        raise TransferError(failure_reason(error)) from error


def failure_reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return f"no byte for {READ_SECONDS} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
