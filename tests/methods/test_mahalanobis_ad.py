"""MahalanobisAD against scipy, scikit-learn and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from anomaly_bench import records
from anomaly_bench.config.settings import read_settings
from anomaly_bench.methods.mahalanobis_ad import MahalanobisAD
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.testing.setup import Setup, pictures


def pooled(levels):
    """(N, C) float64 per level, averaged position by position."""
    return [
        sum(level[:, :, i, j].double() for i in range(level.shape[2]) for j in range(level.shape[3])).numpy()
        / (level.shape[2] * level.shape[3])
        for level in levels
    ]


@pytest.mark.parametrize("levels", ["all", [1, "3a"]])
def test_scores_follow_the_equations(levels):
    """With 24 images and levels of up to 1280 channels: shrinkage makes every covariance invertible."""
    setup = Setup("mahalanobis_ad", overrides=(f"method.levels={levels}".replace("'", ""),))
    train, test = to_tensor(pictures(24)), to_tensor(pictures(3, first=900))
    expected = np.zeros(3)
    for known, tested in zip(pooled(setup.network(train)), pooled(setup.network(test)), strict=True):
        estimate = LedoitWolf(store_precision=False).fit(known)
        inverse = np.linalg.inv(estimate.covariance_)
        expected += [mahalanobis(each, known.mean(axis=0), inverse) for each in tested]
    found = setup.fitted().score(test)
    np.testing.assert_allclose(found.image.numpy(), expected, rtol=1e-4)
    assert found.map is None


def test_distance_computed_by_hand():
    """One channel: no shrinkage, the distance is |x - mean| / deviation; levels are summed."""
    method = MahalanobisAD(lambda images: [images[:, :1], 3 * images[:, 1:2]])
    greys = np.array([0, 120, 240], np.uint8)
    pixels = np.broadcast_to(greys[:, None, None, None], (3, 4, 4, 3)).copy()
    fit_method(method, [(1, 4, 4), (1, 4, 4)], TrainingSet("greys", pixels), seed=0)
    deviation = np.sqrt((120**2 + 0 + 120**2) / 3)
    images = torch.full((1, 3, 4, 4), (120 + deviation) / 255)
    images[:, 1] = (120 - 2 * deviation) / 255
    torch.testing.assert_close(method.score(images).image, torch.tensor([1.0 + 2.0]))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_scores_are_invariant_to_feature_scale_and_offset(scale, shift, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 2, 2, 3), np.uint8)
    plain = MahalanobisAD(lambda images: [images])
    moved = MahalanobisAD(lambda images: [images * scale + shift * scale])
    for method in (plain, moved):
        fit_method(method, [(3, 2, 2)], TrainingSet("noise", pixels), seed=0)
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(moved.score(images).image, plain.score(images).image, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(count):
    with pytest.raises(ValueError, match=rf"single: {count} training image.*at least 3"):
        Setup("mahalanobis_ad").fitted(TrainingSet("single", pictures(count)))


def test_identical_images():
    with pytest.raises(ValueError, match="all 4 training images have the same features"):
        Setup("mahalanobis_ad", "r18", ("backbone.weights=random",)).fitted(
            TrainingSet("alike", pictures(1).repeat(4, axis=0))
        )


def test_published_settings():
    """Nine covariances of EfficientNet-B4, 3.53 M floats, at 380 px without a crop."""
    setup = Setup("mahalanobis_ad", "effb4", ("backbone.weights=random", "protocol=paper"))
    expected = {"resize": [380, 380], "crop": None, "filter": "bilinear_no_antialias"}
    assert read_settings(setup.config).input == expected
    with torch.device("meta"):
        shapes = setup.network.shapes((380, 380))
        method = setup.new()
        method.build(shapes)
    assert [shape[0] for shape in shapes] == [48, 24, 32, 56, 112, 160, 272, 448, 1792]
    assert sum(gaussian.whitener.numel() for gaussian in method.gaussians) == 3_531_136


def test_a_run_has_no_pixel_metrics(tree, tmp_path, command):
    results = tmp_path / "results"
    words = ["method=mahalanobis_ad", "dataset=folder", f"data_root={tree}", "category=cog", "input.resize=64"]
    words += [f"results={results}", "speed=false", "save_maps=true", "save_model=true"]
    status, _, err = command(*words)
    assert status == 0, err
    (path,) = (results / "records").rglob("*.json")
    record = records.load(path)
    assert record.value("image_auroc") is not None
    assert [record.value(name) for name in ("pixel_auroc", "pro")] == [None, None]
    assert not record.localises
    assert {file.name for file in path.with_suffix("").iterdir()} >= {"model.yaml", "model.safetensors"}
    assert not path.with_suffix("").joinpath("maps.npy").exists()
    assert "already done" in "".join(command(*words)[1:]), "the second run has nothing to do"
