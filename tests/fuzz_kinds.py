"""Kinds of files that datasets of others have, each with what has to come of it; used by `fuzz.py`.

Each function changes the category of a `Tree` and returns what is `Expected`: the same metrics as before, a line that
says what was noticed, or a refusal.
"""

from __future__ import annotations

import csv
import io
import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

STORED = {  # orientation -> how the upright image is turned before it is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATION = 0x0112


class Expected(NamedTuple):
    """What has to come of a change: words on the screen; the same metrics; or no record."""

    said: str = ""
    same: bool = False
    refused: bool = False


SAME = Expected(same=True)


class Tree:
    """A category whose files are changed, each at most once."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng, self.folder = rng, folder
        self.taken: set[Path] = set()

    def pick(self, *patterns: str) -> Path:
        """A PNG file that was not picked before."""
        found = sorted({path for pattern in patterns for path in self.folder.glob(pattern)} - self.taken)
        path = self.rng.choice(found)
        self.taken.add(path)
        return path

    def image(self) -> Path:
        return self.pick("train/*/*.png", "test/*/*.png")

    def mask(self) -> Path:
        return self.pick("ground_truth/spot/*_mask.png")


Kind = Callable[[Tree], Expected]


def values(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def replace(path: Path, image: Image.Image | np.ndarray, suffix: str = "", **how: object) -> None:
    """Write another image in place of a file, perhaps with another suffix."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    path.unlink()
    picture.save(path.with_suffix(suffix) if suffix else path, **how)  # type: ignore[arg-type]


def palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    picture.putpalette(colours)
    return picture


# as before


def turned(tree: Tree) -> Expected:
    path = tree.pick("*/*/*.png")
    orientation = tree.rng.choice(list(STORED))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    suffix, how = tree.rng.choice([(".png", {}), (".tif", {}), (".webp", {"lossless": True})])
    replace(path, Image.fromarray(values(path)).transpose(STORED[orientation]), suffix, exif=exif, **how)
    lossy = suffix == ".webp" and "ground_truth" in path.parts
    return Expected("lossy" if lossy else "turned upright", same=True)


def another_format(tree: Tree) -> Expected:
    path = tree.image()
    suffix = tree.rng.choice([".bmp", ".tif", ".tga", ".ppm", ".webp", ".TIFF", ".PNG"])
    replace(path, values(path), suffix, **({"lossless": True} if suffix == ".webp" else {}))
    return SAME


def mask_values(tree: Tree) -> Expected:
    path = tree.mask()
    defect = values(path) > 0
    kinds = [
        defect.astype(np.uint8) * tree.rng.choice([1, 2, 255]),
        defect.astype(np.uint16) * tree.rng.choice([1, 300, 65535]),
        np.stack([defect * 255, defect * 0, defect * tree.rng.choice([0, 9])], axis=-1).astype(np.uint8),
        defect,
    ]
    replace(path, tree.rng.choice(kinds))
    return SAME


def mask_palette(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, palette(values(path) > 0, [0, 0, 0, 200, 0, 0, 0, 0, 200]))
    return SAME


def mask_alpha(tree: Tree) -> Expected:
    path = tree.mask()
    layered = np.zeros((*values(path).shape, 4), np.uint8)
    layered[..., :3] = tree.rng.choice([(255, 255, 255), (0, 0, 0), (255, 0, 0)])
    layered[..., 3] = values(path)
    replace(path, layered)
    return Expected("alpha channel", same=True)


def mask_jpeg(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, values(path), ".jpg", quality=tree.rng.choice([75, 90, 95]))
    return Expected("lossy", same=True)


def mask_folder(tree: Tree) -> Expected:
    path = tree.mask()
    left, right = values(path).copy(), values(path).copy()
    left[:, :26], right[:, 26:] = 0, 0
    path.unlink()
    folder = path.with_name(path.stem.removesuffix("_mask"))
    folder.mkdir()
    for number, part in enumerate((left, right)):
        Image.fromarray(part).save(folder / f"{number:03}.png")
    return SAME


def mask_name(tree: Tree) -> Expected:
    path = tree.mask()
    stem = path.stem.removesuffix("_mask")
    path.rename(path.with_name(stem + tree.rng.choice([".png", "_MASK.PNG", "_Mask.png", ".PNG"])))
    return SAME


def unicode_name(tree: Tree) -> Expected:
    mask = tree.mask()
    stem = mask.stem.removesuffix("_mask")
    image = next(tree.folder.glob(f"test/spot/{stem}.*"))
    one, two = tree.rng.sample(["NFC", "NFD"], 2)
    name = tree.rng.choice(["Größe é", "i\u0307ö", "ü_mask", "한글"])
    image.rename(image.with_name(unicodedata.normalize(one, name) + image.suffix))
    mask.rename(mask.with_name(unicodedata.normalize(two, name) + "_mask.png"))
    tree.taken |= set(tree.folder.glob("test/spot/*"))
    return SAME


def empty_masks_of_good(tree: Tree) -> Expected:
    for path in tree.folder.glob("test/good/*"):
        target = tree.folder / "ground_truth" / "good" / f"{path.stem}_mask.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(target)
    return SAME


def truth_name(tree: Tree) -> Expected:
    (tree.folder / "ground_truth").rename(tree.folder / tree.rng.choice(["masks", "Ground_Truth", "gt", "MASK"]))
    return SAME


def normal_name(tree: Tree) -> Expected:
    folder = tree.folder / tree.rng.choice(["train", "test"]) / "good"
    folder.rename(folder.with_name(tree.rng.choice(["ok", "OK", "Good", "normal"])))
    return Expected("read as normal", same=True)


# said


def in_a_subfolder(tree: Tree) -> Expected:
    path = tree.image()
    (path.parent / "camera").mkdir()
    shelf = path.parent / "camera" / path.name
    path.rename(shelf)
    for mask in tree.folder.glob(f"ground_truth/{path.parent.name}/{path.stem}_mask.png"):
        mask.unlink()
    return Expected(f"left out (1): {shelf.relative_to(tree.folder).as_posix()}")


def of_an_unknown_format(tree: Tree) -> Expected:
    path = tree.image()
    path.with_suffix(tree.rng.choice([".heic", ".dng", ".png_", ""])).write_bytes(path.read_bytes())
    return Expected("files of no known image format")


def beside(tree: Tree) -> Expected:
    path = tree.image()
    target = tree.folder / tree.rng.choice(["test", "train", "ground_truth", ".", "..", "extra", "../extra"])
    target.mkdir(exist_ok=True)
    (target / "stray.png").write_bytes(path.read_bytes())
    return Expected("left out")


def leaked(tree: Tree) -> Expected:
    path, pixels = tree.pick("train/*/*.png"), tree.rng.random() < 0.5
    target = tree.folder / "test" / "good" / ("999.bmp" if pixels else "999.png")
    Image.fromarray(values(path)).save(target) if pixels else target.write_bytes(path.read_bytes())
    return Expected("with the pixels of a training image" if pixels else "byte for byte")


def blank(tree: Tree) -> Expected:
    path = tree.image()
    replace(path, np.full((32, 32, 3), tree.rng.randrange(256), np.uint8))
    return Expected("images of one colour")


def few_bits(tree: Tree) -> Expected:
    bits = tree.rng.choice([10, 12, 14])
    for path in [*tree.folder.glob("train/*/*.png"), *tree.folder.glob("test/*/*.png")]:
        grey = np.asarray(Image.fromarray(values(path)).convert("L")).astype(np.uint16)
        grey[0, 0] = 255
        replace(path, grey * 2 ** (bits - 8), tree.rng.choice([".png", ".tif"]))
    return Expected(f"of which only {bits} are used")


def transparent(tree: Tree) -> Expected:
    path = tree.image()
    layer = np.full((32, 32, 1), 255, np.uint8)
    layer[3, 4] = tree.rng.choice([0, 100, 254])
    replace(path, np.concatenate([values(path), layer], axis=-1))
    return Expected("images with transparent pixels")


def pages(tree: Tree) -> Expected:
    path = tree.image()
    first, second = Image.fromarray(values(path)), Image.fromarray(255 - values(path))
    replace(path, first, tree.rng.choice([".png", ".tif", ".gif"]), save_all=True, append_images=[second])
    return Expected("images of several pages")


def mask_white(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, 255 - values(path))
    return Expected("is it the ground that is white?")


def mask_empty(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, 0 * values(path))
    return Expected("defective images with an empty mask")


def mask_full(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, 0 * values(path) + 255)
    return Expected("masks that mark the whole image")


def mask_soft(tree: Tree) -> Expected:
    path = tree.mask()
    soft = values(path).copy()
    soft[tree.rng.randrange(32), tree.rng.randrange(32)] = tree.rng.randrange(1, 128)
    replace(path, soft)
    return Expected("levels on both sides of half of white")


def region_lost(tree: Tree) -> Expected:
    mask = tree.mask()
    image = tree.folder / "test" / "spot" / mask.name.replace("_mask", "")
    replace(image, Image.fromarray(values(image)).resize((128, 128)))
    large = np.asarray(Image.fromarray(values(mask)).resize((128, 128), Image.Resampling.NEAREST)).copy()
    large[1, 4 * tree.rng.randrange(30) + 1] = 255
    replace(mask, large)
    return Expected("regions that vanish by resizing or cropping, 1 of 3")


def no_normal(tree: Tree) -> Expected:
    for path in (tree.folder / "test" / "good").iterdir():
        path.unlink()
    return Expected("no normal one (test/good)")


def broken_exif(tree: Tree) -> Expected:
    path = tree.image()
    replace(path, values(path), exif=b"Exif\x00\x00" + tree.rng.randbytes(20))
    return Expected("EXIF cannot be read")


# refused


def mask_pages(tree: Tree) -> Expected:
    path = tree.mask()
    picture = Image.fromarray(values(path))
    replace(path, picture, ".tif", save_all=True, append_images=[picture])
    return Expected("a mask of 2 pages", refused=True)


def mask_palette_of_white(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, palette(values(path) > 0, [255, 255, 255, *tree.rng.choice([(0, 0, 0), (200, 0, 0)])]))
    return Expected("a palette whose first colour is not black", refused=True)


def two_masks(tree: Tree) -> Expected:
    path = tree.mask()
    other = tree.rng.choice([path.with_suffix(".bmp"), path.with_name(path.name.replace("_mask", ""))])
    Image.fromarray(values(path)).save(other)
    return Expected("2 masks for image", refused=True)


def mask_labels_jpeg(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, (values(path) > 0).astype(np.uint8) * tree.rng.choice([20, 60, 100]), ".jpg")
    return Expected("its labels are lost", refused=True)


def mask_size(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, np.zeros(tree.rng.choice([(32, 31), (64, 64), (1, 1), (16, 64)]), np.uint8))
    return Expected("expected the same size", refused=True)


def mask_without_zero(tree: Tree) -> Expected:
    path = tree.mask()
    replace(path, (values(path) > 0).astype(np.uint8) + 1)
    return Expected("no pixel is 0", refused=True)


def mask_missing(tree: Tree) -> Expected:
    tree.mask().unlink()
    return Expected("defective images have no mask", refused=True)


def mask_alone(tree: Tree) -> Expected:
    path = tree.mask()
    Image.fromarray(values(path)).save(path.with_name("7_mask.png"))
    return Expected("masks without an image", refused=True)


def mask_contradiction(tree: Tree) -> Expected:
    path = tree.mask()
    drawn = np.repeat(values(path)[..., None], 4, axis=-1)
    drawn[..., 3] = np.roll(drawn[..., 3], 5, axis=tree.rng.randrange(2))
    replace(path, drawn)
    return Expected("mark different pixels", refused=True)


def floats(tree: Tree) -> Expected:
    path = tree.image()
    grey = values(path).astype(np.float32).mean(axis=-1)
    replace(path, (grey / 255).astype(np.float32), ".tif")
    return Expected("32-bit float pixels", refused=True)


def wide_integers(tree: Tree) -> Expected:
    path = tree.image()
    replace(path, values(path).astype(np.int32).mean(axis=-1).astype(np.int32) * 10_000, ".tif")
    return Expected("expected 0 to 65535", refused=True)


def two_forms(tree: Tree) -> Expected:
    path = tree.pick("train/good/*.png")
    for form in ("NFC", "NFD"):
        (path.with_name(unicodedata.normalize(form, "é.png"))).write_bytes(path.read_bytes())
    return Expected("second Unicode form", refused=True)


AS_BEFORE: list[Kind] = [  # may be combined, in this order
    *(turned, turned, another_format, mask_values, mask_palette, mask_alpha, mask_jpeg, mask_folder, mask_name),
    *(unicode_name, empty_masks_of_good, truth_name, normal_name),
]
NOTICED: list[Kind] = [
    *(in_a_subfolder, of_an_unknown_format, beside, leaked, blank, few_bits, transparent, pages, mask_white),
    *(mask_empty, mask_full, mask_soft, region_lost, no_normal, broken_exif),
]
REFUSED: list[Kind] = [
    *(mask_pages, mask_palette_of_white, two_masks, mask_labels_jpeg, mask_size, mask_without_zero, mask_missing),
    *(mask_alone, mask_contradiction, floats, wide_integers, two_forms),
]
SCORED: list[Kind] = [turned, another_format, of_an_unknown_format, blank, transparent, pages, broken_exif]


def same_size(rng: random.Random, folder: Path) -> None:
    """Other pixels in a file of the same size and modification time."""
    path = rng.choice(sorted(folder.glob("train/*/*.png")))
    before = path.stat()
    path.write_bytes(rng.choice(sorted(folder.glob("test/*/*.png"))).read_bytes())
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Dialect(NamedTuple):
    """How a program may write a CSV; `plain`: in a way that has to be read."""

    separator: str
    decimal: str
    encoding: str
    quoting: int
    end: str
    case: Callable[[str], str]
    places: int
    slash: str

    @property
    def plain(self) -> bool:
        return self.decimal == "." or self.places != 3


def dialect(rng: random.Random) -> Dialect:
    return Dialect(
        rng.choice([",", ";", "\t"]),
        rng.choice([".", ".", ","]),
        rng.choice(["utf-8", "utf-8-sig", "utf-16"]),
        rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        rng.choice(["\n", "\r\n"]),
        rng.choice([str, str.upper, str.title]),
        rng.choice([2, 3, 6]),
        rng.choice(["/", "\\"]),
    )


def write_table(path: Path, how: Dialect, header: list[str], rows: list[list[str | float]]) -> None:
    """Rows of texts and numbers, written as `how` says."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=how.separator, quoting=how.quoting, lineterminator=how.end)  # type: ignore[arg-type]
    writer.writerow([how.case(name) for name in header])

    def told(cell: str | float) -> str:
        number = isinstance(cell, float)
        return f"{cell:.{how.places}f}".replace(".", how.decimal) if number else str(cell).replace("/", how.slash)

    writer.writerows([told(cell) for cell in row] for row in rows)
    path.write_bytes(text.getvalue().encode(how.encoding))
