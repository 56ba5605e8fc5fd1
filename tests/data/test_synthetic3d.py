"""The generated scans: layout, determinism, exact masks, one camera; what methods read of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anomaly_bench.config.compose import compose
from anomaly_bench.data import synthetic3d
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import UsageError
from anomaly_bench.records import load_all
from anomaly_bench.runs.job import read_planes
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic3d, "COUNTS", dict.fromkeys(synthetic3d.COUNTS, 2))
    return lambda **keys: open_dataset(compose("config", ["dataset=synthetic3d"])["dataset"] | keys, None)


def test_layout_and_planes(small):
    dataset = small()
    for check in DATASET_CHECKS:
        check(dataset)
    task = dataset.task("bun")
    assert (dataset.name, dataset.available) == ("synthetic3d", ["bun", "block"])
    assert [plane.name for plane in task.planes] == ["rgb", "depth", "xyz"]
    assert (len(task.fit), len(task.validation), len(task.tests["test"])) == (2, 2, 6)
    assert small(modality="xyz").name == "synthetic3d_xyz"


@pytest.mark.parametrize(
    ("modality", "method", "read"),
    [
        ("rgb+depth+xyz", "voxel_vm", ["rgb", "xyz"]),
        ("rgb+depth+xyz", "depth_vm", ["rgb", "depth"]),
        ("depth+xyz", "voxel_vm", ["xyz"]),
        ("depth", "depth_vm", ["depth"]),
        ("rgb", "padim", ["rgb"]),
    ],
)
def test_methods_read_colours_where_there_are_some(small, modality, method, read):
    task = read_planes(
        small(modality=modality).task("bun"),
        compose("config", [f"method={method}", "backbone=lite0"]) | {"backbone": None},
    )
    assert [plane.name for plane in task.planes] == read


def test_a_dataset_without_the_plane_is_refused(small):
    with pytest.raises(UsageError, match="method=voxel_vm reads the planes rgb, xyz; the images of bun have"):
        read_planes(small(modality="rgb+depth").task("bun"), compose("config", ["method=voxel_vm"]))


@pytest.mark.parametrize("category", synthetic3d.CATEGORIES)
@pytest.mark.parametrize("defect", ["dent", "hole"])
def test_only_the_defect_differs_from_the_clean_twin(category, defect):
    (colours, points), (plain, clean) = (synthetic3d.render(category, "test", 25, kind) for kind in (defect, "good"))
    mask = synthetic3d.mask_of(category, "test", 25, defect)
    again = synthetic3d.render(category, "test", 25, defect)
    assert np.array_equal(again[0], colours)
    assert np.array_equal(again[1], points)
    assert 30 < mask.sum() < 1500
    farther = (points[..., 2] > clean[..., 2])[mask & (points[..., 2] > 0) & (clean[..., 2] > 0)]
    assert farther.mean() > 0.95, "pressed in, or seen through"
    assert np.abs(points - clean)[~mask].max() <= 0.0015
    assert not np.array_equal(colours, plain)


def test_all_scans_are_seen_by_one_camera():
    points = synthetic3d.render("block", "train", 3)[1]
    seen = points.any(axis=2)
    assert 0.9 < seen.mean() < 1
    rows, columns = np.nonzero(seen)
    rays = points[seen][:, :2] / points[seen][:, 2:] * synthetic3d.FOCUS + (synthetic3d.SIZE - 1) / 2
    assert np.abs(rays - np.stack([columns, rows], axis=1)).max() < 0.01


def test_unknown_modality_and_data_root_are_refused(small):
    with pytest.raises(UsageError, match=r"dataset.modality=xy: no such modality"):
        small(modality="xy")
    with pytest.raises(UsageError, match="data_root has no effect"):
        synthetic3d.synthetic3d("a", "A", "xyz", "somewhere")


def test_pro_of_made_scans_by_brute_force(small, command, tmp_path):
    """From the stored maps and the masks of the scans: every score a threshold, every region by its own pixels."""
    task = small().task("bun")
    words = ["dataset=synthetic3d", "category=bun", "method=voxel_vm", "method.grid=16", "method.views=2"]
    words += ["input.resize=128", f"results={tmp_path / 'results'}", "threads=1"]  # as large as the scans
    status, _, err = command(*words, "speed=false", "gallery=0", "save_maps=true")
    assert status == 0, err
    (record,) = load_all(tmp_path / "results")[0]
    maps = np.load(tmp_path / "results" / record.path.with_suffix("") / "maps.npy")
    truth = [[mask.path for mask in scan.masks] for scan in task.tests["test"]]
    masks = np.zeros(maps.shape, np.bool_)
    for place, paths in enumerate(truth):
        for path in paths:
            masks[place] |= np.asarray(Image.open(path)) > 0
    assert masks.any(axis=(1, 2)).sum() == 4
    regions = [inside for mask, scores in zip(masks, maps, strict=True) for inside in regions_of(mask, scores)]
    normal = maps[~masks]
    rate = overlap = expected = 0.0
    for threshold in np.unique(maps)[::-1]:
        before, known = rate, overlap
        rate = float((normal >= threshold).mean())
        overlap = float(np.mean([(region >= threshold).mean() for region in regions]))
        if rate > 0.3:  # the last step is cut at the limit
            rate, overlap = 0.3, known + (overlap - known) * (0.3 - before) / (rate - before)
        expected += (rate - before) * (overlap + known) / 2 / 0.3
        if rate == 0.3:
            break
    assert record.metrics["pro"]["value"] == pytest.approx(expected, abs=1e-9)


def regions_of(mask, scores):
    """The scores in each 8-connected region of a mask."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return [scores[labels == number] for number in range(1, count + 1)]
