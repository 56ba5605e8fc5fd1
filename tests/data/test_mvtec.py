"""Readers of MVTec AD's layout and of user folders, and `data check`."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import save

from anomaly_bench.config.compose import compose
from anomaly_bench.data.dataset import open_dataset, selected
from anomaly_bench.data.folder import folder
from anomaly_bench.data.mvtec import mvtec
from anomaly_bench.errors import UsageError

OFFICIAL = compose("config", ["dataset=mvtec"])["dataset"]["categories"]


def test_mvtec_has_the_fifteen_categories_in_the_papers_order(tmp_path):
    dataset = mvtec("mvtec", "MVTec AD", OFFICIAL, tmp_path)
    names = list(dataset.categories)
    assert len(names) == 15
    assert names[:5] == ["carpet", "grid", "leather", "tile", "wood"]
    assert names[5:] == sorted(names[5:])
    assert not dataset.available
    assert selected(dataset, ["textures"]) == names[:5]
    assert selected(dataset, ["screw", "bottle"]) == ["bottle", "screw"]
    assert selected(dataset, ["all"]) == names
    with pytest.raises(UsageError, match=r"category=bottel.*did you mean bottle"):
        selected(dataset, ["bottel"])


def test_root_from_the_environment(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"data_root=DIR.*ANOMALY_BENCH_DATA"):
        mvtec("mvtec", "MVTec AD", OFFICIAL, None)
    monkeypatch.setenv("ANOMALY_BENCH_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        mvtec("mvtec", "MVTec AD", OFFICIAL, None)
    (tmp_path / "mvtec").mkdir()
    assert mvtec("mvtec", "MVTec AD", OFFICIAL, None).root == tmp_path / "mvtec"


def test_files_labels_and_masks(tree):
    task = folder(None, None, tree).task("cog")
    assert [image.id for image in task.fit] == [f"train/good/{number:03}.png" for number in range(6)]
    tested = task.tests["test"]
    assert [image.label for image in tested] == [None] * 3 + ["spot"] * 3
    assert [image.masks[0].path.name for image in tested[3:]] == ["000_mask.png", "001_mask.png", "002_mask.png"]


def test_folder_is_named_after_itself_and_may_be_one_category(tree):
    dataset = folder(None, None, tree)
    assert (dataset.name, dataset.title, list(dataset.categories)) == ("data", "data", ["cog", "mat"])
    single = folder("mine", None, tree / "mat")
    assert (single.name, list(single.categories)) == ("mine", ["mat"])
    assert len(single.task("mat").fit) == 6


def test_masks_may_have_any_suffix_and_the_images_own_name(tree):
    truth = tree / "cog" / "ground_truth" / "spot"
    (truth / "000_mask.png").rename(truth / "000.png")
    save(np.zeros((48, 48), np.uint8), truth / "001_mask.bmp")
    (truth / "001_mask.png").unlink()
    names = [image.masks[0].path.name for image in folder(None, None, tree).task("cog").tests["test"][3:]]
    assert names == ["000.png", "001_mask.bmp", "002_mask.png"]


def test_no_masks_at_all_is_allowed(tree):
    shutil.rmtree(tree / "cog" / "ground_truth")
    assert all(not image.masks for image in folder(None, None, tree).task("cog").tests["test"])


def test_hidden_and_unrelated_files_are_ignored(tree):
    for name in (".DS_Store", "._000.png", "notes.txt"):
        (tree / "cog" / "train" / "good" / name).write_text("no image")
    assert len(folder(None, None, tree).task("cog").fit) == 6


def test_a_folder_may_name_its_textures(tree):
    assert set(folder(None, None, tree).categories.values()) == {None}
    named = folder(None, None, tree, ["mat"])
    assert {name: named.task(name).group for name in ("cog", "mat")} == {"cog": "objects", "mat": "textures"}
    assert folder(None, None, tree / "cog", ["cog"]).categories == {"cog": "textures"}
    with pytest.raises(UsageError, match=r"dataset.textures: matt is no category; did you mean mat\?"):
        folder(None, None, tree, ["matt"])


def test_synthetic_is_a_dataset_in_the_cache():
    config = compose("config", [])["dataset"]
    dataset = open_dataset(config, None)
    groups = list(dataset.categories.values())
    assert groups == ["textures", "textures", "objects", "objects"]
    for name in dataset.categories:
        task = dataset.task(name)
        defects = [image for image in task.tests["test"] if image.label]
        assert (len(task.fit), len(task.tests["test"])) == (40, 40)
        assert all(image.masks for image in defects)
        assert len({image.label for image in defects}) >= 3
    removed = next(iter(dataset.categories))
    shutil.rmtree(dataset.folder(removed) / "train")
    assert len(open_dataset(config, None).task(removed).fit) == 40, "a damaged tree must be regenerated"
    with pytest.raises(UsageError, match="data_root"):
        open_dataset(config, dataset.root)


def test_data_check(command, tree):
    status, out, _ = command("data", "check", "dataset=folder", f"data_root={tree}")
    assert status == 0
    assert "cog" in out
    (tree / "mat" / "test" / "good" / "000.png").write_text("hello")
    status, out, _ = command("data", "check", "dataset=folder", f"data_root={tree}")
    assert status == 1
    assert "cannot be decoded" in " ".join(out.split())
