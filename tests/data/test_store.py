"""The store of decoded images: every PIL format, decoded once, no damaged or stale pixels."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture, save
from filelock import FileLock
from PIL import Image as PILImage

from anomaly_bench import cache
from anomaly_bench.config.settings import FILTERS
from anomaly_bench.data import decoding, store
from anomaly_bench.data.dataset import Sample, Source, Task
from anomaly_bench.data.remembered import content_hash, file_digests, reading_anew
from anomaly_bench.errors import DataError


def load(paths, size=(32, 32), advance=lambda done: None, filter="bilinear"):
    digests = file_digests(paths, paths[0].parent)
    images = tuple(Sample(path.name, None, (Source(path),)) for path in paths)
    hashes = [content_hash(image.sources, digests) for image in images]
    wanted = store.wanted_images(Task("task", None, images, {}), images, hashes, size, filter, "test", 2)
    return wanted.load(advance).values


@pytest.fixture
def paths(tmp_path, empty_cache):
    made = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(made):
        save(picture(number), path)
    return made


def stored_files(cache):
    return sorted((cache / "store").rglob("*.npy"))


def test_pixels_are_pils_bilinear(paths, empty_cache):
    done = []
    array = load(paths, (32, 40), done.append)
    assert array.shape == (5, 32, 40, 3)
    assert sum(done) == 5
    expected = np.asarray(PILImage.open(paths[3]).resize((40, 32), PILImage.Resampling.BILINEAR))
    assert np.array_equal(array[3], expected)
    assert not array.flags.writeable


def kernel(name, x):
    """Pillow's documented kernels at distances of output pixels."""
    x = np.abs(x)
    if name == "bilinear":
        return np.maximum(1 - x, 0)
    if name == "lanczos":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def weights(name, n, m):
    """(m, n): what each of n pixels of a row contributes to each of m; written from the definitions in decoding.py."""
    ratio, made = n / m, np.zeros((m, n))
    for x in range(m):
        centre = (x + 0.5) * ratio
        if name == "nearest":
            made[x, int(centre)] = 1
        elif name == "area":
            made[x] = [max(0, min((x + 1) * ratio, i + 1) - max(x * ratio, i)) for i in range(n)]
        elif name == "bilinear_no_antialias":
            left = int(np.floor(centre - 0.5))
            for i, weight in ((left, left + 1 - (centre - 0.5)), (left + 1, centre - 0.5 - left)):
                made[x, min(max(i, 0), n - 1)] += weight
        else:
            made[x] = kernel(name, (np.arange(n) + 0.5 - centre) / max(ratio, 1))
    return made / made.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(14, 20), (32, 40), (96, 50), (76, 48)])
