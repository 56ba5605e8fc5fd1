"""Images and masks as cameras and annotation tools write them: read rightly, refused, or named."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_category, picture, save
from PIL import Image, ImageOps, PngImagePlugin

from anomaly_bench.data import readers
from anomaly_bench.data.check import look
from anomaly_bench.data.dataset import RGB, Sample, Source
from anomaly_bench.data.decoding import decode_image, decode_sample
from anomaly_bench.data.folder import folder
from anomaly_bench.data.masks import decode_mask
from anomaly_bench.errors import DataError

SPOT = np.zeros((40, 60), np.uint8)
SPOT[5:15, 10:30] = 255
SIZE = SPOT.shape


def turned(image: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """What a camera stores of an upright image, with the tag that says how."""
    ways = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image.transpose(ways[orientation]), exif


def masked(mask: Path) -> Sample:
    """A defective image of the mask's upright size, beside it."""
    save(np.zeros((*SIZE, 3), np.uint8), mask.with_name("image.png"))
    return Sample("image.png", "spot", (Source(mask.with_name("image.png")),), (Source(mask),))


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_images_and_masks_are_turned_each_by_its_own_tag(tmp_path, suffix, orientation):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[SPOT > 0] = 200
    image, exif = turned(Image.fromarray(pixels), orientation)
    image.save(tmp_path / f"image.{suffix}", exif=exif, quality=95)
    source = Source(tmp_path / f"image.{suffix}")
    found = decode_image(source, SIZE)
    assert found.facts == {"turned": orientation}
    assert np.abs(found.values.astype(int) - pixels).mean() < 3
    assert readers.source_size(source) == SIZE
    Image.fromarray(SPOT).save(tmp_path / "upright.png")
    mask, exif = turned(Image.fromarray(SPOT), orientation)
    mask.save(tmp_path / "turned.png", exif=exif)
    for name in ("upright", "turned"):
        marked = decode_mask(Sample("it", "spot", (source,), (Source(tmp_path / f"{name}.png"),)), SIZE)
        assert np.array_equal(marked.values, SPOT > 0)


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    image, exif = turned(Image.fromarray(SPOT), 6)
    plain = tmp_path / "plain.png"
    image.save(plain)
    content, chunk = plain.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    with (tmp_path / "late.png").open("wb") as file:
        file.write(content[:-12])
        PngImagePlugin.putchunk(file, b"eXIf", chunk)
        file.write(content[-12:])
    source = Source(tmp_path / "late.png")
    assert readers.source_size(source) == SIZE
    assert np.array_equal(decode_image(source, SIZE).values[..., 0], SPOT)


def test_broken_exif_is_named_and_the_pixels_are_read(tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "a.png", exif=b"Exif\0\0nothing of this kind")
    found = decode_image(Source(tmp_path / "a.png"), (48, 48))
    assert found.facts == {"exif": True}
    assert np.array_equal(found.values, picture(1))


def layers(colour: int, alpha: np.ndarray) -> Image.Image:
    pixels = np.full((*SIZE, 4), colour, np.uint8)
    pixels[..., 3] = alpha
    return Image.fromarray(pixels)


def palette(first: tuple[int, ...], second: tuple[int, ...]) -> Image.Image:
    made = Image.fromarray((SPOT > 0).astype(np.uint8)).convert("P")
    made.putdata(list((SPOT > 0).astype(np.uint8).ravel()))
    made.putpalette([*first, *second])
    return made


READ: dict[str, tuple[Callable[[], Image.Image], set[str]]] = {
    "white": (lambda: Image.fromarray(SPOT), set()),
    "label 1": (lambda: Image.fromarray((SPOT > 0).astype(np.uint8)), set()),
    "labels 1 and 2": (lambda: Image.fromarray(np.where(SPOT > 0, 1 + np.arange(60) % 2, 0).astype(np.uint8)), set()),
    "16 bits": (lambda: Image.fromarray((SPOT > 0).astype(np.uint16)), set()),
    "red": (lambda: Image.fromarray(np.dstack([SPOT, 0 * SPOT, 0 * SPOT])), set()),
    "opaque": (lambda: Image.fromarray(SPOT).convert("RGBA"), set()),
    "white layer": (lambda: layers(255, SPOT), {"mask_alpha"}),
    "black layer": (lambda: layers(0, SPOT), {"mask_alpha"}),
    "white drawn": (lambda: Image.fromarray(np.dstack([SPOT] * 4)), {"mask_alpha"}),
    "palette": (lambda: palette((0, 0, 0), (200, 0, 0)), set()),
    "smooth": (
        lambda: Image.fromarray(np.where(SPOT > 0, 4 * np.arange(20, 80), 0).clip(0, 255).astype(np.uint8)),
        {"mask_soft"},
    ),
}
REFUSED: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "labels without 0": (lambda: Image.fromarray(1 + (SPOT > 0).astype(np.uint8)), "no pixel is 0"),
    "palette on white": (lambda: palette((255, 255, 255), (0, 0, 0)), "a palette whose first colour"),
    "alpha against colour": (lambda: Image.fromarray(np.dstack([SPOT] * 3 + [np.roll(SPOT, 5, 0)])), "mark different"),
    "all transparent": (lambda: Image.fromarray(np.dstack([SPOT] * 3 + [0 * SPOT])), "transparent everywhere"),
}


