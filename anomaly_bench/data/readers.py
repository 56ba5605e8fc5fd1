"""Read the array of a `Source`. A dataset with its own file format adds a reader to `READERS`."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage

from anomaly_bench.errors import DataError, closest, one_line
from anomaly_bench.files import image_formats

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Source
    from anomaly_bench.data.findings import Facts

SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
MOST_PIXELS = [2.0 * (PILImage.MAX_IMAGE_PIXELS or 0)]  # see `limit_pixels`
LONGEST_EXIF = 2**16 + 64  # bytes, with what follows it in a PNG

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip archive's member: the lengths of its name and of an extra field
ENCRYPTED = 1  # a flag of a zip archive's member


def read_source(source: Source) -> NDArray[Any]:
    """The (H, W) or (H, W, C) values of a source, as stored.

    Raises:
        DataError: it cannot be read.
    """
    with naming(source):
        if source.reader not in READERS:
            raise DataError(f"{source}: no reader {source.reader}{closest(source.reader, READERS)}")
        values = READERS[source.reader](source)
        if values.ndim not in (2, 3):
            raise DataError(f"{source}: an array {values.shape}; expected (H, W) or (H, W, C)")
        return values


def source_size(source: Source) -> tuple[int, int]:
    """(H, W), from the header if the format has one."""
    if source.reader == "image":
        with opened(source) as image:
            turned = image.width != image.height and orientation(image) in SIDEWAYS  # which may take decoding
            if image.format == "TIFF" and turned:  # before it is loaded, its size depends on Pillow's version
                image.load()
                return image.height, image.width
            return (image.width, image.height) if turned else (image.height, image.width)
    if source.reader == "tiff":
        import tifffile

        with naming(source), tifffile.TiffFile(source.path) as file:
            height, width = file.series[0].shape[:2]
            return height, width
    height, width = read_source(source).shape[:2]
    return height, width


@contextlib.contextmanager
def opened(source: Source) -> Iterator[PILImage.Image]:
    """An open image file; any error, now or while it is decoded, names the file."""
    with naming(source):
        file = member_file(source) if source.member else source.path
        with PILImage.open(file, formats=image_formats()) as image:
            yield image


def orientation(image: PILImage.Image) -> int | None:
    """How the stored pixels are turned, 1 to 8 of EXIF or XMP; 1: upright; None: its EXIF cannot be read."""
    try:
        if image.format == "PNG" and "exif" not in image.info and has_late_exif(image):
            image.load()
        value = PILImage.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def has_late_exif(image: PILImage.Image) -> bool:
    """Whether a PNG seems to have EXIF or XMP behind its pixels, which Pillow reads when it loads these."""
    file: Any = getattr(image, "fp", None)
    if file is None:  # loaded
        return False
    here = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - LONGEST_EXIF))
    end = file.read()
    file.seek(here)
    return b"eXIf" in end or b"XML:com.adobe.xmp" in end


def turn_upright(image: PILImage.Image, facts: Facts) -> None:
    """Load an image and turn it as its EXIF says."""
    turned = orientation(image)
    if turned is None:
        facts["exif"] = True
    elif turned == 1:
        image.load()
    else:
        ImageOps.exif_transpose(image, in_place=True)
        facts["turned"] = turned


@contextlib.contextmanager
def naming(source: Source) -> Iterator[None]:
    """Turn any error while a source is read into a DataError that names it.

    For damaged files PIL raises a dozen undocumented types of errors; so do zip, numpy and tifffile.
    """
    try:
        yield
    except DataError:
        raise
    except PILImage.DecompressionBombError as error:
        found = str(error).partition(" exceeds")[0]  # "Image size (... pixels)"
        raise DataError(
            f"{source}: {found}, more than max_megapixels={MOST_PIXELS[0] / 1e6:g}; replace the file, or raise that key"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{source}: does not fit into memory; expected a smaller image: replace or remove it"
        ) from error
    except Exception as error:  # see above
        unknown = isinstance(error, UnidentifiedImageError)
        why = "not a format that PIL knows" if unknown else one_line(str(error)) or type(error).__name__
        raise DataError(
            f"{source}: cannot be decoded ({why}); expected an image: replace or remove the file"
        ) from error


def limit_pixels(megapixels: float) -> None:
    """The largest image that is opened, in this process; a small file can hold a huge one."""
    MOST_PIXELS[0] = megapixels * 1e6
    PILImage.MAX_IMAGE_PIXELS = int(MOST_PIXELS[0] / 2)  # Pillow warns from here on, and refuses twice this
    warnings.filterwarnings("ignore", category=PILImage.DecompressionBombWarning)


def member_file(source: Source) -> IO[bytes]:
    """A file in a zip archive, read as a whole, as the many small reads of PIL are slow there."""
    return io.BytesIO(read_member(source.path, source.path.stat().st_mtime_ns, source.member))


@functools.lru_cache(maxsize=4)
def archive(path: Path, modified: int) -> zipfile.ZipFile:
    """A zip archive, kept open so that its table of contents is read once; threads may share it."""
    return zipfile.ZipFile(path)


@functools.lru_cache(maxsize=4)
def mapped_archive(path: Path, modified: int) -> mmap.mmap:
    """The bytes of a zip archive, memory-mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_member(path: Path, modified: int, name: str) -> bytes:
    """A file in a zip archive. `ZipFile.read` takes a hundred times as long, more than decoding a small image."""
    zipped, content = archive(path, modified), mapped_archive(path, modified)
    entry = zipped.getinfo(name)
    if entry.flag_bits & ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return zipped.read(entry)
    start = entry.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack_from(content, entry.header_offset))
    packed = content[start : start + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        packed = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.file_size)
    if zlib.crc32(packed) != entry.CRC:
        raise zipfile.BadZipFile(f"{name}: wrong checksum")
    return packed


@functools.lru_cache(maxsize=4)
def arrays(path: Path, modified: int) -> Mapping[str, NDArray[Any]]:
    """The arrays of an npz file, held in memory."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def read_image(source: Source) -> NDArray[Any]:
    """A file that PIL can read, or such a file in a zip archive: `member` is its name there."""
    with opened(source) as image:
        turn_upright(image, {})
        plain = image.mode[0] in "1LIF" and image.mode != "LA"
        return np.asarray(image if plain else image.convert("RGB"))


def mapped_npy(path: Path) -> NDArray[Any]:
    """An npy file, memory-mapped."""
    values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def read_npy(source: Source) -> NDArray[Any]:
    """An npy file, or its row `member`, such as a frame of (T, H, W); memory-mapped, not read as a whole."""
    values = mapped_npy(source.path)
    return np.array(values[int(source.member)] if source.member else values)


def read_npz(source: Source) -> NDArray[Any]:
    """A row of an array in an npz file, which is kept in memory: `member` is "name/17"."""
    name, _, row = source.member.rpartition("/")
    return np.asarray(arrays(source.path, source.path.stat().st_mtime_ns)[name][int(row)])


def read_tiff(source: Source) -> NDArray[Any]:
    """A TIFF of any type and number of channels, such as the float coordinates of MVTec 3D-AD."""
    import tifffile

    return np.asarray(tifffile.imread(source.path))


READERS: dict[str, Callable[[Source], NDArray[Any]]] = {
    "image": read_image,
    "npy": read_npy,
    "npz": read_npz,
    "tiff": read_tiff,
}
