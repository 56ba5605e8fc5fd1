"""MVTec 3D-AD's layout: colour, coordinates with holes, class numbers in masks, a validation set."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from conftest import picture, save

from anomaly_bench.components.validation import check_fitted
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.data.mvtec3d import mvtec3d
from anomaly_bench.data.readers import read_source
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.protocol import Scores
from anomaly_bench.runs.runner import Runner
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS

BUMP = (slice(10, 22), slice(20, 32))


@pytest.fixture
def scans(tmp_path):
    """The category tire: a bump visible only in the coordinates, and a stain visible only in colour."""
    counts = {"train/good": 6, "validation/good": 2, "test/good": 3, "test/hole": 3, "test/contamination": 3}
    for part, count in counts.items():
        for number in range(count):
            folder, seed = tmp_path / "tire" / part, len(part) * 10 + number
            colour, mask = picture(seed), np.zeros((48, 48), np.uint8)
            rows, columns = np.mgrid[:48, :48].astype(np.float32)
            height = 500 + np.random.default_rng(seed).normal(0, 0.1, (48, 48)).astype(np.float32)
            mask[BUMP] = {"hole": 253, "contamination": 255}.get(folder.name, 0)
            height[mask == 253] += 20
            colour[mask == 255] = (255, 0, 0)
            points = np.stack([columns, rows, height], axis=-1)
            points[:4] = 0
            save(colour, folder / "rgb" / f"{number:03}.png")
            (folder / "xyz").mkdir() if number == 0 else None
            tifffile.imwrite(folder / "xyz" / f"{number:03}.tiff", points, photometric="rgb")
            save(mask, folder / "gt" / f"{number:03}.png")
    return tmp_path


def opened(root, modality="rgb"):
    return mvtec3d("mvtec3d", "MVTec 3D-AD", ["bagel", "tire"], modality, root)


class DepthDeviation(torch.nn.Module):
    """The distance of each pixel's depth from the mean of the training scans."""

    def build(self, shapes):
        self.register_buffer("mean", torch.zeros(shapes[0]))

    def fit(self, normals):
        assert len(normals.validation) == 2
        self.mean.copy_(torch.cat(list(normals.images(4))).mean(dim=0))

    def score(self, images):
        check_fitted(self)
        maps = (images - self.mean).square().sum(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)


@pytest.mark.parametrize(
    ("modality", "name", "channels"),
    [
        ("rgb", "mvtec3d", 3),
        ("depth", "mvtec3d_depth", 1),
        ("xyz", "mvtec3d_xyz", 3),
        ("rgb+depth", "mvtec3d_rgb_depth", 4),
        ("rgb+xyz", "mvtec3d_rgb_xyz", 6),
    ],
)
def test_modalities(modality, name, channels, scans):
    dataset = opened(scans, modality)
    for check in DATASET_CHECKS:
        check(dataset)
    task = dataset.task("tire")
    assert (dataset.name, dataset.available, task.channels) == (name, ["tire"], channels)
    assert (len(task.fit), len(task.validation), len(task.tests["test"])) == (6, 2, 9)
    assert [len(image.masks) for image in task.tests["test"]] == [
        int(image.label is not None) for image in task.tests["test"]
    ]
    for source, plane in zip(task.fit[0].sources, task.planes, strict=True):
        values = read_source(source)
        assert values.shape[:2] == (48, 48)
        assert plane.name == "rgb" or not values[:4].any(), "holes stay zero"


def run(scans, tmp_path, modality, **method):
    words = [f"results={tmp_path / 'results'}", f"data_root={scans}", f"dataset.modality={modality}", "category=tire"]
    words += ["dataset=mvtec3d", "speed=false", "input.resize=48", "method.dimensions=20"]
    config = compose("config", words)
    summary = Runner(config | ({"method": method} if method else {}), Reporter()).run()
    assert not summary.failed, summary.failed
    return summary.records[0]


def test_padim_on_colour_and_a_scorer_of_depth(scans, tmp_path):
    colour = run(scans, tmp_path, "rgb")
    assert colour.titles["dataset"] == "MVTec 3D-AD"
    assert 0.5 < colour.value("pixel_auroc") < 1, "it sees the stains, not the bumps"
    about = {"title": "Depth", "revision": 1}
    node = {"name": "depth", "_target_": f"{__name__}.DepthDeviation", "about": about, "uses_backbone": False}
    depth = run(scans, tmp_path, "rgb+depth", **node, planes=["depth"])
    bumps = [image["score"] for image in depth.images if image["defect"] == "hole"]
    assert min(bumps) > max(image["score"] for image in depth.images if image["defect"] is None)


def test_invalid_data_is_named(scans):
    with pytest.raises(UsageError, match=r"dataset.modality=rgbd: no such modality; did you mean rgb or rgb\+depth"):
        opened(scans, "rgbd")
    with pytest.raises(DataError, match=r"bagel: 0 training and 0 test images in .*; expected both"):
        opened(scans).task("bagel")
    (scans / "tire" / "test" / "hole" / "rgb" / "001.png").unlink()
    assert len(opened(scans, "xyz").task("tire").tests["test"]) == 9
    with pytest.raises(DataError, match=r"hole: scans without a file in rgb/: 001; expected one for each"):
        opened(scans, "rgb+xyz").task("tire")
    (scans / "tire" / "test" / "contamination" / "gt" / "002.png").unlink()
    with pytest.raises(DataError, match=r"contamination: scans without a file in gt/: 002"):
        opened(scans, "xyz").task("tire")


def test_method_for_another_modality_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match=r"method=padim reads the planes rgb; the images of tire have .*depth \(1\)"):
        run(scans, tmp_path, "depth")
