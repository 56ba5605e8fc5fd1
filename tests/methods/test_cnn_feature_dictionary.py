"""CNN feature dictionary against a slow version and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from anomaly_bench.components.patches import cut_patches
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.cnn_feature_dictionary import average_over_patches
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, new_images, pictures

SMALL = ("method.patches=300", "method.starts=2")


def made(*words):
    return Setup("cnn_feature_dictionary", overrides=(*SMALL, *words))


def test_maps_and_scores_follow_a_slow_version():
    """Each patch passes the network alone."""
    setup = made("method.stride=8")
    method, images = setup.one, to_tensor(pictures(1, first=900))
    total, count = np.zeros((64, 64)), np.zeros((64, 64))
    for top in range(0, 49, 8):
        for left in range(0, 49, 8):
            (level,) = setup.network(images[:, :, top : top + 16, left : left + 16])
            feature = level.double().mean(dim=(2, 3)).numpy() - method.mean.double().numpy()
            projected = feature @ method.components.double().numpy().T
            total[top : top + 16, left : left + 16] += cdist(projected, method.centres.double().numpy().T).min()
            count[top : top + 16, left : left + 16] += 1
    found = method.score(images)
    np.testing.assert_allclose(found.map[0].numpy(), total / count, rtol=1e-4)
    assert float(found.image[0]) == pytest.approx((total / count).max(), rel=1e-4)


@pytest.mark.parametrize("whiten", [False, True])
def test_components_keep_the_variance_and_no_more(whiten):
    method = made(f"method.whiten={whiten}").new()
    features = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 30)
    method.build([(30, 4, 4)])
    reduced = method.reduce(features)
    axes = method.components
    if whiten:
        torch.testing.assert_close(reduced.std(dim=0), torch.ones(len(axes)), rtol=1e-4, atol=0)
        return
    torch.testing.assert_close(axes @ axes.T, torch.eye(len(axes)), atol=1e-5, rtol=0)
    kept, whole = reduced.var(dim=0), features.var(dim=0).sum()
    assert kept.sum() >= 0.95 * whole
    assert kept[:-1].sum() < 0.95 * whole


def test_one_centre_is_the_mean_of_the_projected_patches():
    setup = made("method.clusters=1")
    method = setup.one
    torch.testing.assert_close(method.centres, torch.zeros_like(method.centres), atol=1e-4, rtol=0)


def test_where_every_patch_is_a_centre_training_patches_have_distance_0():
    setup = made("method.clusters=300", "method.starts=1")
    method = setup.one
    projected = method.project(method.draw(setup.normals()))
    assert torch.cdist(projected, method.centres.T).amin(dim=1).max() < 1e-2 * projected.norm(dim=1).mean()


def test_a_pixel_is_the_mean_over_the_patches_that_cover_it():
    coarse = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = average_over_patches(coarse, 16, 4)
    assert found.shape == (2, 32, 40)
    for row, column in ((0, 0), (31, 39), (13, 20), (3, 17), (16, 4)):
        values = [
            coarse[:, i, j]
            for i in range(5)
            for j in range(7)
            if 4 * i <= row < 4 * i + 16 and 4 * j <= column < 4 * j + 16
        ]
        torch.testing.assert_close(found[:, row, column], torch.stack(values).mean(dim=0))
    torch.testing.assert_close(average_over_patches(torch.full((1, 5, 7), 3.0), 16, 4), torch.full((1, 32, 40), 3.0))


@pytest.mark.parametrize(("side", "grid"), [(256, 61), (512, 125)])
def test_grids_of_the_paper(side, grid, monkeypatch):
    method = made().one
    monkeypatch.setattr(method, "features", lambda patches: patches.new_zeros(len(patches), len(method.mean)))
    assert method.coarse_map(torch.zeros(1, 3, side, side)).shape == (1, grid, grid)


def test_patches_are_cut_at_their_corners():
    images = torch.rand(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    numbers, tops, lefts = torch.tensor([2, 0]), torch.tensor([1, 5]), torch.tensor([7, 0])
    found = cut_patches(images, numbers, tops, lefts, 4)
    assert torch.equal(found, torch.stack([images[2, :, 1:5, 7:11], images[0, :, 5:9, 0:4]]))


def test_enlarged_patches_have_other_features():
    images = new_images()[:1]
    plain, large = made("method.stride=16").one, made("method.stride=16", "method.enlarge=32").one
    assert not torch.allclose(plain.score(images).map, large.score(images).map)


def test_a_network_that_cannot_take_small_patches_is_refused_before_the_work():
    setup = Setup("cnn_feature_dictionary", "vgg16", ("backbone.weights=random", "method.patch=8", "method.stride=8"))
    with pytest.raises(UsageError, match=r"cannot take patches of 8 x 8 pixels .*set method.enlarge"):
        setup.fitted()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.stride=3", "method.stride=3: expected a divisor of method.patch=16"),
        ("method.clusters=301", "method.clusters=301 of method.patches=300: expected 1 to 300"),
        ("method.variance=1.0", "method.variance=1.0: expected a share between 0 and 1"),
        ("method.levels=[3,4]", "2 levels; expected one"),
    ],
)
def test_wrong_settings(word, message):
    with pytest.raises(UsageError, match=message):
        made(word).fitted()


def test_images_that_the_stride_does_not_divide():
    with pytest.raises(UsageError, match="cannot take images of 66 x 66"):
        made().fitted(TrainingSet("odd", pictures(2, side=66)))
