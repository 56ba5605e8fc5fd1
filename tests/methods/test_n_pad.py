"""N-pad against PaDiM and a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist, mahalanobis

from anomaly_bench.components.embedding import embed
from anomaly_bench.components.gaussian import Moments
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.n_pad import box_sum, pool_windows_, window_cells
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, new_images, pictures

SMALL = ("method.dimensions=20",)


def patches(setup, method, pixels):
    """(h * w, N, D) embeddings."""
    return embed(setup.network(to_tensor(pixels)), method.chosen)


def within(grid, window):
    """The cells of the window around each cell, inside the grid."""
    reach = window // 2
    return [
        [
            k * grid[1] + m
            for k in range(max(0, i - reach), min(grid[0], i + reach + 1))
            for m in range(max(0, j - reach), min(grid[1], j + reach + 1))
        ]
        for i in range(grid[0])
        for j in range(grid[1])
    ]


def test_without_windows_and_centroids_it_is_padim_bit_for_bit():
    setup = Setup(
        "n_pad", overrides=("method.fit_window=1", "method.test_window=1", "method.centroid_weight=0", *SMALL)
    )
    ours, padim = setup.one, Setup("padim", overrides=SMALL).one
    for name in ("chosen", "mean", "whitener"):
        assert torch.equal(getattr(ours, name), getattr(padim, name))
    tested = patches(setup, ours, pictures(3, first=900))
    expected = torch.bmm(tested - padim.mean[:, None], padim.whitener).square_().sum(dim=-1).sqrt_()
    assert torch.equal(ours.position_distances(tested), expected)
    found, raw = ours.score(new_images()), padim.score(new_images())
    mean, deviation = ours.terms[:, 0]
    torch.testing.assert_close(found.map * deviation + mean, raw.map, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.image * deviation + mean, raw.image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("grid", "window"), [((4, 5), 3), ((3, 3), 5), ((2, 6), 3)])
def test_pooled_moments_are_those_of_all_samples_of_the_window(grid, window):
    """At the border too: 4, 6 and 9 cells."""
    x = torch.randn(grid[0] * grid[1], 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
    x += torch.arange(len(x))[:, None, None]  # every cell has its own mean
    moments = Moments(torch.empty(len(x), 6, dtype=torch.float64), torch.empty(len(x), 6, 6, dtype=torch.float64))
    moments.add_(x.clone())
    moments.finish()
    pool_windows_(moments.mean, moments.scatter, moments.count, grid, window)
    windows = within(grid, window)
    if window == 3 and min(grid) > 2:
        assert {len(cells) for cells in windows} == {4, 6, 9}
    for cell, cells in enumerate(windows):
        samples = x[cells].flatten(0, 1).numpy()
        np.testing.assert_allclose(moments.mean[cell], samples.mean(axis=0), rtol=1e-8)
        np.testing.assert_allclose(moments.scatter[cell], np.cov(samples.T), rtol=1e-8, atol=1e-8)


def test_maps_and_scores_follow_a_slow_version():
    setup = Setup("n_pad", overrides=("method.dimensions=12", "method.centroids=0.02"))
    train, test = pictures(10), pictures(2, first=900)
    test[0, 20:30, 20:30] = 0
    method = setup.fitted(TrainingSet("slow", train))
    known, tested = (patches(setup, method, pixels).double().numpy() for pixels in (train, test))
    windows = within(method.grid, 3)
    gaussians = []
    for cells in windows:
        samples = known[cells].reshape(-1, 12)
        gaussians.append((samples.mean(axis=0), np.linalg.inv(np.cov(samples.T) + 0.01 * np.eye(12))))

    def terms(rows):
        position = [
            [min(mahalanobis(row, *gaussians[other]) for other in cells) for row in rows[cell]]
            for cell, cells in enumerate(windows)
        ]
        centroid = [cdist(each, method.centres.double().numpy()).min(axis=1) for each in rows]
        return np.array([position, centroid])

    fitted = terms(known).reshape(2, -1)
    np.testing.assert_allclose(method.terms, [fitted.mean(axis=1), fitted.std(axis=1)], rtol=1e-3)
    standardised = (terms(tested) - fitted.mean(axis=1)[:, None, None]) / fitted.std(axis=1)[:, None, None]
    maps = torch.from_numpy(standardised.sum(axis=0).T.reshape(2, 1, *method.grid))
    large = torch.nn.functional.interpolate(maps, size=(64, 64), mode="bilinear")[:, 0].numpy()
    expected = np.stack([gaussian_filter(each, 4) for each in large])
    found = method.score(to_tensor(test))
    np.testing.assert_allclose(found.map.numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.image.numpy(), expected.max(axis=(1, 2)), rtol=1e-3)


def test_both_distances_are_standardised_on_the_training_images():
    setup = Setup("n_pad", overrides=SMALL)
    method = setup.one
    found = method.distances(patches(setup, method, pictures(24))).flatten(1)
    standardised = (found - method.terms[0][:, None]) / method.terms[1][:, None]
    torch.testing.assert_close(standardised.mean(dim=1), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardised.std(dim=1, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_where_every_cell_is_a_centroid_the_training_images_have_distance_0():
    words = ("method.centroids=1.0", "method.most_centroids=1000000", *SMALL)
    setup = Setup("n_pad", overrides=words)
    method = setup.fitted(TrainingSet("few", pictures(2)))
    assert len(method.centres) == 2 * 16 * 16
    assert method.distances(patches(setup, method, pictures(2)))[1].max() == 0
    assert method.score(new_images()).map.isfinite().all()


def test_a_larger_window_at_the_test_never_raises_the_distance():
    setup = Setup("n_pad", overrides=SMALL)
    method = setup.one
    tested = patches(setup, method, pictures(3, first=900))
    wide = method.position_distances(tested)
    method.test_window = 1
    narrow = method.position_distances(tested)
    method.test_window = 3
    assert (wide <= narrow * (1 + 1e-5)).all()  # products of other sizes round otherwise
    assert (wide < 0.9 * narrow).any()


def test_features_that_do_not_depend_on_the_position_give_equal_gaussians_inside():
    mean, scatter = torch.randn(1, 4).repeat(25, 1), torch.eye(4).repeat(25, 1, 1)
    pool_windows_(mean, scatter, 9, (5, 5), 3)
    inside = scatter.view(5, 5, 4, 4)[1:-1, 1:-1]
    assert torch.equal(inside, inside[:1, :1].expand_as(inside))


def test_a_shift_by_one_cell_costs_less_than_under_padim():
    """Relative to the spread of normal images' scores."""
    images = new_images()
    rolled = images.roll(4, dims=3)  # level 1 has stride 4
    costs = []
    for name in ("n_pad", "padim"):
        method = Setup(name, overrides=SMALL).one
        normal = method.score(images).map
        costs.append((method.score(rolled).map.mean() - normal.mean()) / normal.std())
    assert costs[0] < costs[1]


def test_windows_end_at_the_border():
    cells = window_cells((3, 4), 3)
    assert [sorted(set(row)) for row in cells.tolist()] == within((3, 4), 3)
    sums = box_sum(torch.arange(12.0)[:, None], (3, 4), 3)[:, 0]
    assert sums.tolist() == [sum(row) for row in within((3, 4), 3)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.fit_window=2", "method.fit_window=2: expected an odd number"),
        ("method.test_window=0", "method.test_window=0: expected an odd number"),
        ("method.centroids=0", "method.centroids=0.*expected a share above 0"),
        ("method.dimensions=500", r"method.dimensions=500.*176 channels"),
    ],
)
def test_wrong_settings(word, message):
    with pytest.raises(UsageError, match=message):
        Setup("n_pad", overrides=(word,)).fitted()


def test_one_training_image_is_too_few():
    with pytest.raises(ValueError, match=r"1 training image.*at least 2"):
        Setup("n_pad").fitted(TrainingSet("single", pictures(1)))
