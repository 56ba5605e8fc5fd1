"""A small generated dataset in the layout of MVTec AD, for trying things out without a download.

Four categories, each with 40 normal training images, 20 normal test images and 4 x 5 defective ones:

weave    a twill cloth whose threads bend and vary.
         misweave: a warp thread passes over wefts that it should pass under; hole: threads pushed apart;
         stain: a dried drop; fibre: a hair on the cloth.
granite  polished stone of three minerals with faint veins.
         crack: a fine line; pit: a small dent; stain: oil that tints the stone; dull: a spot that lost its polish.
gear     a turned steel gear, nearly in place.
         chip: a tooth that lost its tip; bent: a tooth pushed aside; scratch: a line in the metal; rust: a brown spot.
biscuit  a scalloped biscuit, nearly in place, with holes and browning that vary.
         bite: a piece of the rim is gone; crack: a fine gap; burn: a dark spot; filled: a hole is missing.

An image depends only on its category, split and number. Exposure varies evenly over the numbers, so that good and
defective images are equally bright, and so does the strength of defects, from hardly visible to obvious. Each picture
is drawn with and without its defect; the mask holds the pixels that differ visibly, and only these change.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from anomaly_bench.cache import LOCKS, cache_root
from anomaly_bench.data.dataset import Task
from anomaly_bench.data.mvtec import MVTecDataset
from anomaly_bench.errors import UsageError

_Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Colour = tuple[float, float, float]
outer = np.multiply.outer  # (3,) colour, (H, W) brightness -> (3, H, W) picture
IMAGES_REVISION = 2  # raised when a pixel of any image changes
CATEGORIES = {"weave": "textures", "granite": "textures", "gear": "objects", "biscuit": "objects"}
DEFECTS = {
    "weave": ("fibre", "hole", "misweave", "stain"),
    "granite": ("crack", "dull", "pit", "stain"),
    "gear": ("bent", "chip", "rust", "scratch"),
    "biscuit": ("bite", "burn", "crack", "filled"),
}
SIZE = 256  # pixels a side
TRAIN, NORMAL, EACH = 40, 20, 5  # images per category: for training, good ones for testing, per defect
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float64)
VISIBLE = 0.03  # a smaller change of a pixel in [0, 1] is left out of image and mask


def generate(category: str, root: Path) -> None:
    """Write a category's train/good, test/<good or defect> and ground_truth/<defect> below `root`, as PNG files."""
    with ThreadPoolExecutor(4) as pool:  # NumPy and Pillow release the GIL
        for written in [pool.submit(_write, root, category, *image) for image in _images(category)]:
            written.result()


def _images(category: str) -> Iterator[tuple[str, str, int, int]]:
    """Split, defect, number in the folder and number in the split of every image."""
    yield from (("train", "good", number, number) for number in range(TRAIN))
    yield from (("test", "good", number, number) for number in range(NORMAL))
    for place, defect in enumerate(DEFECTS[category]):
        first = NORMAL + place * EACH
        yield from (("test", defect, number, first + number) for number in range(EACH))


def _write(root: Path, category: str, split: str, defect: str, number: int, index: int) -> None:
    image, mask = render(category, split, index, defect)
    _save(image, root / split / defect / f"{number:03d}.png")
    if defect != "good":
        _save(mask.astype(np.uint8) * 255, root / "ground_truth" / defect / f"{number:03d}_mask.png")


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def render(category: str, split: str, index: int, defect: str = "good") -> tuple[Pixels, NDArray[np.bool_]]:
    """Draw one image and its mask; the same arguments with "good" give its clean twin.

    Args:
        category: a key of CATEGORIES.
        split: "train" or "test".
        index: the image's number in its split; defective test images follow the good ones.
        defect: "good" or one of DEFECTS[category].

    Returns:
        (256, 256, 3) pixels; (256, 256) mask, True where they differ from the clean twin's: visibly, and nowhere else.
    """
    seed = zlib.crc32(f"{category}/{split}/{index}".encode())
    draw = {"weave": _weave, "granite": _granite, "gear": _gear, "biscuit": _biscuit}[category]
    strength = (index * 2 % EACH + 0.5) / EACH
    picture = draw(default_rng([seed, 0]), default_rng([seed, 1]), "good", strength)
    light = _light(default_rng([seed, 2]), index) / picture.mean()
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    if defect != "good":
        flawed = draw(default_rng([seed, 0]), default_rng([seed, 1]), defect, strength)
        differs = np.abs((flawed - picture) * light).max(axis=0) > VISIBLE
        mask = ndimage.binary_fill_holes(ndimage.binary_closing(differs, iterations=3))
        picture = np.where(mask, flawed, picture)
    picture = picture * light + 0.012 * _grain(default_rng([seed, 3]))
    return np.moveaxis(picture.clip(0, 1) * 255, 0, 2).round().astype(np.uint8), mask


