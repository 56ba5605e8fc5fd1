"""A dataset's official archive: its description in the YAML, and how categories are unpacked from it.

Nothing is trusted: members must be plain files and folders, no more and no larger than the YAML says. Categories are
unpacked into a temporary folder and moved once all are complete; existing files are left alone.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import safe_filename

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter

MB = 10**6


@dataclass(frozen=True)
class Archive:
    """`about.archive` of a dataset's YAML.

    Attributes:
        licence: one line, printed before anything is fetched.
        addresses: URLs of the same file, tried in this order.
        packed: bytes that the archive has at most.
        unpacked: largest total size of its files, in bytes.
        members: largest number of files and folders.
        sha256: of the file, 64 hex digits.
        md5: of the file, 32 hex digits, where no sha256 is published. It shows damage, but not forgery.
        folder: of the archive, to be unpacked as a whole; "": its folders are categories.
    """

    licence: str
    addresses: Sequence[str]
    packed: int
    unpacked: int
    members: int
    sha256: str = ""
    md5: str = ""
    folder: str = ""


def read_archive(node: Mapping[str, Any]) -> Archive:
    """The archive described in a dataset's YAML; UsageError: there is none, or a key is unknown."""
    keys = (node.get("about") or {}).get("archive")
    if keys is None:
        raise UsageError("nothing to download: the dataset's YAML has no about.archive; that of dataset=mvtec has one")
    try:
        archive = Archive(**keys)
    except TypeError as error:
        raise UsageError(f"dataset.about.archive: {error}") from error
    if bool(archive.sha256) == bool(archive.md5):
        raise UsageError("dataset.about.archive: expected sha256, or md5 where no sha256 is published")
    return archive


def unpack(archive: Archive, path: Path, names: Sequence[str], root: Path, reporter: Reporter) -> None:
    """Unpack categories, and top-level files such as a licence; they are moved into `root` once all are complete.

    Raises:
        DataError: a member that is not a plain file or folder, too many or too large members, a category that is
            not in the archive, or a full disk; `root` is left unchanged.
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
    """Write the members of the named top-level folders, and the top-level files, into `folder`."""
    members = size = 0
    with (
        path.open("rb") as file,
        megabyte_bar(reporter, "unpacking", path.stat().st_size) as reached,
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
    """The parts of a member's relative path; () is the archive's root.

    Raises:
        DataError: neither a file nor a folder, or a path that leaves the archive or is invalid on some system.
    """
    parts = PurePosixPath(member.name).parts
    names = [part.lstrip(".") for part in parts]  # ".hidden" is legal, ".." is not
    safe = [safe_filename(name, longest=255) for name in names]
    if not (member.isdir() or member.isfile()) or member.issparse() or names != safe:
        raise DataError(
            f"the archive's member {member.name[:200]!r} is refused: expected plain files and folders, with names of "
            "letters, digits and ._-, and no path that leaves the archive; nothing is unpacked"
        )
    return parts


def require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: needs up to {megabytes(needed)} free, found {megabytes(free)}; free some and run the same "
            "command again, or choose another data_root"
        )


def megabytes(size: int) -> str:
    return f"{size / MB:.1f} MB"


@contextlib.contextmanager
def megabyte_bar(reporter: Reporter, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts whole MB; yields `reached(bytes)`."""
    with reporter.stage(f"{title} (MB)", None if total is None else -(-total // MB)) as advance:
        done = 0

        def reached(size: int) -> None:
            nonlocal done
            advance(size // MB - done)
            done = size // MB

        yield reached
