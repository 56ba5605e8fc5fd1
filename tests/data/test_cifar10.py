"""CIFAR-10 in each of its formats, its one-class protocols, and a pickle that would run code."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import save

from anomaly_bench.data.cifar10 import cifar10
from anomaly_bench.data.cifar10_batches import CLASSES
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.readers import read_member, read_source
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS

JPEG_COPY = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg.zip"
LABELS = np.repeat(np.arange(10), 10).astype(np.uint8)  # ten images of each class in each batch
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 100, 3, 32, 32), dtype=np.uint8)  # a training, a test batch


def write_binary(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, pixels in zip(("data_batch_1", "test_batch"), PIXELS, strict=True):
        np.concatenate([LABELS[:, None], pixels.reshape(100, -1)], axis=1).tofile(folder / f"{name}.bin")


def write_pickles(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name, pixels in zip(("data_batch_1", "test_batch"), PIXELS, strict=True):
        batch = {b"labels": LABELS.tolist(), b"data": pixels.reshape(100, -1)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_folders(root, suffix=".png"):
    for split, pixels in zip(("train", "test"), PIXELS, strict=True):
        for number, (label, image) in enumerate(zip(LABELS, pixels, strict=True)):
            save(image.transpose(1, 2, 0), root / split / CLASSES[label] / f"{number:03}{suffix}")


def write_zip(root):
    write_folders(root / "tree")
    with zipfile.ZipFile(root / "cifar.zip", "w") as archive:
        for path in (root / "tree").rglob("*.png"):
            archive.write(path, Path("cifar10", path.relative_to(root / "tree")))
    return root / "cifar.zip"


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_members_of_a_zip_archive(kind, tmp_path):
    """Also behind other bytes, and with a damaged one, which is named."""
    path, texts = tmp_path / "some.zip", {"a/one.png": b"one" * 900, "two.png": b"", "ü.png": bytes(range(256))}
    path.write_bytes(b"before")
    with zipfile.ZipFile(path, "a", kind) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    assert {name: read_member(path, 0, name) for name in texts} == texts
    content = path.read_bytes()
    at = content.index(b"a/one.png") + len(b"a/one.png") + 3
    path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    with pytest.raises(DataError, match=r"some.zip\[a/one.png\]: cannot be decoded"):
        read_source(Source(path, "a/one.png"))


def opened(root, protocol="A", draw=0):
    return cifar10("cifar10", "CIFAR-10", protocol, draw, root)


@pytest.mark.parametrize("write", [write_binary, write_pickles, write_folders, write_zip])
def test_every_format_gives_the_same_images(write, tmp_path):
    dataset = opened(write(tmp_path) or tmp_path)
    for check in DATASET_CHECKS:
        check(dataset)
    assert (dataset.name, dataset.title, dataset.available) == ("cifar10", "CIFAR-10", list(CLASSES))
    task = dataset.task("cat")
    assert np.array_equal([read_source(image.sources[0]) for image in task.fit], PIXELS[0, 30:40].transpose(0, 2, 3, 1))
    tested = task.tests["test"]
    assert [image.label for image in tested] == [None if CLASSES[n] == "cat" else CLASSES[n] for n in LABELS]
    assert np.array_equal([read_source(image.sources[0]) for image in tested], PIXELS[1].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("protocol", "fit", "validation", "good", "defects"),
    [("A", 10, 0, 10, 90), ("B", 16, 0, 4, 180), ("C", 144, 0, 36, 20), ("D", 9, 1, 10, 10)],
)
def test_protocols(protocol, fit, validation, good, defects, tmp_path):
    write_binary(tmp_path)
    dataset = opened(tmp_path, protocol)
    task = dataset.task("frog")
    tested = task.tests["test"]
    counts = [len(task.fit), len(task.validation), sum(image.label is None for image in tested)]
    assert [*counts, sum(image.label is not None for image in tested)] == [fit, validation, good, defects]
    kinds = {image.label for image in tested if image.label}
    assert kinds == {"frog"} if protocol == "C" else kinds <= {*CLASSES} - {"frog"}
    assert not {image.id for image in (*task.fit, *task.validation)} & {image.id for image in tested}
    assert (dataset.name == "cifar10") == (protocol == "A")
    again, other = (opened(tmp_path, protocol, draw).task("frog") for draw in (0, 1))
    assert again == task
    assert (other == task) == (protocol == "A")


def test_jpeg_copy_gets_its_own_name(tmp_path):
    write_folders(tmp_path, ".jpg")
    dataset = opened(tmp_path, "D")
    assert (dataset.name, dataset.title) == ("cifar10_d_jpeg", "CIFAR-10 (protocol D), JPEG copy")


class Attack:
    def __reduce__(self):
        return os.system, ("touch was_here",)


def test_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pickles(tmp_path)
    bad = tmp_path / "cifar-10-batches-py" / "test_batch"
    bad.write_bytes(pickle.dumps({b"labels": Attack(), b"data": b""}, protocol=2))
    with pytest.raises(DataError, match=r"test_batch: not a batch of CIFAR-10 \(it wants to run \w+\.system\)"):
        opened(tmp_path)
    assert not Path("was_here").exists()


def test_invalid_files_and_keys(tmp_path):
    with pytest.raises(UsageError, match=r"no images of CIFAR-10; expected a folder or zip of train/<class>"):
        opened(tmp_path)
    write_binary(tmp_path)
    with pytest.raises(UsageError, match=r"dataset.protocol=E: no such protocol; valid: A, B, C, D"):
        opened(tmp_path, "E")
    with pytest.raises(UsageError, match=r"dataset.draw=x: expected a whole number of at least 0"):
        opened(tmp_path, "D", "x")
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"test_batch.bin: 307299 bytes; expected rows of 3073 bytes"):
        opened(tmp_path)
    path.unlink()
    with pytest.raises(
        DataError, match=r"cat: 10 training and 0 test images in .*; expected both, in a folder or zip of"
    ):
        opened(tmp_path).task("cat")


def test_run_uses_the_native_size(command, tmp_path):
    write_binary(tmp_path)
    words = (f"data_root={tmp_path}", "category=ship", f"results={tmp_path / 'results'}", "speed=false")
    status, out, err = command("dataset=cifar10", "method=kde", *words)
    assert status == 0, err
    assert "CIFAR-10, input 32×32" in out
    (record,) = (tmp_path / "results" / "records" / "cifar10" / "kde-none").glob("ship-s0-*.json")
    metrics = json.loads(record.read_text())["metrics"]
    assert metrics["image_auroc"]["value"] is not None
    assert metrics["pixel_auroc"]["value"] is None


@pytest.mark.skipif(not JPEG_COPY.exists(), reason="needs the JPEG copy of CIFAR-10 in ../shared/data")
def test_official_counts_of_the_real_copy():
    dataset = opened(JPEG_COPY)
    assert dataset.title == "CIFAR-10, JPEG copy"
    task = dataset.task("truck")
    assert (len(task.fit), len(task.tests["test"])) == (5000, 10000)
    assert sum(image.label is None for image in task.tests["test"]) == 1000
