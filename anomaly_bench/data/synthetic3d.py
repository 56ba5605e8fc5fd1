"""Generated scans in the layout of MVTec 3D-AD, for trying out methods of 3D data without a download.

Two objects on a table below a camera at the origin that looks along z; coordinates are in metres, 128 pixels a side:

bun    a round loaf with three cuts; its height, place and turn vary.
block  a square block with rounded edges and four studs; likewise.

Each has 40 training, 8 validation and 20 normal test scans, and 12 of each defect: dent (a part is pressed in) and hole
(one sees the table through it). Steep edges have no value. A scan depends only on its category, split and number; the
mask holds the pixels whose distance from the camera the defect changes by more than a millimetre.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly_bench.cache import cache_root
from anomaly_bench.data.categories import require_choice
from anomaly_bench.data.mvtec3d import GOOD, MODALITIES, Scans
from anomaly_bench.data.synthetic import generated
from anomaly_bench.errors import UsageError

_Floats = NDArray[np.float64]
SCANS_REVISION = 2  # raised when any scan changes
CATEGORIES = ("bun", "block")
SIZE = 128  # pixels a side
COUNTS = {"train/good": 40, "validation/good": 8, "test/good": 20, "test/dent": 12, "test/hole": 12}
FOCUS, TABLE = 1.2 * SIZE, 0.5  # focal length in pixels; distance of the table in metres
COLOURS = {"bun": (0.78, 0.55, 0.30), "block": (0.35, 0.50, 0.70)}
Y, X = (np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2) * TABLE / FOCUS  # metres on the table


def render(category: str, split: str, index: int, defect: str = GOOD) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One scan; the same arguments with "good" give its clean twin.

    Args:
        index: the scan's number in its split.
        defect: good, dent or hole.

    Returns:
        (128, 128, 3) colours, and (128, 128, 3) coordinates in metres, 0 where there is no value.
    """
    seed = zlib.crc32(f"{category}/{split}/{index}".encode())
    rng, flaw = default_rng([seed, 0]), default_rng([seed, 1])
    height = _bun(rng) if category == "bun" else _block(rng)
    tilt = rng.normal(0, 0.01, 2)
    if defect != GOOD:
        height = _spoilt(height, flaw, defect)
    depth = TABLE + tilt[0] * X + tilt[1] * Y - height + rng.normal(0, 0.0003, height.shape)
    steep = np.hypot(*np.gradient(height)) > 0.01
    points = np.stack([depth * X / TABLE, depth * Y / TABLE, depth], axis=-1)
    points[steep] = 0
    return _colours(category, height, rng), points.astype(np.float32)


def _place(rng: Generator) -> tuple[_Floats, _Floats]:
    """Coordinates around an object that is shifted by some millimetres and turned by some degrees."""
    x, y, angle = X - rng.normal(0, 0.002), Y - rng.normal(0, 0.002), np.deg2rad(rng.normal(0, 2))
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _bun(rng: Generator) -> _Floats:
    x, y = _place(rng)
    top = 0.08 * rng.normal(1, 0.02)
    height = top * (1 - (x**2 + y**2) / 0.15**2).clip(0)
    cuts = sum(np.exp(-(((x - 0.05 * place) / 0.006) ** 2)) for place in (-1, 0, 1))
    return np.asarray(height * (1 - 0.15 * cuts))


def _block(rng: Generator) -> _Floats:
    x, y = _place(rng)
    edge = 0.13 * rng.normal(1, 0.005) - (np.abs(x) ** 6 + np.abs(y) ** 6) ** (1 / 6)
    studs = sum(np.hypot(x - 0.06 * i, y - 0.06 * j) < 0.025 for i in (-1, 1) for j in (-1, 1))
    height = 0.05 * rng.normal(1, 0.02) * np.clip(edge / 0.015, 0, 1)
    return np.asarray(height + 0.012 * ndimage.gaussian_filter(np.asarray(studs, dtype=np.float64), 1))


