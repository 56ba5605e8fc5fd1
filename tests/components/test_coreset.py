"""Greedy k-centre against a naive version, on points with and without ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_bench.components import coreset
from anomaly_bench.components.coreset import k_centre


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(points, count, first):
    """One pass per centre, by differences in float64; no centre is chosen twice."""
    points = points.numpy().astype(np.float64)
    chosen, distances = [first], np.full(len(points), np.inf)
    for _ in range(count - 1):
        distances = np.minimum(distances, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distances[chosen[-1]] = -1
        chosen.append(int(distances.argmax()))  # the first of ties
    return chosen


def check(points, count, **options):
    found = k_centre(points, count, **options).tolist()
    assert found == naive(points, count, found[0])
    return found


@pytest.fixture(params=[1, 5, 4096])
def candidates(request, monkeypatch):
    """Few candidates need many passes, and are overtaken by other points."""
    monkeypatch.setattr(coreset, "CANDIDATES", request.param)


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize("block_bytes", [1, 5000, None])
def test_matches_naive_greedy_for_every_block_size(block_bytes):
    found = check(random(400, 7), 60, block_bytes=block_bytes)
    assert len(set(found)) == 60


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize("sides", [(5, 5, 4), (30,), (2,) * 8])
def test_ties_go_to_the_lowest_index(sides):
    """On an integer grid nearly all distances are tied."""
    axes = torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")
    points = torch.stack([axis.flatten() for axis in axes], dim=1).float()
    check(points, len(points))
    check(points / 8 - 100, len(points) // 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 8))
def test_integers_with_many_duplicates(count, dimensions, values, seed, candidates):
    points = torch.randint(values, (60, dimensions), generator=torch.Generator().manual_seed(seed)).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "CANDIDATES", candidates)
        check(points, count, seed=seed, block_bytes=seed % 3000 + 1)


def test_identical_points():
    assert len(set(k_centre(torch.full((20, 3), 7.5), 20).tolist())) == 20


@pytest.mark.parametrize("dimensions", [1, 3, 152, 1024, 1536])
def test_distances_are_exact(dimensions):
    """Sums in any order agree, and equal those of Python integers."""
    points = random(40, dimensions) * 10**-3 + 5
    cover = coreset.Cover(points, 10**6)
    cover.add([0, 7, 11])
    lattice = cover.on_lattice(points, cover.empty(*points.shape))
    assert lattice.abs().max() * 2 ** ((dimensions - 1).bit_length() / 2) <= 2**25.1
    rows = [[int(value) for value in row] for row in lattice.tolist()]
    for index, row in enumerate(rows):
        expected = min(sum((a - b) ** 2 for a, b in zip(row, rows[c], strict=True)) for c in (0, 7, 11))
        assert cover.distances[index] == (-1 if index in (0, 7, 11) else expected)
    moved = (lattice - cover.offset) / cover.scale - points
    assert moved.abs().max() <= 2.0**-18 * (points.amax(0) - points.amin(0)).max()


def test_seed_determines_the_first_centre():
    points = random(100, 3)
    assert k_centre(points, 5, seed=3).equal(k_centre(points, 5, seed=3))
    assert len({int(k_centre(points, 1, seed=seed)) for seed in range(20)}) > 10


def test_centres_are_at_least_the_covering_radius_apart():
    """Gonzalez 1985: distances between centres are at least the covering radius."""
    points = random(2000, 4)
    chosen = points[k_centre(points, 50)].double()
    radius = torch.cdist(points.double(), chosen).amin(dim=1).max()
    assert torch.pdist(chosen).min() >= radius - 1e-4


def test_progress_counts_every_centre():
    steps = []
    k_centre(random(3000, 6), 1500, advance=steps.append)
    assert sum(steps) == 1500
    assert max(steps) <= coreset.CENTRES


def test_points_are_not_modified():
    points = random(100, 3)
    before = points.clone()
    k_centre(points, 10)
    assert points.equal(before)


@pytest.mark.parametrize("count", [0, 11])
def test_more_centres_than_points(count):
    with pytest.raises(ValueError, match=f"{count} centres of 10 points; expected 1 to 10"):
        k_centre(random(10, 2), count)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_points_must_be_finite(bad):
    points = random(10, 2)
    points[4, 1] = bad
    with pytest.raises(ValueError, match="expected finite numbers"):
        k_centre(points, 3)
