"""`anomaly-bench data download dataset=NAME data_root=DIR`: fetch a dataset's official archive, check it, unpack it.

All work is done in `<data_root>/.download`, on the disk of its result. `archive.part` there is what has come so far:
an interrupted call leaves it, and the next one goes on at its end, from whichever address answers, since the sha256
decides in the end. Nothing is unpacked before that is right. Categories are unpacked aside and renamed to their
places when all are whole; what is there already is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from anomaly_bench.console import Reporter
from anomaly_bench.data.dataset import DATA_VARIABLE, as_path, chosen, open_dataset
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import safe_filename, write_atomically
from anomaly_bench.version import __version__

READ_SECONDS = 30  # without a byte, then an address is given up
CHUNK = 2**18  # bytes
MB = 10**6


@dataclass(frozen=True)
class Archive:
    """`about.archive` of a dataset's YAML.

    Attributes:
        licence: one line, said before anything is fetched.
        addresses: of the same file, tried in this order.
        sha256: of the file, 64 hex digits.
        unpacked: bytes that its files hold at most.
        members: files and folders in it at most.
    """

    licence: str
    addresses: Sequence[str]
    sha256: str
    unpacked: int
    members: int


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


def download(config: Any) -> bool:
    """Fetch and unpack what is lacking of `category`; True: all of it is there.

    Raises:
        UsageError: the dataset's YAML names no archive, or `data_root` cannot be a folder.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    node, reporter = values["dataset"], Reporter()
    archive = read_archive(node)
    reporter.say(archive.licence)
    dataset = open_dataset(node, made_root(node["name"], as_path(values["data_root"])))
    lacking = [name for name in chosen(dataset, values["category"]) if name not in dataset.available]
    if not lacking:
        reporter.say(f"nothing to do: all that was asked for is in {dataset.root}")
        return True
    try:
        with workplace(dataset.root) as folder:
            part = read_part(folder / "archive.part", reporter)
            fetch(archive, part, reporter)
            unpack(archive, part.path, lacking, dataset.root, reporter)
            part.discard()
    except DataError as error:
        reporter.say(f"error: {error}")
        return False
    except OSError as error:
        reporter.say(f"error: {disk_failure(error, dataset.root, archive)}")
        return False
    reporter.say(f"{', '.join(lacking)}: unpacked into {dataset.root}")
    return True


def read_archive(node: Mapping[str, Any]) -> Archive:
    """What a dataset's YAML says of its archive; UsageError: nothing, or keys that are none."""
    keys = (node.get("about") or {}).get("archive")
    if keys is None:
        raise UsageError("nothing to download: the dataset's YAML has no about.archive; that of dataset=mvtec has one")
    try:
        return Archive(**keys)
    except TypeError as error:
        raise UsageError(f"dataset.about.archive: {error}") from error


def made_root(name: str, data_root: Path | None) -> Path | None:
    """`data_root`, else `$ANOMALY_BENCH_DATA/<name>`, made where it is not there; None: neither is given."""
    shared = os.environ.get(DATA_VARIABLE)
    if data_root is None and shared is None:
        return None
    root = (data_root or Path(str(shared), name)).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"data_root={root}: cannot be made a folder ({error.strerror})") from error
    return root


