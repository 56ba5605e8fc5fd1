"""A small generated data set in the layout of MVTec AD, for trying things out without a download.

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

An image depends on its category, split and number alone. Exposure is spread evenly over the numbers, so that good
and defective images are equally bright, and so is the strength of defects, from hardly visible to plain. The same
picture is drawn with and without its defect; the mask holds the pixels that differ visibly, and only these change.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
outer = np.multiply.outer  # (3,) colour, (H, W) brightness -> (3, H, W) picture

REVISION = 1  # raised when a pixel of any image changes
CATEGORIES = {"weave": "textures", "granite": "textures", "gear": "objects", "biscuit": "objects"}
DEFECTS = {
    "weave": ("fibre", "hole", "misweave", "stain"),
    "granite": ("crack", "dull", "pit", "stain"),
    "gear": ("bent", "chip", "rust", "scratch"),
    "biscuit": ("bite", "burn", "crack", "filled"),
}
SIZE, TRAIN, GOOD, EACH = (
    256,
    40,
    20,
    5,
)  # pixels a side; images: training, good in the test set, of each defect
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float64)
VISIBLE = 0.03  # a smaller change of a pixel in [0, 1] is left out of image and mask


def generate(root: Path) -> None:
    """Write <category>/train/good, test/<good or defect> and ground_truth/<defect> below `root`, as PNG files."""
    for category, defects in DEFECTS.items():
        for number in range(TRAIN):
            _write(root, category, "train", "good", number, number)
        for number in range(GOOD):
            _write(root, category, "test", "good", number, number)
        for place, defect in enumerate(defects):
            for number in range(EACH):
                _write(root, category, "test", defect, number, GOOD + place * EACH + number)


def _write(root: Path, category: str, split: str, defect: str, number: int, index: int) -> None:
    image, mask = render(category, split, index, defect)
    _save(image, root / category / split / defect / f"{number:03d}.png")
    if defect != "good":
        _save(mask.astype(np.uint8) * 255, root / category / "ground_truth" / defect / f"{number:03d}_mask.png")


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def render(category: str, split: str, index: int, defect: str = "good") -> tuple[Pixels, NDArray[np.bool_]]:
    """Draw one image and its mask; the same arguments with "good" give its clean twin.

    Args:
        category: a key of CATEGORIES.
        split: "train" or "test".
        index: the image's number in its split, defective test images counted on after the good ones.
        defect: "good" or one of DEFECTS[category].

    Returns:
        (256, 256, 3) pixels; (256, 256) True where they differ visibly from the clean twin's, and nowhere else do they.
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
    picture = picture * light + default_rng([seed, 3]).normal(0, 0.012, (SIZE, SIZE))
    return np.moveaxis(picture.clip(0, 1) * 255, 0, 2).round().astype(np.uint8), mask


# Pictures and colours are (3, H, W) and (3,) floats, 1 is white; coverages and heights are (H, W).


def _light(rng: Generator, index: int) -> Floats:
    """(3, H, W) the mean brightness of picture `index`, with a slope across it and a warm or cold tint."""
    mean = 0.42 + 0.06 * (index * 0.6180339887 % 1 - 0.5)  # golden ratio: any few numbers in a row spread evenly
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.1) / 128
    plane = 1 + slope * (np.cos(angle) * (X - 127.5) + np.sin(angle) * (Y - 127.5))
    return np.asarray(outer(mean * (1 + rng.normal(0, 0.01, 3)), plane))


def _field(rng: Generator, scale: float) -> Floats:
    """(H, W) smooth noise of mean 0 and deviation about 1, with bumps `scale` pixels wide."""
    if scale < 10:
        noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), scale, truncate=2, mode="wrap")
        return np.asarray(noise * scale * 2 * np.sqrt(np.pi))
    knots = np.arange(-3, SIZE / scale + 3)  # a sum of a few wide bumps, much faster than a wide filter
    basis = np.exp(-((np.arange(SIZE)[:, None] / scale - knots) ** 2) / 2)
    basis /= np.sqrt((basis**2).sum(axis=1, keepdims=True))
    rows = np.einsum("ik,kl->il", basis, rng.standard_normal((len(knots), len(knots))))
    return np.asarray(np.einsum("il,jl->ij", rows, basis))  # not @: threads would cost more than they save


def _blend(picture: Floats, colour: tuple[float, float, float] | Floats, cover: Floats) -> Floats:
    """`picture` where `cover` is 0, `colour` (or another picture) where it is 1."""
    target = np.reshape(colour, (3, 1, 1)) if isinstance(colour, tuple) else colour
    return picture + cover * (target - picture)