# Pictures and colours are (3, H, W) and (3,) floats, 1 is white; coverages and heights are (H, W).


def _light(rng: Generator, index: int) -> _Floats:
    """(3, H, W) the mean brightness of picture `index`, with a slope across it and a warm or cold tint."""
    mean = 0.42 + 0.06 * (index * 0.6180339887 % 1 - 0.5)  # golden ratio: any few consecutive numbers spread evenly
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.1) / 128
    plane = 1 + slope * (np.cos(angle) * (X - 127.5) + np.sin(angle) * (Y - 127.5))
    return np.asarray(outer(mean * (1 + rng.normal(0, 0.01, 3)), plane))


def _grain(rng: Generator) -> _Floats:
    """(H, W) white noise of mean 0 and standard deviation 1: uniform, which is much faster than normal."""
    return np.asarray((rng.random((SIZE, SIZE)) - 0.5) * np.sqrt(12))


def _field(rng: Generator, scale: float) -> _Floats:
    """(H, W) smooth noise of mean 0 and standard deviation about 1, with bumps `scale` pixels wide."""
    if scale < 8:
        noise = ndimage.gaussian_filter(_grain(rng), scale, truncate=2, mode="wrap")
        return np.asarray(noise * (2 * np.sqrt(np.pi) * scale))
    knots = np.arange(-3, SIZE / scale + 3)[:, None]  # a sum of a few wide bumps, much faster than a wide filter
    bumps = np.exp(-((np.arange(SIZE) / scale - knots) ** 2) / 2)
    bumps /= np.sqrt((bumps**2).sum(axis=0))
    rows = np.einsum("kl,ki->li", rng.standard_normal((len(knots), len(knots))), bumps)
    return np.asarray(np.einsum("li,lj->ij", rows, bumps))  # not @: its threads cost more than they save


def _blend(below: Colour | _Floats, above: Colour | _Floats, cover: _Floats) -> _Floats:
    """(3, H, W) `below` where `cover` is 0, `above` where it is 1; each is a colour or a picture."""
    low, high = (np.reshape(x, (3, 1, 1)) if isinstance(x, tuple) else x for x in (below, above))
    return np.asarray(low + cover * (high - low))