@pytest.mark.parametrize("filter", FILTERS)
def test_each_filter_is_as_defined(filter, size):
    """Noise, made smaller, larger and both, against one weighted sum per pixel; of 8 bits and of floats."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 63, 3)).astype(np.uint8)
    rows, columns = weights(filter, 45, size[0]), weights(filter, 63, size[1])
    across = np.einsum("yj,ijc->iyc", columns, pixels.astype(float))
    expected = np.einsum("xi,iyc->xyc", rows, np.rint(across.clip(0, 255)) if filter in decoding.PILLOW else across)
    found = decoding.resize(PILImage.fromarray(pixels), size, filter)
    assert found.dtype == np.uint8
    assert np.abs(found - expected.clip(0, 255)).max() <= 0.55 + (
        filter in decoding.PILLOW
    )  # its middle is rounded too
    floats = decoding.resize(PILImage.fromarray(pixels[..., 0].astype(np.float32) / 7), size, filter)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, rows @ across[..., 0] / 7, atol=1e-4)


@pytest.mark.parametrize("filter", FILTERS)
def test_at_their_own_size_pixels_stay_as_they_are(filter):
    assert np.array_equal(decoding.resize(PILImage.fromarray(picture(3)), (48, 48), filter), picture(3))


def test_filters_have_files_of_their_own(paths, empty_cache):
    made = {filter: np.array(load(paths, filter=filter)) for filter in FILTERS}
    assert len(stored_files(empty_cache)) == len(FILTERS)
    assert len({array.tobytes() for array in made.values()}) == len(FILTERS)
    assert all(np.array_equal(load(paths, filter=filter), array) for filter, array in made.items())


def test_second_call_decodes_nothing(paths, empty_cache, monkeypatch):
    first = np.array(load(paths))
    monkeypatch.setattr(decoding, "decode_image", None)
    assert np.array_equal(load(paths), first)
    assert len(stored_files(empty_cache)) == 1


def test_changed_file_is_decoded_again(paths, empty_cache):
    before = np.array(load(paths))
    save(picture(77), paths[2])
    os.utime(paths[2], ns=(1, 1))
    after = load(paths)
    assert not np.array_equal(after[2], before[2])
    assert np.array_equal(after[1], before[1])


def test_damaged_store_is_rebuilt(paths, empty_cache, caplog):
    before = np.array(load(paths))
    (file,) = stored_files(empty_cache)
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    assert np.array_equal(load(paths), before)
    assert "damaged" in caplog.text
    file.write_bytes(bytes(content[:100]))
    assert np.array_equal(load(paths), before)


def test_concurrent_calls_write_one_file(paths, empty_cache):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load(paths), range(2))
    assert np.array_equal(first, second)
    assert len(stored_files(empty_cache)) == 1


@pytest.mark.parametrize("works", [True, False])
def test_a_process_that_works_is_waited_for_but_none_that_stands_still(paths, empty_cache, monkeypatch, works):
    monkeypatch.setattr(cache, "STANDSTILL", 0.2)
    expected = load(paths)
    (lock,) = (empty_cache / "store").rglob(".*.lock")
    (file,) = stored_files(empty_cache)
    unfinished = lock.with_name(f".tmp-{lock.stem[1:]}-x")
    file.rename(unfinished)
    held, over = threading.Event(), threading.Event()

    def other():
        with FileLock(lock):
            held.set()
            for _ in range(10):
                if over.wait(0.1):
                    return
                with unfinished.open("ab") as written:
                    written.write(bytes(works))
            unfinished.replace(file)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        held.wait()
        made = []
        found = load(paths, advance=made.append)
        assert np.array_equal(found, expected)
        over.set()
        done.result()
    assert made == ([5] if works else [1] * 5)


def test_unwritable_cache_only_costs_time(paths, tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file-not-folder"
    blocked.write_text("")
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(blocked))
    assert load(paths).shape == (5, 32, 32, 3)
    assert "stay in memory" in caplog.text


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_every_mode_becomes_eight_bit_rgb(tmp_path, empty_cache, mode):
    grey = np.linspace(0, 255, 48 * 48).reshape(48, 48).astype(np.uint8)
    if mode == "I;16":
        image = PILImage.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = PILImage.fromarray(grey).convert("RGB" if mode in ("CMYK", "RGBA") else "L").convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    found = load([path], (48, 48))[0]
    assert found.shape == (48, 48, 3)
    expected = np.asarray(image.convert("L")) if mode == "1" else grey  # dithered
    assert np.abs(found.astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "webp", "tif", "gif"])
def test_any_suffix(tmp_path, empty_cache, suffix):
    path = tmp_path / f"image.{suffix}"
    save(picture(1), path)
    assert load([path]).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_file_that_is_not_an_image_is_named(paths, content):
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"1\.png: cannot be decoded"):
        load(paths)


def mask_of(tmp_path, mask, image_size=(48, 48)):
    save(np.zeros((*image_size, 3), np.uint8), tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    normal = Sample("image.png", None, (Source(tmp_path / "image.png"),))
    defective = replace(normal, label="spot", masks=(Source(tmp_path / "mask.png"),))
    return store.wanted_masks([defective, normal], ["a", "b"], (24, 24), None, "test", 1).load().values


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16"])
def test_masks_are_zero_and_one_by_nearest_neighbour(tmp_path, empty_cache, mode):
    values = np.zeros((48, 48), np.uint8)
    values[10:30, 20:40] = 255
    mask = PILImage.fromarray(values.astype(np.uint16)) if mode == "I;16" else PILImage.fromarray(values).convert(mode)
    found = mask_of(tmp_path, mask)
    expected = np.zeros((24, 24), np.uint8)
    expected[5:15, 10:20] = 1
    if mode == "I;16":  # 255 of 65535 is not zero
        assert found[0].max() == 1
    assert np.array_equal(found[0], expected)
    assert found[1].max() == 0


def test_mask_of_another_size_is_an_error(tmp_path, empty_cache):
    with pytest.raises(DataError, match=r"mask\.png: 20x30 pixels.*48x48.*same size"):
        mask_of(tmp_path, PILImage.new("L", (20, 30)))


def test_a_changed_file_of_equal_size_and_time_is_read_again(tmp_path, empty_cache):
    path = tmp_path / "image.bmp"

    def written(content, replaced=False):
        (path.with_suffix(".new") if replaced else path).write_bytes(content)
        if replaced:
            os.utime(path.with_suffix(".new"), (1_700_000_000, 1_700_000_000))
            path.with_suffix(".new").replace(path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        return file_digests([path], tmp_path)[path]

    for content in (b"first", b"other", b"again"):
        assert written(content) == (5, hashlib.sha256(content).hexdigest())
    assert written(b"moved", replaced=True)[1] == hashlib.sha256(b"moved").hexdigest()


def test_what_is_remembered_can_be_read_anew(tmp_path, empty_cache):
    path = tmp_path / "image.bmp"
    path.write_bytes(b"first")
    before = file_digests([path], tmp_path)
    (memory,) = (empty_cache / "digests").iterdir()
    memory.write_text(memory.read_text().replace(before[path][1], "0" * 64))
    assert file_digests([path], tmp_path)[path][1] == "0" * 64, "or the test shows nothing"
    with reading_anew():
        assert file_digests([path], tmp_path) == before
    assert file_digests([path], tmp_path) == before
