"""Files and folders: safe names, hashes, atomic writes, listings."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from anomaly_bench.errors import DataError

LONGEST = 100  # characters per name, so that a file name made of several stays below 255


def safe_filename(name: str, longest: int = LONGEST) -> str:
    """A file name that is legal everywhere: letters, digits, '._-'; a changed name ends in digits of its hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(". ") or "_"
    plain = plain if len(plain) <= longest else plain[: longest - 7]
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", plain)
    return plain if plain == name and not reserved else f"{'_' if reserved else ''}{plain}_{digest(name)[:6]}"


def short_path(path: str, longest: int = 240) -> str:
    """A path whose last part has at most so many bytes, so that a suffix still fits; one cut off ends in its hash."""
    folder, slash, name = path.rpartition("/")
    plain = os.fsencode(name)
    if len(plain) > longest:
        name = f"{plain[: longest - 7].decode(errors='ignore')}_{digest(name)[:6]}"
    return f"{folder}{slash}{name}"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain values, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see either the old or the complete new one, even after a crash."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` at the end; see `write_atomically`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates it private
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk's error names no file
        raise


def move_files(source: Path, target: Path) -> None:
    """Move the files of a folder, if it exists, into another one, over files of the same names."""
    for path in source.iterdir() if source.is_dir() else ():
        target.mkdir(parents=True, exist_ok=True)
        os.replace(path, target / path.name)


IMAGES = (  # Pillow's names: no PostScript or WMF, which other programs draw, and no format that only old cameras write
    *("JPEG", "PNG"),  # tried first: a third of the time that Pillow needs to open a small JPEG file
    *("AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Those of `IMAGES` that the installed Pillow reads."""
    from PIL import Image as PILImage  # read late: every command imports this module

    PILImage.init()
    return tuple(name for name in IMAGES if name in PILImage.OPEN)


def image_files(folder: Path) -> list[Path]:
    """Files with a suffix of `image_formats`, sorted by name; hidden files are ignored."""
    from PIL import Image as PILImage

    formats = image_formats()
    suffixes = {suffix for suffix, kind in PILImage.registered_extensions().items() if kind in formats}
    names = [entry.name for entry in entries(folder) if is_file(entry)]
    return [folder / name for name in sorted(names) if os.path.splitext(name)[1].lower() in suffixes]


def other_files(folder: Path) -> list[Path]:
    """Visible files that are none of `image_files`, sorted by name."""
    files = {folder / entry.name for entry in entries(folder) if is_file(entry)}
    return sorted(files.difference(image_files(folder)))


def is_file(entry: os.DirEntry[str]) -> bool:
    """Broken links count too: they are reported when read, not silently ignored."""
    try:
        return entry.is_file() or not os.path.exists(entry)
    except OSError:
        return True


def subfolders(folder: Path) -> list[Path]:
    """Visible subfolders, sorted by name."""
    return sorted(folder / entry.name for entry in entries(folder) if os.path.isdir(entry))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the folder's permissions") from error


def printable(path: Path) -> Path:
    """The same path; DataError: its name has a line break, a control character or bytes that are not Unicode."""
    if not path.name.isprintable():
        raise DataError(
            f"{path.name!r} in {path.parent}: expected a name of printable characters; rename the file or folder"
        )
    return path


def tree(root: Path, links: bool = True) -> Iterator[Path]:
    """A folder and all visible folders below it, parents first; each folder is yielded once.

    Args:
        links: follow links to folders.
    """
    visited: set[str] = set()

    def below(folder: Path) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real not in visited:
            visited.add(real)
            yield folder
            for subfolder in subfolders(folder):
                if links or not subfolder.is_symlink():
                    yield from below(subfolder)

    return below(root)


def relative(path: Path, folder: Path) -> str:
    """The path below a folder, as a name in lists and records: see `composed`."""
    return composed(path.relative_to(folder).as_posix())


def below(folder: Path, text: str) -> Path:
    """The path of a file below a folder that a list names; ValueError: another one."""
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in text or not text.isprintable():
        raise ValueError(f"file or mask {text!r}; expected a path below {folder}, with forward slashes")
    return folder / path


def composed(name: str) -> str:
    """The name in Unicode's form NFC: "ö" is one character, whether a disk or archive stores one or two (NFD)."""
    return unicodedata.normalize("NFC", name)


NOT_PLAIN = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet takes what begins so for a formula


def safe_cell(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would compute gets a quote before it; numbers stay as they are."""
    if not isinstance(value, str) or not NOT_PLAIN.match(value):
        return value
    try:
        float(value)
        return value
    except ValueError:
        return f"'{value}"


def plain_cell(text: str) -> str:
    """What `safe_cell` was given."""
    return text[1:] if text.startswith("'") and NOT_PLAIN.match(text) else text