@pytest.mark.parametrize("name", READ)
def test_masks_whose_meaning_is_certain(tmp_path, name):
    make, noticed = READ[name]
    make().save(tmp_path / "mask.png")
    found = decode_mask(masked(tmp_path / "mask.png"), SIZE)
    assert np.array_equal(found.values, SPOT > 0)
    assert found.facts.keys() - {"regions"} == noticed


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_may_mean_several_things_are_refused(tmp_path, name):
    make, message = REFUSED[name]
    make().save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=rf"mask\.png: .*{message}.*save it as 8-bit grey PNG"):
        decode_mask(masked(tmp_path / "mask.png"), SIZE)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_masks_are_cut_at_half(tmp_path, suffix):
    mask = tmp_path / f"mask.{suffix}"
    Image.fromarray(SPOT).convert("RGB").save(mask, quality=75)
    assert ((np.asarray(Image.open(mask)).max(axis=2) > 0) != (SPOT > 0)).any(), "a threshold at zero is wrong"
    found = decode_mask(masked(mask), SIZE)
    assert np.array_equal(found.values, SPOT > 0)
    assert found.facts == {"mask_lossy": True, "regions": 1}
    Image.fromarray((SPOT > 0).astype(np.uint8) * 20).save(mask, quality=75)
    with pytest.raises(DataError, match="its labels are lost"):
        decode_mask(masked(mask), SIZE)


def test_masks_of_several_pages_are_refused(tmp_path):
    page = Image.fromarray(SPOT)
    page.save(tmp_path / "mask.tif", save_all=True, append_images=[page.transpose(Image.Transpose.ROTATE_180)])
    with pytest.raises(DataError, match=r"mask\.tif: a mask of 2 pages; expected one"):
        decode_mask(masked(tmp_path / "mask.tif"), SIZE)


@pytest.mark.parametrize(
    ("pixels", "kind"), [(0 * SPOT, "mask_empty"), (0 * SPOT + 255, "mask_full"), (255 - SPOT, "mask_white")]
)
def test_implausible_masks_are_named(tmp_path, pixels, kind):
    save(pixels, tmp_path / "mask.png")
    assert kind in decode_mask(masked(tmp_path / "mask.png"), SIZE).facts


def test_regions_that_vanish_by_resizing_or_cropping_are_counted(tmp_path):
    marks = np.zeros(SIZE, np.uint8)
    marks[20, 20:40] = 255  # row 20 of 40 is not among the rows 1, 5, 9, ... - see nearest(40, 10)
    marks[30:38, 50:58] = 255
    marks[0:4, 0:4] = 255
    save(marks, tmp_path / "mask.png")
    sample = masked(tmp_path / "mask.png")
    assert decode_mask(sample, SIZE).facts == {"regions": 3}
    small = decode_mask(sample, (10, 15))
    assert small.facts == {"regions": 3, "lost": 1}
    assert not small.values[4:6, 5:10].any()
    assert decode_mask(sample, (10, 15), crop=(6, 15)).facts["lost"] == 2
    assert decode_mask(sample, SIZE, crop=(20, 30)).facts == {"regions": 3, "lost": 2}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [10, 12])
def test_bits_of_a_camera_in_16(tmp_path, suffix, bits):
    grey = picture(3)[..., 0]
    most = 2**bits - 1
    wide = np.rint(grey * (most / 255)).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
    source = Source(tmp_path / f"a.{suffix}")
    dark = decode_image(source, (48, 48))
    assert dark.facts == {"highest": wide.max()}
    assert dark.values.max() < 16
    assert np.array_equal(decode_image(source, (48, 48), bits=bits).values[..., 0], grey)
    with pytest.raises(DataError, match=r"expected 0 to 511 of 9 bits: raise input.bits"):
        decode_image(source, (48, 48), bits=9)


