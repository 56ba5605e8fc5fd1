"""`data check`: official counts, invalid roots, and the cache of headers."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
from conftest import make_category, picture, save
from omegaconf import OmegaConf
from PIL import Image

from anomaly_bench.cli.commands import data
from anomaly_bench.config.compose import compose
from anomaly_bench.data import check
from anomaly_bench.data.folder import folder
from anomaly_bench.errors import UsageError

OFFICIAL = compose("config", ["dataset=mvtec"])["dataset"]
TRUE = {"train": 6, "good": 3, "defects": 3, "kinds": 1}  # of conftest.make_category


def config(root, counts=None, category="all"):
    dataset = {
        "name": "small",
        "title": "Small",
        "about": {"counts": counts or {}},
        "_target_": "anomaly_bench.data.mvtec.mvtec",
        "categories": {"objects": ["cog"], "textures": ["mat"]},
    }
    return OmegaConf.create({"dataset": dataset, "data_root": str(root), "category": category})


@pytest.fixture
def opened(monkeypatch):
    """The files that are read."""
    files = []
    size, decode = check.readers.source_size, check.decode_sample

    def spied_size(source):
        files.append(source.path)
        return size(source)

    def spied_decode(sample, *rest):
        files.append(sample.sources[0].path)
        return decode(sample, *rest)

    monkeypatch.setattr(check.readers, "source_size", spied_size)
    monkeypatch.setattr(check, "decode_sample", spied_decode)
    return files


def test_official_counts_match_the_paper():
    counts = OFFICIAL["about"]["counts"]
    assert sorted(counts) == sorted(name for names in OFFICIAL["categories"].values() for name in names)
    sums = {key: sum(count[key] for count in counts.values()) for key in check.COUNTED}
    assert sums == {"train": 3629, "good": 467, "defects": 1258, "kinds": 73}
    assert sums["train"] + sums["good"] + sums["defects"] == 5354


def test_complete_official_layout(command, tmp_path, empty_cache, opened):
    def png(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    image, mask = png(picture(0, 8)), png(np.full((8, 8), 255, np.uint8))
    for name, count in OFFICIAL["about"]["counts"].items():
        kinds = [f"kind{number}" for number in range(count["kinds"])]
        for part in (
            "train/good",
            "test/good",
            *(f"{top}/{kind}" for top in ("test", "ground_truth") for kind in kinds),
        ):
            (tmp_path / name / part).mkdir(parents=True)
        for number in range(count["train"]):
            (tmp_path / name / "train/good" / f"{number:03}.png").write_bytes(image)
        for number in range(count["good"]):
            (tmp_path / name / "test/good" / f"{number:03}.png").write_bytes(image)
        for number in range(count["defects"]):
            kind = kinds[number % len(kinds)]
            (tmp_path / name / "test" / kind / f"{number:03}.png").write_bytes(image)
            (tmp_path / name / "ground_truth" / kind / f"{number:03}_mask.png").write_bytes(mask)
    status, out, _ = command("data", "check", "dataset=mvtec", f"data_root={tmp_path}")
    assert (status, out.count(" ok ")) == (0, 15)
    assert len(opened) == 5354 + 1258
    opened.clear()
    assert command("data", "check", "dataset=mvtec", f"data_root={tmp_path}")[0] == 0
    assert opened == []


def test_differing_counts_are_reported(tree, capsys):
    assert data.check_dataset(config(tree, {"cog": TRUE, "mat": TRUE}))
    assert capsys.readouterr().out.count(" ok ") == 2
    assert not data.check_dataset(config(tree, {"cog": TRUE, "mat": {"train": 7, "good": 3, "defects": 4, "kinds": 2}}))
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "counts differ: train 6, official 7; test defects 3, official 4; kinds of defect 1, official 2" in out
    assert out.count(" ok ") == 1
    assert data.check_dataset(config(tree, {"cog": {"train": 7}}, category="mat")), "a category without official counts"


def test_only_broken_headers_are_read_again(tree, empty_cache, opened):
    assert data.check_dataset(config(tree))
    (tree / "cog" / "train" / "good" / "002.png").write_text("no image")
    for _ in range(2):
        opened.clear()
        assert not data.check_dataset(config(tree))
        assert [path.name for path in opened] == ["002.png"]


def test_changed_file_of_the_same_size_is_read_again(tree, empty_cache, opened):
    path = tree / "cog" / "train" / "good" / "002.png"
    assert data.check_dataset(config(tree))
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert not data.check_dataset(config(tree))


def test_check_works_without_a_cache(tree, empty_cache, opened):
    empty_cache.write_text("a file where the cache should be")
    assert data.check_dataset(config(tree))
    assert data.check_dataset(config(tree))
    assert len(opened) == 2 * 2 * (6 + 3 + 3 + 3)


def test_mask_of_a_different_size(tree):
    save(np.zeros((40, 48), np.uint8), tree / "cog" / "ground_truth" / "spot" / "001_mask.png")
    numbers, problems, _ = check.examine(folder(None, None, tree), "cog", TRUE)
    assert numbers == ["6", "3", "3", "1", "3"]
    assert len(problems) == 1
    assert problems[0].endswith("001_mask.png: 48x40 pixels, its image test/spot/001.png has 48x48; expected the same")


def test_missing_category(tree, capsys):
    shutil.rmtree(tree / "cog")
    assert not data.check_dataset(config(tree))
    assert "no folder" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["empty", "other", "file", "number"])
def test_invalid_root_gives_one_clear_line(command, tmp_path, layout):
    root = tmp_path / "root"
    message = f"no category of MVTec AD in it (folders there: {'images, labels' if layout == 'other' else 'none'})"
    if layout == "file":
        root.write_text("")
        message = "no such folder"
    elif layout == "number":
        root, message = 7, "data_root=7: no such folder"
    else:
        root.mkdir()
    if layout == "other":
        for name in ("images", "labels"):
            make_category(root / name, train=1, good=1, defects=1)
    status, out, err = command("data", "check", "dataset=mvtec", f"data_root={root}")
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_empty_user_folder(tmp_path):
    node = compose("config", ["dataset=folder"])["dataset"]
    with pytest.raises(UsageError, match=r"no category found.*folders there: none"):
        data.check_dataset(OmegaConf.create({"dataset": node, "data_root": str(tmp_path), "category": "all"}))


def test_images_beside_the_categories_are_named_once(tree, capsys):
    save(picture(1), tree / "camera2" / "monday" / "000.png")
    save(picture(2), tree / "loose.png")
    (tree / "notes").mkdir()
    (tree / "notes" / "read.txt").write_text("no image")
    node = compose("config", ["dataset=folder"])["dataset"]
    assert data.check_dataset(OmegaConf.create({"dataset": node, "data_root": str(tree), "category": "all"}))
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert said == [
        "cog: images, or folders of images without train and test, beside the categories: left out (2): ../camera2, "
        "../loose.png"
    ]