def disk_failure(error: OSError, root: Path, archive: Archive) -> str:
    """What the disk has against writing, in one line."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename or root}: cannot be written ({error.strerror or error}); check the folder and its rights"
        )
    return (
        f"{root}: the disk is full: found {megabytes(shutil.disk_usage(root).free)} free, unpacking needs up to "
        f"{megabytes(archive.unpacked)} besides the archive; free some and give the same command again: it goes on"
    )


def require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: needs up to {megabytes(needed)} free, found {megabytes(free)}; free some and give the same "
            "command again, or choose another data_root"
        )


def megabytes(size: int) -> str:
    return f"{size / MB:.1f} MB"


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


@contextlib.contextmanager
def bar(reporter: Reporter, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A stage that counts whole MB; yields `reached(bytes)`."""
    with reporter.stage(f"{title} (MB)", None if total is None else -(-total // MB)) as advance:
        done = 0

        def reached(size: int) -> None:
            nonlocal done
            advance(size // MB - done)
            done = size // MB

        yield reached


def read_part(path: Path, reporter: Reporter) -> Part:
    """What earlier calls left."""
    part = Part(path)
    if path.exists():
        with path.open("rb") as file, bar(reporter, "hash", path.stat().st_size) as reached:
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
    with connect(address, part) as response:
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
        with part.path.open("ab") as file, bar(reporter, "archive", total) as reached:
            for chunk in chunks(response, left):
                file.write(chunk)
                part.add(chunk)
                reached(part.size)
    if part.size < (total or 0):
        raise TransferError(f"broke off after {megabytes(part.size)} of {megabytes(total or 0)}")
    found = part.sha256.hexdigest()
    if found != archive.sha256:
        part.discard()
        raise TransferError(f"what came has sha256 {found}, expected {archive.sha256}; it is deleted")


def connect(address: str, part: Part) -> HTTPResponse:
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
            return connect(address, part)
        raise TransferError(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise TransferError(reason(error)) from error
    page = response.headers.get("Content-Type", "").startswith(("text/", "application/json"))  # "no such share"
    if page or not isinstance(response, HTTPResponse):
        response.close()
        raise TransferError("sent a page, not an archive" if page else "expected an address of http or https")
    return response


def chunks(response: HTTPResponse, left: int | None) -> Iterator[bytes]:
    """What comes, until `left` bytes have come or the connection is closed."""
    try:
        while left != 0 and (chunk := response.read1(CHUNK if left is None else min(CHUNK, left))):
            left = None if left is None else left - len(chunk)
            yield chunk
    except (OSError, HTTPException) as error:
        raise TransferError(reason(error)) from error


def reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return f"no byte for {READ_SECONDS} s" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__


def unpack(archive: Archive, path: Path, names: Sequence[str], root: Path, reporter: Reporter) -> None:
    """Unpack categories, and the files beside them such as a licence; into `root` they come when all are whole.

    Raises:
        DataError: a member that is not a plain file or folder, too many or too large ones, a category that is not
            in the archive, or a disk that is too small; nothing is changed in `root`.
    """
    folder = path.with_name("unpacked")
    shutil.rmtree(folder, ignore_errors=True)
    require_space(root, archive.unpacked)
    try:
        extract(archive, path, names, folder, reporter)
        absent = [name for name in names if not (folder / name).is_dir()]
        if absent:
            raise DataError(f"the archive has no folder {', '.join(absent)}; nothing is unpacked")
        for made in sorted(folder.iterdir()):
            if not (root / made.name).exists():
                made.rename(root / made.name)
    except tarfile.TarError as error:
        raise DataError(f"{path}: cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def extract(archive: Archive, path: Path, names: Sequence[str], folder: Path, reporter: Reporter) -> None:
    """Write the members of some top folders, and the top files, into `folder`."""
    members = size = 0
    with (
        path.open("rb") as file,
        bar(reporter, "unpacking", path.stat().st_size) as reached,
        tarfile.open(fileobj=file, mode="r|*") as tar,
    ):
        for member in tar:
            members, size = members + 1, size + member.size
            if members > archive.members or size > archive.unpacked:
                raise DataError(
                    f"the archive holds more than {archive.members} members or {megabytes(archive.unpacked)}; "
                    "nothing is unpacked"
                )
            parts = plain_parts(member)
            if parts[:1] and (parts[0] in names or (len(parts) == 1 and member.isfile())):
                tar.extract(member, folder, filter="data")
            reached(file.tell())


def plain_parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """The parts of a member's relative path; () is the archive's own top.

    Raises:
        DataError: neither a file nor a folder, or a name that leads elsewhere or that some system does not take.
    """
    parts = PurePosixPath(member.name).parts
    names = [part.lstrip(".") for part in parts]  # ".hidden" is legal, ".." is not
    if not (member.isdir() or member.isfile()) or member.issparse() or names != [safe_filename(name) for name in names]:
        raise DataError(
            f"the archive's member {member.name[:200]!r} is refused: expected plain files and folders, with names of "
            "letters, digits and ._- inside the archive's own folder; nothing is unpacked"
        )
    return parts
