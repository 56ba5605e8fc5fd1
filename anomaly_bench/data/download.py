"""Downloads of archives: resumed where they stopped, verified by hash.

All work is done in `<data_root>/.download`, on the same disk as the result. It holds `archive.part`, the bytes so far:
an interrupted call leaves it, and the next one resumes from whichever address answers. Nothing is unpacked until the
checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout

from anomaly_bench.data.archive import megabyte_bar, megabytes, require_space
from anomaly_bench.errors import DataError
from anomaly_bench.files import write_atomically
from anomaly_bench.hardware import timing
from anomaly_bench.version import __version__

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter

Answer = TypeVar("Answer")
READ_SECONDS = 30  # timeout without a byte, before the next address is tried
ANSWER_SECONDS = 60  # for the head of an answer; then each second has to bring
SLOWEST = 10_000  # bytes, or the address is given up
CHUNK = 2**18  # bytes
MD5_DIGITS = 32


@dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        addresses: of the same file, tried in this order.
        checksum: of the file, in hex digits: 64 of its sha256, or 32 of its MD5 where no other is published.
        most: bytes that it has at most.
        unpacked: bytes of disk needed in addition.
    """

    addresses: Sequence[str]
    checksum: str
    most: int
    unpacked: int = 0

    @property
    def algorithm(self) -> str:
        return "md5" if len(self.checksum) == MD5_DIGITS else "sha256"


class TransferError(Exception):
    """One address did not deliver the archive; the next one may."""


@dataclass
class Part:
    """The first bytes of an archive: a file, its size and its hash so far."""

    path: Path
    algorithm: str = "sha256"
    size: int = 0
    hash: Any = None

    def __post_init__(self) -> None:
        self.hash = hashlib.new(self.algorithm, usedforsecurity=False)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.hash.update(chunk)

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
        self.size, self.hash = 0, hashlib.new(self.algorithm, usedforsecurity=False)


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


def read_part(path: Path, reporter: Reporter, algorithm: str = "sha256") -> Part:
    """The part that earlier calls left."""
    part = Part(path, algorithm)
    if path.exists():
        with path.open("rb") as file, megabyte_bar(reporter, "hash", path.stat().st_size) as reached:
            while chunk := file.read(CHUNK):
                part.add(chunk)
                reached(part.size)
    return part


def fetch(wanted: Download, part: Part, reporter: Reporter) -> None:
    """Download the rest of a file into `part`.

    Raises:
        DataError: no address delivered it, or the disk is too small.
    """
    if part.hash.hexdigest() == wanted.checksum:
        return
    why = ""
    for address in wanted.addresses:
        again = True
        while again:
            resumed = part.size > 0
            try:
                transfer(address, wanted, part, reporter)
                return
            except TransferError as error:
                reporter.say(f"{address}: {error}")
                why = str(error)
            again = resumed and part.size == 0  # what was here may have been the wrong half
    kept = f"{megabytes(part.size)} are kept, run the same command to resume" if part.size else "try again later"
    raise DataError(f"no address delivered the whole file ({why}): {kept}, or save it by other means as {part.path}")


def transfer(address: str, wanted: Download, part: Part, reporter: Reporter) -> None:
    """Add what one address sends, from the end of `part` if the server supports that, else from the start.

    Raises:
        TransferError: it could not be reached, broke off, stalled, is too slow, or sent something else or more.
        DataError: the disk is too small.
    """
    pool = ThreadPoolExecutor(1)  # a call that does not return is left behind
    start = timing.clock()
    try:
        response = in_time(pool, ANSWER_SECONDS, ask, address, part)
        try:
            left = check_response(response, address, wanted, part)
            total = None if left is None else part.size + left
            require_space(part.path.parent, (left or 0) + wanted.unpacked)
            kept = f", after the {megabytes(part.size)} received earlier" if part.size else ""
            reporter.say(f"fetching {'a file' if left is None else megabytes(left)} from {address}{kept}")
            before = part.size
            with part.path.open("ab") as file, megabyte_bar(reporter, "download", total) as reached:
                for chunk in received(pool, response, left):
                    file.write(chunk)
                    part.add(chunk)
                    reached(part.size)
                    check_progress(wanted, part, part.size - before, timing.clock() - start)
        finally:
            pool.submit(response.close)
    finally:
        pool.shutdown(wait=False)
    if part.size < (total or 0):
        raise TransferError(f"broke off after {megabytes(part.size)} of {megabytes(total or 0)}")
    found = part.hash.hexdigest()
    if found != wanted.checksum:
        part.discard()
        raise TransferError(
            f"received a file with {wanted.algorithm} {found}, expected {wanted.checksum}; it is deleted"
        )


def check_response(response: HTTPResponse, address: str, wanted: Download, part: Part) -> int | None:
    """How many bytes are left to come, None: unknown; `part` is emptied where they are the first ones.

    Raises:
        TransferError: other bytes than requested, or more than the file can have.
    """
    if response.status == 206:
        span = str(response.headers.get("Content-Range"))
        if not span.startswith(f"bytes {part.size}-"):
            raise TransferError(f"requested the bytes from {part.size} on, received {span}")
    else:
        part.discard()
        write_atomically(part.source, json.dumps({address: response.headers.get("ETag")}))
    if response.length is not None and part.size + response.length > wanted.most:
        raise TransferError(
            f"announces {megabytes(part.size + response.length)}, expected at most {megabytes(wanted.most)}"
        )
    return response.length


def check_progress(wanted: Download, part: Part, received: int, seconds: float) -> None:
    """Raise TransferError for more bytes than the file can have, or too few in this time."""
    if part.size > wanted.most:
        part.discard()
        raise TransferError(f"sent more than {megabytes(wanted.most)}; it is deleted")
    if seconds > ANSWER_SECONDS + received / SLOWEST:
        raise TransferError(f"slower than {SLOWEST // 1000} kB/s")


class SecureRedirects(HTTPRedirectHandler):
    """An address of https does not lead to one of http."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise HTTPError(newurl, code, "leads from https to an address without it", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def ask(address: str, part: Part) -> HTTPResponse:
    """A response of HTTP status 206, which starts at the end of `part`, or 200."""
    headers = {"User-Agent": f"anomaly-bench/{__version__}", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if etag := part.etag(address):
            headers["If-Range"] = etag
    try:
        response = build_opener(SecureRedirects).open(Request(address, headers=headers), timeout=READ_SECONDS)
    except HTTPError as error:
        if error.code == 416 and part.size:  # it has no more bytes, and the hash of ours is wrong
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


def received(pool: ThreadPoolExecutor, response: HTTPResponse, left: int | None) -> Iterator[bytes]:
    """The chunks received, until `left` bytes have arrived or the connection is closed."""
    while left != 0 and (
        chunk := in_time(pool, 2 * READ_SECONDS, response.read1, CHUNK if left is None else min(CHUNK, left))
    ):
        left = None if left is None else left - len(chunk)
        yield chunk


def in_time(pool: ThreadPoolExecutor, seconds: float, call: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a call returns; TransferError: it failed, or took longer.

    A socket's own time limit restarts with every byte.
    """
    try:
        return pool.submit(call, *arguments).result(seconds)
    except (OSError, HTTPException) as error:
        raise TransferError(failure_reason(error)) from error


def failure_reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return f"no byte for {READ_SECONDS} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