def test_16_bit_colour_of_few_bits_is_named_and_not_scaled(tmp_path):
    values = (16 * picture(3).astype(int)).astype(">u2").reshape(48, -1).view(np.uint8)
    rows = np.pad(values, ((0, 0), (1, 0)))  # each row begins with its filter
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">2I5B", 48, 48, 16, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows.tobytes()))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    source = Source(tmp_path / "a.png")
    assert decode_image(source, (48, 48)).facts["highest"] <= 4095
    with pytest.raises(DataError, match="16 bits a colour; expected 16-bit grey"):
        decode_image(source, (48, 48), bits=12)


def test_32_bit_values_beyond_16_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="values from 70000 to 70000; expected 0 to 65535"):
        decode_image(Source(tmp_path / "a.tif"), (8, 8))


def test_16_bits_take_little_memory(tmp_path):
    Image.fromarray(np.full((3000, 2000), 3000, np.uint16)).save(tmp_path / "a.png")
    tracemalloc.start()  # of NumPy; Pillow holds 2 bytes a pixel besides
    decode_image(Source(tmp_path / "a.png"), (256, 256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 6_000_000


def test_the_limit_of_pixels_is_a_key(tmp_path):
    save(np.zeros((300, 400), np.uint8), tmp_path / "a.png")
    try:
        readers.limit_pixels(0.1)
        with pytest.raises(
            DataError, match=r"a\.png: .*120000 pixels\), more than max_megapixels=0\.1; .*raise that key"
        ):
            decode_image(Source(tmp_path / "a.png"), (32, 32))
        readers.limit_pixels(0.2)
        decode_image(Source(tmp_path / "a.png"), (32, 32))
    finally:
        readers.limit_pixels(179)


def test_images_of_one_colour_of_several_pages_and_with_transparency_are_named(tmp_path):
    page = Image.fromarray(picture(1))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    layers(90, SPOT).save(tmp_path / "layer.png")
    facts = {}
    for name in ("pages.tif", "layer.png"):
        facts |= decode_sample(Sample("it", None, (Source(tmp_path / name),)), (RGB,), (32, 32)).facts
    assert (facts["pages"], facts["transparent"], facts["blank"]) == (2, True, True)


def files_of(tree: Path) -> dict[str, tuple[str, ...]]:
    """What `data check` notices of the category cog: kind -> files."""
    dataset = folder("x", None, tree)
    return {each.kind: each.files for each in look(dataset, dataset.task("cog"), 1)}


def test_nothing_is_noticed_of_plain_files(tree, empty_cache):
    assert files_of(tree) == {}


def test_what_is_left_out_is_named(tree, empty_cache):
    cog = tree / "cog"
    for name in ("train/good/cam2/000.png", "test/000.png", "train/bad/000.png", "validation/good/000.png"):
        save(picture(7), cog / name)
    (cog / "test/good/photo.heic").write_bytes(b"")
    (cog / "licence.txt").write_text("free")
    found = files_of(tree)
    assert found == {
        "left_out": ("test/000.png", "train/bad/000.png", "train/good/cam2/000.png", "validation/good/000.png"),
        "unknown": ("test/good/photo.heic",),
    }


def test_leaks_are_named_by_bytes_and_by_pixels(tree, empty_cache):
    cog = tree / "cog"
    shutil.copy(cog / "train/good/001.png", cog / "test/good/000.png")
    Image.open(cog / "train/good/002.png").save(cog / "test/good/001.bmp")
    (cog / "test/good/001.png").unlink()
    found = files_of(tree)
    assert found == {
        "leaked": ("test/good/000.png = train/good/001.png",),
        "leaked_pixels": ("test/good/001.bmp = train/good/002.png",),
    }


@pytest.mark.parametrize("name", ["ok", "Good", "OK", "normal"])
def test_normal_images_in_a_folder_of_another_name(tree, empty_cache, name):
    (tree / "cog/test/good").rename(tree / "cog/test" / name)
    task = folder("x", None, tree).task("cog")
    assert [image.label for image in task.tests["test"]].count(None) == 3
    assert {each.kind: len(each.files) for each in task.findings} == {"normal_folder": 3}
    shutil.rmtree(tree / "cog/test" / name)
    assert [each.kind for each in folder("x", None, tree).task("cog").findings] == ["no_normal"]


def test_dark_images_of_16_bits_are_named(tree, empty_cache):
    for path in (tree / "cog").rglob("*.png"):
        if "ground_truth" not in path.parts:
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
            Image.fromarray(grey * 16).save(path)
    dataset = folder("x", None, tree)
    (found,) = look(dataset, dataset.task("cog"), 1)
    assert (found.kind, found.detail, len(found.files)) == ("dark", "12", 12)


def masks_of(tree: Path) -> list[list[str]]:
    return [
        [mask.path.relative_to(tree / "cog").as_posix() for mask in image.masks]
        for image in folder("x", None, tree).task("cog").tests["test"]
        if image.label
    ]


@pytest.mark.parametrize("name", ["masks", "Ground_Truth"])
def test_other_names_of_the_folder_of_masks(tree, name):
    (tree / "cog/ground_truth").rename(tree / "cog" / name)
    assert masks_of(tree) == [[f"{name}/spot/{number:03}_mask.png"] for number in range(3)]


def test_folder_of_masks_for_each_image(tree, empty_cache):
    truth = tree / "cog/ground_truth/spot"
    for path in list(truth.iterdir()):
        mask = np.asarray(Image.open(path))
        for number, half in enumerate((slice(None, 26), slice(26, None))):
            part = np.zeros_like(mask)
            part[:, half] = mask[:, half]
            save(part, truth / path.stem.removesuffix("_mask") / f"{number:03}.png")
        path.unlink()
    assert masks_of(tree)[0] == ["ground_truth/spot/000/000.png", "ground_truth/spot/000/001.png"]
    image = folder("x", None, tree).task("cog").tests["test"][-1]
    assert decode_mask(image, (48, 48)).values.sum() == 144
    assert files_of(tree) == {}


def test_suffixes_in_upper_case_and_images_called_mask(tree):
    cog = tree / "cog"
    for number in range(3):
        (cog / f"test/spot/{number:03}.png").rename(cog / f"test/spot/n{number}_mask.PNG")
        (cog / f"ground_truth/spot/{number:03}_mask.png").rename(cog / f"ground_truth/spot/n{number}_mask_MASK.PNG")
    assert masks_of(tree) == [[f"ground_truth/spot/n{number}_mask_MASK.PNG"] for number in range(3)]
    for number in range(3):
        (cog / f"ground_truth/spot/n{number}_mask_MASK.PNG").rename(cog / f"ground_truth/spot/n{number}_mask.png")
    assert masks_of(tree) == [[f"ground_truth/spot/n{number}_mask.png"] for number in range(3)]


def test_two_masks_for_one_image_are_refused(tree):
    truth = tree / "cog/ground_truth/spot"
    shutil.copy(truth / "000_mask.png", truth / "000.png")
    with pytest.raises(DataError, match=r"2 masks for image 000: .*000_mask\.png, .*000\.png; keep one"):
        masks_of(tree)


def test_exif_of_jpegs_is_as_pillow_turns_it(tmp_path):
    image, exif = turned(Image.fromarray(picture(2)), 8)
    image.save(tmp_path / "a.jpg", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(decode_image(Source(tmp_path / "a.jpg"), (48, 48)).values, np.asarray(expected))


def test_a_run_says_and_records_what_it_noticed(command, tmp_path, empty_cache):
    cog = make_category(tmp_path / "data/cog", side=96)
    speck = np.zeros((96, 96), np.uint8)
    speck[33, 33] = speck[60:80, 60:80] = 255
    save(speck, cog / "ground_truth/spot/000_mask.png")
    shutil.copy(cog / "train/good/001.png", cog / "test/good/000.png")
    where = ("dataset=folder", f"data_root={tmp_path / 'data'}", f"results={tmp_path / 'r'}")
    status, _, err = command(
        *where, *["input.resize=32", "speed=false", "gallery=0", "threads=1", "method.dimensions=5"]
    )
    assert status == 0, err
    leak = "test images that are training images too, byte for byte (1): test/good/000.png = train/good/001.png"
    assert f"warning: cog: {leak}\n" in err
    assert "by resizing or cropping, 1 of 4 regions (1): test/spot/000.png (1)" in err
    (path,) = (tmp_path / "r/records").rglob("*.json")
    record = json.loads(path.read_text())
    assert (record["counts"]["regions"], record["counts"]["lost_regions"]) == (4, 1)
    assert record["findings"]["lost"] == ["test/spot/000.png (1)"]
    status, out, _ = command("tables", f"results={tmp_path / 'r'}")
    assert "1 of 4 defect regions have no pixel left after resizing and cropping the masks" in " ".join(out.split())
