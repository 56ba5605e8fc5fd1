"""The search through levels against all pairs of patches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from anomaly_bench.components import cell_search
from anomaly_bench.components.cell_search import grouped, lower_, positions_of_cells


@pytest.mark.parametrize("few", [0.01, 10**6])  # one pair of cells in so many may be near: by pairs, or by products
@pytest.mark.parametrize("bytes", [1, 10**6])
@pytest.mark.parametrize("grids", [[(6, 8), (3, 4)], [(7, 9), (4, 5), (2, 3)], [(8, 8), (4, 4), (2, 2), (1, 1)]])
def test_best_distances_are_those_of_all_pairs(monkeypatch, few, bytes, grids):
    monkeypatch.setattr(cell_search, "FEW", few)
    monkeypatch.setattr(cell_search, "cache_bytes", lambda device: bytes)
    parts = [positions_of_cells(*pair) for pair in pairwise(grids)]
    random = torch.Generator().manual_seed(0)
    images = [[torch.rand(*grid, 5 + index, generator=random) for index, grid in enumerate(grids)] for _ in range(3)]
    patches, *others = (together(levels) for levels in images)
    distances = [torch.cdist(patches, other).square().amin(dim=1) for other in others]
    best = torch.full((len(patches),), torch.inf)
    groups = [grouped(levels, parts) for levels in images]
    lower_(best, groups[0], groups[1], parts)
    torch.testing.assert_close(best, distances[0])
    lower_(best, groups[0], groups[2], parts)
    torch.testing.assert_close(best, torch.minimum(*distances))
    known = best * torch.linspace(0.5, 1, len(best))
    again = known.clone()
    lower_(again, groups[0], groups[1], parts)
    assert torch.equal(again, known), "no patch is nearer"


def together(levels):
    """(h, w, C) of each level -> (h * w, sum of C), each level replicated to the grid of the one before."""
    result = levels[-1]
    for level in reversed(levels[:-1]):
        rows, columns = (
            torch.arange(side) * coarse // side for side, coarse in zip(level.shape[:2], result.shape[:2], strict=True)
        )
        result = torch.cat([level, result[rows[:, None], columns]], dim=2)
    return result.flatten(0, 1)


@pytest.mark.parametrize(("fine", "coarse"), [((4, 6), (2, 3)), ((17, 18), (9, 9)), ((5, 5), (5, 5)), ((7, 3), (2, 2))])
def test_cells_are_the_positions_of_one_coarse_position(fine, coarse):
    found = positions_of_cells(fine, coarse)
    assert found.shape[0] == coarse[0] * coarse[1]
    for cell, positions in enumerate(found.tolist()):
        expected = {
            i * fine[1] + j
            for i in range(fine[0])
            for j in range(fine[1])
            if (i * coarse[0] // fine[0], j * coarse[1] // fine[1]) == divmod(cell, coarse[1])
        }
        assert set(positions) == expected