def _step(distance: _Floats, soft: float = 0.7) -> _Floats:
    """From 0 to 1 as `distance` in pixels goes from negative to positive."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / soft))


def _relief(height: _Floats, blur: float) -> _Floats:
    """(H, W) how much light from the upper left brightens a surface of this height."""
    smooth = ndimage.gaussian_filter(height, blur, truncate=2)
    return np.asarray(np.roll(smooth, -1, (0, 1)) - np.roll(smooth, 1, (0, 1))) / 2


def _shadow(solid: _Floats) -> _Floats:
    """(H, W) the soft shadow that an object casts to the lower right."""
    return np.roll(ndimage.gaussian_filter(solid, 4, truncate=2), (4, 4), (0, 1))


def _spot(rng: Generator, centre: tuple[float, float], radius: float, soft: float) -> _Floats:
    """(H, W) coverage of an uneven round spot."""
    return _step(radius * (1 + 0.15 * _field(rng, radius / 2)) - np.hypot(X - centre[0], Y - centre[1]), soft)


def _line(rng: Generator, start: tuple[float, float], length: float, bend: float, width: float) -> _Floats:
    """(H, W) coverage of a meandering line: `bend` is the standard deviation of its direction per 3 pixels."""
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, int(length / 3)))
    points = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3, axis=0) + start
    canvas = Image.new("L", (SIZE * 4, SIZE * 4))
    ImageDraw.Draw(canvas).line((points * 4).ravel().tolist(), fill=255, width=round(width * 4), joint="curve")
    return np.asarray(canvas.reduce(4), dtype=np.float64) / 255


def _somewhere(rng: Generator, nearest: float, farthest: float) -> tuple[float, float]:
    """A point (x, y) whose distance from the centre of the picture lies between the two."""
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(nearest, farthest)
    return 128 + distance * np.cos(angle), 128 + distance * np.sin(angle)


def _weave(rng: Generator, flaw: Generator, defect: str, strength: float) -> _Floats:
    centre, radius = _somewhere(flaw, 0, 95), 4.5 + 5 * strength
    across, along = X + 1.5 * _field(rng, 40), Y + 1.5 * _field(rng, 40)
    far = np.hypot(X - centre[0], Y - centre[1])
    if defect == "hole":
        push = 0.6 * radius * np.exp(-((far / radius / 1.4) ** 2)) / np.maximum(far, 1)
        across, along = across - push * (X - centre[0]), along - push * (Y - centre[1])
    pitch = rng.uniform(9.8, 10.2)
    u, v = across / pitch + rng.uniform(0, 4), along / pitch + rng.uniform(0, 4)
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)  # number of the warp and of the weft thread
    over = (i + j) % 4 < 2
    if defect == "misweave":
        column, row = i[int(centre[1]), int(centre[0])], j[int(centre[1]), int(centre[0])]
        over = over | ((i == column) & (abs(j - row) <= 1 + round(3 * strength)))
    width = np.where(over, u - i, v - j)  # from 0 to 1 across the thread on top, then along its visible part
    length = np.where(over, v + i, u + j - 2) % 4 / 2
    round_ = np.sqrt(width * (1 - width)) * (1 + 3 * (length * (1 - length)).clip(0))
    twist = 0.95 + 0.05 * np.sin(2 * np.pi * (3 * length + width))
    tone = np.where(over, rng.normal(1, 0.05, 64)[i], rng.normal(1, 0.05, 64)[j])
    shade = (0.2 + round_) * twist * tone * (1 + 0.06 * _field(rng, 1) + 0.03 * _field(rng, 30))
    picture: _Floats = shade * _blend((0.74, 0.71, 0.64), (0.28, 0.37, 0.52), over.astype(float))
    if defect == "hole":
        picture = _blend(picture, (0.07, 0.06, 0.06), _step(radius * 0.5 - far))
    if defect == "stain":
        spot = _spot(flaw, centre, 12 + 12 * strength, 2)
        picture *= 1 - outer((0.4, 0.8, 1.4), (0.2 + 0.35 * strength) * spot)
    if defect == "fibre":
        line = _line(flaw, centre, 30 + 50 * strength, 0.15, 1.3 + strength)
        picture = _blend(picture, (0.62, 0.16, 0.14), line * (0.4 + 0.4 * strength))
    return picture


def _granite(rng: Generator, flaw: Generator, defect: str, strength: float) -> _Floats:
    picture = outer((0.62, 0.60, 0.59), 1 + 0.03 * _field(rng, 25))
    picture = _blend(picture, (0.74, 0.58, 0.52), _step(_field(rng, 3.2) - rng.normal(0.5, 0.04), 0.3))
    picture = _blend(picture, (0.86, 0.85, 0.83), _step(_field(rng, 1.8) - rng.normal(1.1, 0.04), 0.25))
    picture = _blend(picture, (0.16, 0.16, 0.18), _step(_field(rng, 1.4) - rng.normal(1.2, 0.04), 0.3))
    picture = _blend(picture, (0.80, 0.78, 0.76), 0.25 * np.exp(-((_field(rng, 45) / 0.04) ** 2)))
    centre = _somewhere(flaw, 0, 95)
    if defect == "crack":
        line = _line(flaw, centre, 45 + 60 * strength, 0.3, 2 + 1.5 * strength)
        picture = _blend(picture, (0.10, 0.09, 0.08), line * (0.6 + 0.4 * strength))
        picture += 0.25 * np.roll(line, (2, 2), (0, 1))
    if defect == "pit":
        spot = _spot(flaw, centre, 5 + 6 * strength, 1.5)
        picture = picture * (1 - 0.3 * spot) - 2 * _relief(spot, 1.5)
    if defect == "stain":
        spot = _spot(flaw, centre, 12 + 12 * strength, 3)
        picture *= 1 + outer((0.4, 0, -1.2), (0.2 + 0.3 * strength) * spot)
    if defect == "dull":
        spot = _spot(flaw, centre, 13 + 12 * strength, 2)
        picture = _blend(picture, ndimage.gaussian_filter(picture, (0, 3, 3)), spot * (0.7 + 0.3 * strength))
    return picture


def _gear(rng: Generator, flaw: Generator, defect: str, strength: float) -> _Floats:
    x, y = X - 128 - rng.normal(0, 2), Y - 128 - rng.normal(0, 2)
    r, angle = np.hypot(x, y) * rng.normal(1, 0.006), np.arctan2(y, x) + rng.normal(0, 0.022)
    tooth, turned = angle - np.pi * flaw.integers(18) / 9, angle
    if defect == "bent":
        turned = angle + (0.01 + 0.045 * strength) * _near(tooth) * ((r - 86) / 16).clip(0, 1)
    edge = 95 + 8 * np.tanh(2.5 * np.cos(18 * turned))
    if defect == "chip":
        edge -= _near(tooth) * np.maximum(edge - 101 + 7 * strength, 0)
    sixth = (angle + rng.normal(0, 0.005)) % (np.pi / 3) - np.pi / 6
    hole = np.sqrt(r * r - 2 * 62 * r * np.cos(sixth) + 62**2)  # distance from the centre of the nearest hole
    solid = _step(edge - r) * _step(r - 20) * _step(hole - 11)
    relief = 0.5 * _relief(solid - 0.4 * _step(r - 36) + 0.4 * _step(r - 84), 1.3)
    gloss = 0.12 * np.cos(2 * angle - rng.normal(1, 0.5)) + 0.03 * rng.standard_normal(400)[(r * 2).astype(int)]
    grain = _field(rng, 1.5)
    metal = outer((0.60, 0.62, 0.66), 1 + gloss + 0.02 * grain + 0.03 * _field(rng, 20))
    if defect == "rust":
        spot = _spot(flaw, _somewhere(flaw, 40, 90), 3 + 5 * strength, 2)
        metal = _blend(metal, (0.50, 0.37, 0.28), spot * (0.15 + 0.3 * strength) * (1 + 0.2 * _field(flaw, 2)))
    if defect == "scratch":
        line = _line(flaw, _somewhere(flaw, 36, 84), 15 + 20 * strength, 0.03, 1 + 0.2 * strength)
        metal += (0.05 + 0.15 * strength) * (line - np.roll(line, 2, 0))
    table = outer((0.20, 0.22, 0.26), (1 - 0.5 * _shadow(solid)) * (1 + 0.05 * grain))
    return _blend(table, metal, solid) + relief * (0.3 + 0.7 * solid)


def _near(angle: _Floats) -> _Floats:
    """1 at the tooth at angle 0, 0 at the others."""
    return np.asarray(np.exp(-((88 * (1 - np.cos(angle))) ** 2)))


def _biscuit(rng: Generator, flaw: Generator, defect: str, strength: float) -> _Floats:
    x, y = X - 128 - rng.normal(0, 1.5), Y - 128 - rng.normal(0, 1.5)
    r, angle = np.hypot(x, y) * rng.normal(1, 0.012), np.arctan2(y, x) + rng.normal(0, 0.03)
    edge = 98 + 5 * np.abs(np.cos(10 * angle)) + rng.normal(0, 1.5) * np.cos(2 * angle + rng.uniform(0, 6))
    rim = _somewhere(flaw, 103, 105)
    solid = _step(edge - r, 1)
    if defect == "bite":
        solid *= 1 - _spot(flaw, rim, 6 + 6 * strength, 1)
    number = np.arange(18)  # of the hole: twelve in the outer ring, six in the inner
    ring, turn = np.where(number < 12, 66, 33), np.pi * np.where(number < 12, number / 6, number / 3 + 1 / 6)
    left, top = rng.normal(ring * np.cos(turn), 1)[:, None], rng.normal(ring * np.sin(turn), 1)[:, None]
    depth = rng.uniform(0.7, 1.2, 18)
    if defect == "filled":
        depth[flaw.integers(12)] *= 0.4 * (1 - strength)
    bowls = depth[:, None] * np.exp(-((y[:, 0] - top) ** 2) / 18), np.exp(-((x[0] - left) ** 2) / 18)
    dents = np.einsum("ni,nj->ij", *bowls)
    fine, coarse = _field(rng, 2), _field(rng, 5)
    brown = 0.25 + 0.5 * _step(r - 98, 25) + 0.14 * _field(rng, 25) + 0.1 * coarse
    if defect == "burn":
        brown += (0.35 + 0.4 * strength) * _spot(flaw, _somewhere(flaw, 0, 80), 5.5 + 8 * strength, 3)
    dough = _blend((0.90, 0.70, 0.43), (0.55, 0.31, 0.13), brown.clip(0, 1)) * (1 - 0.6 * dents.clip(0, 1))
    if defect == "crack":
        line = _line(flaw, _somewhere(flaw, 20, 75), 20 + 25 * strength, 0.3, 1.2 + strength)
        dough = _blend(dough, (0.35, 0.20, 0.10), line * (0.3 + 0.35 * strength))
    relief = 0.4 * _relief(solid * (1 + 0.06 * fine + 0.07 * coarse - 0.5 * dents), 1) * solid
    plate = outer((0.55, 0.62, 0.68), (1 - 0.4 * _shadow(solid)) * (1 + 0.01 * fine))
    return _blend(plate, dough, solid) + relief


@dataclass(frozen=True)
class SyntheticDataset(MVTecDataset):
    """The generated images: a category is generated into the cache, if missing or incomplete, when it is read."""

    @property
    def available(self) -> list[str]:
        return list(self.categories)

    def task(self, category: str) -> Task:
        files = TRAIN + NORMAL + 2 * EACH * len(DEFECTS[category])  # images and masks
        generated(self.folder(category), files, partial(generate, category))
        return super().task(category)


def synthetic(name: str, title: str, data_root: str | None) -> SyntheticDataset:
    """The dataset of the generated images.

    Raises:
        UsageError: a data_root is given.
    """
    if data_root is not None:
        raise UsageError("data_root has no effect on dataset=synthetic: its images are generated; leave it out")
    return SyntheticDataset(name, title, cache_root() / f"synthetic-{IMAGES_REVISION}", dict(CATEGORIES))


def generated(root: Path, files: int, write: Callable[[Path], None]) -> None:
    """Have `write` make this folder in the cache anew unless it holds that many files."""
    locks = cache_root() / LOCKS
    for parent in (root.parent, locks):
        parent.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{root.parent.name}-{root.name}.lock"):
        if sum(path.is_file() for path in root.rglob("*.*")) != files:
            shutil.rmtree(root, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=root.parent, prefix=".tmp-") as folder:
                write(Path(folder, "tree"))
                os.replace(Path(folder, "tree"), root)
