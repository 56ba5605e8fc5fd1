"""k-means against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from anomaly_bench.components.clustering import k_means, lloyd, plus_plus


def blobs(count=600, clusters=12, dimensions=5):
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(clusters, dimensions, generator=generator)
    return means[torch.arange(count) % clusters] + torch.randn(count, dimensions, generator=generator)


@pytest.mark.parametrize("rounds", [1, 7, 100])
def test_the_centres_are_those_of_scikit_learn_from_the_same_start(rounds):
    points = blobs()
    start = points[plus_plus(points, 12, torch.Generator().manual_seed(1))]
    found, error = lloyd(points, start, rounds)
    known = KMeans(12, init=start.numpy(), n_init=1, max_iter=rounds, tol=0).fit(points.numpy())
    np.testing.assert_allclose(found.numpy(), known.cluster_centers_, atol=1e-5)
    assert error >= known.inertia_ * (1 - 1e-5)


def test_more_starts_are_no_worse_and_a_seed_gives_the_same_bits():
    points = blobs()

    def error(centres):
        return float(torch.cdist(points, centres).amin(dim=1).square().sum())

    several = [k_means(points, 12, seed=0, rounds=50, starts=starts) for starts in (1, 10)]
    assert error(several[1]) <= error(several[0])
    assert torch.equal(several[1], k_means(points, 12, seed=0, rounds=50, starts=10))


def test_the_start_is_drawn_in_proportion_to_squared_distances():
    """From points at 0, 1 and 3, the second after 0 is 3 in nine of ten draws."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    drawn = [plus_plus(points, 2, torch.Generator().manual_seed(seed)) for seed in range(600)]
    after = [second for first, second in drawn if first == 0]
    assert np.mean([each == 2 for each in after]) == pytest.approx(0.9, abs=0.06)


def test_as_many_clusters_as_points_and_equal_points():
    points = blobs(40)
    assert {tuple(row) for row in k_means(points, 40, seed=0, rounds=5).tolist()} == {
        tuple(row) for row in points.tolist()
    }
    assert k_means(torch.ones(6, 3), 4, seed=0, rounds=5).tolist() == [[1.0] * 3] * 4


def test_more_clusters_than_points_are_refused():
    with pytest.raises(ValueError, match="7 clusters of 6 points; expected 1 to 6"):
        k_means(torch.ones(6, 3), 7, seed=0, rounds=5)