def _spoilt(height: _Floats, rng: Generator, defect: str) -> _Floats:
    """The height with a dent or a hole well inside the object."""
    distance, angle = rng.uniform(0, 0.085), rng.uniform(0, 2 * np.pi)
    far = np.hypot(X - distance * np.cos(angle), Y - distance * np.sin(angle))
    if defect == "hole":
        return np.where(far < rng.uniform(0.012, 0.022), 0.0, height)
    pressed = rng.uniform(0.015, 0.03) * np.exp(-((far / rng.uniform(0.02, 0.03)) ** 4))
    return np.asarray((height - pressed).clip(0))


def _colours(category: str, height: _Floats, rng: Generator) -> NDArray[np.uint8]:
    """(128, 128, 3): the object on a grey table, lit from the upper left."""
    slopes = np.gradient(ndimage.gaussian_filter(height, 0.7))
    light = 1 - 25 * (slopes[0] + slopes[1]).clip(-0.02, 0.02)
    solid = np.clip(height / 0.004, 0, 1)[..., None]
    picture = (0.30 + solid * (np.array(COLOURS[category]) - 0.30)) * light[..., None]
    picture = picture * rng.normal(1, 0.03) + rng.normal(0, 0.01, (SIZE, SIZE, 1))
    return np.asarray((picture.clip(0, 1) * 255).round(), dtype=np.uint8)


def mask_of(category: str, split: str, index: int, defect: str) -> NDArray[np.bool_]:
    """(128, 128), True where the defect changes the distance; not where neither scan has a value."""
    (_, clean), (_, flawed) = (render(category, split, index, kind) for kind in (GOOD, defect))
    return np.asarray(np.abs(clean[..., 2] - flawed[..., 2]) > 0.001)


def _scans() -> Iterator[tuple[str, str, int, int]]:
    """Category, folder, number in the folder and number in the split of every scan."""
    for category in CATEGORIES:
        first = 0
        for folder, count in COUNTS.items():
            first = 0 if folder.endswith(GOOD) else first
            yield from ((category, folder, number, first + number) for number in range(count))
            first += count


def generate(root: Path) -> None:
    """Write all scans below `root`: rgb/*.png, xyz/*.tiff and, for test scans, gt/*.png."""
    import tifffile

    for category, folder, number, index in _scans():
        split, _, defect = folder.partition("/")
        colours, points = render(category, split, index, defect)
        where = root / category / folder
        for part in ("rgb", "xyz", *(["gt"] if split == "test" else [])):
            (where / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(where / "rgb" / f"{number:03d}.png", compress_level=1)
        tifffile.imwrite(where / "xyz" / f"{number:03d}.tiff", points, photometric="rgb")
        if split == "test":
            mask = np.zeros((SIZE, SIZE), np.bool_) if defect == GOOD else mask_of(category, split, index, defect)
            Image.fromarray(mask.astype(np.uint8) * 255).save(where / "gt" / f"{number:03d}.png")


def synthetic3d(name: str, title: str, modality: str, data_root: str | None) -> Scans:
    """The dataset of the generated scans, generated into the cache if missing or incomplete.

    Args:
        modality: what methods may read, a key of `mvtec3d.MODALITIES`; part of the name unless it is all of them.

    Raises:
        UsageError: a data_root is given; no such modality.
    """
    if data_root is not None:
        raise UsageError("data_root has no effect on dataset=synthetic3d: its scans are generated; leave it out")
    require_choice("modality", modality, MODALITIES)
    files = len(CATEGORIES) * sum(count * (3 if "test" in folder else 2) for folder, count in COUNTS.items())
    root = cache_root() / f"synthetic3d-{SCANS_REVISION}"
    generated(root, files, generate)
    if modality != "rgb+depth+xyz":
        name, title = f"{name}_{modality.replace('+', '_')}", f"{title} ({modality})"
    return Scans(name, title, root, dict.fromkeys(CATEGORIES), MODALITIES[modality])
