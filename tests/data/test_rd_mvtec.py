"""Rd-MVTec AD: seeded rotations and crops, of images and masks alike, and the mean over draws."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_category

from anomaly_bench.data.rd_mvtec import rd_mvtec
from anomaly_bench.data.readers import read_source
from anomaly_bench.errors import UsageError
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS


@pytest.fixture
def bottle(tmp_path):
    make_category(tmp_path / "bottle", train=6, side=128)
    return tmp_path


def opened(root, draw=0):
    return rd_mvtec("rd_mvtec", "Rd", {"objects": ["bottle"]}, draw, root)


def movements(task):
    return [image.sources[0].member for image in task.samples]


def test_the_draw_alone_decides_on_angles_and_crops(bottle):
    dataset = opened(bottle)
    for check in DATASET_CHECKS:
        check(dataset)
    found = movements(dataset.task("bottle"))
    assert found == movements(opened(bottle).task("bottle"))
    assert len({*found, *movements(opened(bottle, 1).task("bottle"))}) == 2 * len(found)
    angles, tops, lefts = np.array([list(map(float, each.split("/"))) for each in found]).T
    assert angles.min() < -2 < 2 < angles.max()
    assert np.abs(angles).max() <= 10
    for offsets in (tops, lefts):
        assert 0 <= offsets.min() < offsets.max() <= 32
    with pytest.raises(UsageError, match=r"dataset.draw=-1: expected a whole number of at least 0"):
        opened(bottle, -1)


def test_masks_move_with_their_images(bottle):
    defects = [image for image in opened(bottle).task("bottle").tests["test"] if image.label]
    for image in defects:
        pixels, mask = read_source(image.sources[0]).astype(int), read_source(image.masks[0]) > 0
        assert (pixels.shape, mask.shape) == ((224, 224, 3), (224, 224))
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
        assert (red & mask).sum() / (red | mask).sum() > 0.85
    assert read_source(defects[0].sources[0]).dtype == np.uint8


def test_tables_average_over_draws(command, bottle, tmp_path):
    words = [f"data_root={bottle}", "category=bottle", f"results={tmp_path / 'results'}", "gallery=0", "speed=false"]
    for draw in (0, 1):
        made = command("dataset=rd_mvtec", f"dataset.draw={draw}", "method.dimensions=20", "input.resize=64", *words)
        assert made[0] == 0, made[2]
    status, out, err = command("tables", f"results={tmp_path / 'results'}", "format=md")
    assert status == 0, err
    assert "ean of 2 draws of the dataset (0, 1), seed 0" in out
    assert out.count("| PaDiM") == 1