def _step(distance: Floats, soft: float = 0.7) -> Floats:
    """0 to 1 as `distance` in pixels goes from negative to positive."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / soft))


def _relief(height: Floats, blur: float) -> Floats:
    """(H, W) how much brighter a surface of this height is under light from the upper left."""
    down, right = np.gradient(ndimage.gaussian_filter(height, blur, truncate=3))
    return np.asarray(down + right)


def _shadow(solid: Floats) -> Floats:
    """(H, W) the soft shadow that an object throws to the lower right."""
    return np.roll(ndimage.gaussian_filter(solid, 4, truncate=2), (4, 4), (0, 1))


def _spot(rng: Generator, centre: tuple[float, float], radius: float, soft: float) -> Floats:
    """(H, W) coverage of an uneven round spot."""
    return _step(radius * (1 + 0.15 * _field(rng, radius / 2)) - np.hypot(X - centre[0], Y - centre[1]), soft)


def _line(rng: Generator, start: tuple[float, float], length: float, bend: float, width: float) -> Floats:
    """(H, W) coverage of a line that wanders: `bend` is the deviation of its direction per 3 pixels."""
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, int(length / 3)))
    points = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3, axis=0) + start
    canvas = Image.new("L", (SIZE * 4, SIZE * 4))
    ImageDraw.Draw(canvas).line((points * 4).ravel().tolist(), fill=255, width=round(width * 4), joint="curve")
    return np.asarray(canvas.reduce(4), dtype=np.float64) / 255


def _somewhere(rng: Generator, nearest: float, farthest: float) -> tuple[float, float]:
    """A point (x, y) whose distance from the middle of the picture lies between the two."""
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(nearest, farthest)
    return 128 + distance * np.cos(angle), 128 + distance * np.sin(angle)


def _weave(rng: Generator, flaw: Generator, defect: str, strength: float) -> Floats:
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
    warp = _thread(u - i, ((v + i) % 4) / 2) * rng.normal(1, 0.05, 64)[i]
    weft = _thread(v - j, ((u + j) % 4 - 2) / 2) * rng.normal(1, 0.05, 64)[j]
    shade = np.where(over, warp, weft) * (1 + 0.06 * _field(rng, 1) + 0.03 * _field(rng, 30))
    picture = _blend(outer((0.74, 0.71, 0.64), shade), outer((0.28, 0.37, 0.52), shade), over.astype(float))
    if defect == "hole":
        picture = _blend(picture, (0.07, 0.06, 0.06), _step(radius * 0.5 - far))
    if defect == "stain":
        spot = _spot(flaw, centre, 12 + 12 * strength, 2)
        picture *= 1 - outer((0.4, 0.8, 1.4), (0.2 + 0.35 * strength) * spot)
    if defect == "fibre":
        line = _line(flaw, centre, 30 + 50 * strength, 0.15, 1.3 + strength)
        picture = _blend(picture, (0.62, 0.16, 0.14), line * (0.5 + 0.4 * strength))
    return picture


def _thread(width: Floats, length: Floats) -> Floats:
    """(H, W) brightness of a thread, round across its width and along the length (0 to 1) that is seen."""
    rounded = np.sqrt(width * (1 - width) * 4) * (0.6 + 0.4 * (length * (1 - length) * 4).clip(0, 1))
    return np.asarray((0.2 + 0.8 * rounded) * (0.95 + 0.05 * np.sin(2 * np.pi * (3 * length + width))))


def _granite(rng: Generator, flaw: Generator, defect: str, strength: float) -> Floats:
    picture = outer((0.62, 0.60, 0.59), 1 + 0.03 * _field(rng, 25))
    picture = _blend(picture, (0.74, 0.58, 0.52), _step(_field(rng, 3.2) - rng.normal(0.5, 0.04), 0.3))
    picture = _blend(picture, (0.86, 0.85, 0.83), _step(_field(rng, 1.8) - rng.normal(1.1, 0.04), 0.25))
    picture = _blend(picture, (0.16, 0.16, 0.18), _step(_field(rng, 1.4) - rng.normal(1.2, 0.04), 0.3))
    picture = _blend(picture, (0.80, 0.78, 0.76), 0.25 * np.exp(-((_field(rng, 45) / 0.04) ** 2)))
    centre = _somewhere(flaw, 0, 95)
    if defect == "crack":
        line = _line(flaw, centre, 40 + 60 * strength, 0.3, 1.8 + 1.5 * strength)
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


def _gear(rng: Generator, flaw: Generator, defect: str, strength: float) -> Floats:
    x, y = X - 128 - rng.normal(0, 2), Y - 128 - rng.normal(0, 2)
    r, angle = np.hypot(x, y) * rng.normal(1, 0.006), np.arctan2(y, x) + rng.normal(0, 0.022)
    away = 1 - np.cos(angle - 2 * np.pi * flaw.integers(18) / 18)  # from the tooth that has the defect
    bend = (0.01 + 0.05 * strength) * np.exp(-((88 * away) ** 2)) * ((r - 86) / 16).clip(0, 1)
    edge = 95 + 8 * np.tanh(2.5 * np.cos(18 * (angle + bend if defect == "bent" else angle)))
    if defect == "chip":
        edge -= np.exp(-((88 * away) ** 2)) * np.maximum(edge - 101 + 7 * strength, 0)
    sixth = (angle + rng.normal(0, 0.005)) % (np.pi / 3) - np.pi / 6
    hole = np.hypot(r * np.cos(sixth) - 62, r * np.sin(sixth))
    solid = _step(edge - r) * _step(r - 20) * _step(hole - 11)
    relief = 0.5 * _relief(solid - 0.4 * _step(r - 36) + 0.4 * _step(r - 84), 1.3)
    turned = 0.12 * np.cos(2 * angle - rng.normal(1, 0.5)) + 0.03 * rng.standard_normal(400)[(r * 2).astype(int)]
    grain = _field(rng, 1.5)
    metal = outer((0.60, 0.62, 0.66), 1 + turned + 0.02 * grain + 0.03 * _field(rng, 20))
    if defect == "rust":
        spot = _spot(flaw, _somewhere(flaw, 40, 90), 2.5 + 5 * strength, 2)
        metal = _blend(metal, (0.50, 0.37, 0.28), spot * (0.15 + 0.4 * strength) * (1 + 0.2 * _field(flaw, 2)))
    if defect == "scratch":
        line = _line(flaw, _somewhere(flaw, 36, 84), 15 + 25 * strength, 0.03, 1 + 0.3 * strength)
        metal += (0.05 + 0.2 * strength) * (line - np.roll(line, 2, 0))
    table = outer((0.20, 0.22, 0.26), (1 - 0.5 * _shadow(solid)) * (1 + 0.05 * grain))
    return _blend(table, metal, solid) + relief * (0.3 + 0.7 * solid)


def _biscuit(rng: Generator, flaw: Generator, defect: str, strength: float) -> Floats:
    x, y = X - 128 - rng.normal(0, 1.5), Y - 128 - rng.normal(0, 1.5)
    r, angle = np.hypot(x, y) * rng.normal(1, 0.012), np.arctan2(y, x) + rng.normal(0, 0.03)
    edge = 98 + 5 * np.abs(np.cos(10 * angle)) + rng.normal(0, 1.5) * np.cos(2 * angle + rng.uniform(0, 6))
    rim = _somewhere(flaw, 103, 105)
    solid = _step(edge - r, 1)
    if defect == "bite":
        solid *= 1 - _spot(flaw, rim, 6 + 6 * strength, 1)
    dents, closed = np.zeros_like(r), flaw.integers(12)
    for number in range(18):
        ring, turn = (66, number / 6) if number < 12 else (33, number / 3 + 1 / 6)
        left, top = ring * np.cos(np.pi * turn) + rng.normal(0, 1), ring * np.sin(np.pi * turn) + rng.normal(0, 1)
        depth = rng.uniform(0.7, 1.2) * (0.4 * (1 - strength) if defect == "filled" and number == closed else 1)
        dents += depth * np.exp(-((x[:1] - left) ** 2) / 18) * np.exp(-((y[:, :1] - top) ** 2) / 18)
    fine, coarse = _field(rng, 2), _field(rng, 5)
    brown = 0.25 + 0.5 * _step(r - 98, 25) + 0.14 * _field(rng, 25) + 0.1 * coarse
    if defect == "burn":
        brown += (0.3 + 0.4 * strength) * _spot(flaw, _somewhere(flaw, 0, 80), 5 + 8 * strength, 3)
    shade = 1 - 0.6 * dents.clip(0, 1)
    dough = _blend(outer((0.90, 0.70, 0.43), shade), outer((0.55, 0.31, 0.13), shade), brown.clip(0, 1))
    if defect == "crack":
        line = _line(flaw, _somewhere(flaw, 20, 75), 20 + 25 * strength, 0.3, 1.2 + strength)
        dough = _blend(dough, (0.35, 0.20, 0.10), line * (0.3 + 0.35 * strength))
    relief = 0.4 * _relief(solid * (1 + 0.06 * fine + 0.07 * coarse - 0.5 * dents), 1) * solid
    plate = outer((0.55, 0.62, 0.68), (1 - 0.4 * _shadow(solid)) * (1 + 0.01 * fine))
    return _blend(plate, dough, solid) + relief
