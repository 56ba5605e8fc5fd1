"""Maps from scores of patches: against a transposed convolution, and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components.patch_maps import between, covering, gaussian, spread
from anomaly_bench.components.patches import starts


def test_gaussians_are_a_transposed_convolution():
    """A Gaussian of 64 pixels and deviation 16, stride 4, divided by the same of ones."""
    line = torch.exp(-0.5 * ((torch.arange(64) - 31.5) / 16) ** 2)
    kernel = (line[:, None] * line)[None, None]
    places = [starts(256, 64, 4)] * 2

    def enlarged(scores):
        return spread(scores, (256, 256), places, 64, gaussian)

    grid = torch.rand(1, 49, 49)
    sums, weights = (F.conv_transpose2d(each, kernel, stride=4) for each in (grid, torch.ones_like(grid)))
    assert sums.shape == (1, 256, 256)
    torch.testing.assert_close(enlarged(grid), sums / weights)
    torch.testing.assert_close(enlarged(torch.full((1, 49, 49), 3.0)), torch.full((1, 256, 256), 3.0))
    single = torch.zeros(1, 49, 49)
    single[0, 20, 30] = 1
    row, column = divmod(int(enlarged(single).argmax()), 256)
    assert abs(row - (4 * 20 + 31.5)) <= 2
    assert abs(column - (4 * 30 + 31.5)) <= 2


def test_patches_reach_borders_that_are_no_multiple_of_the_stride():
    assert starts(70, 32, 16) == [0, 16, 32, 38]
    torch.testing.assert_close(gaussian(70, starts(70, 32, 16), 32).sum(dim=1), torch.ones(70))


@pytest.mark.parametrize(("side", "stride", "cells"), [(64, 16, 13), (32, 4, 57)])
def test_the_mean_over_patches_that_cover_a_pixel(side, stride, cells):
    places = [starts(256, side, stride)] * 2

    def enlarged(scores):
        return spread(scores, (256, 256), places, side, covering)[0]

    first, middle = torch.zeros(2, 1, cells, cells)
    first[0, 0, 0] = middle[0, cells // 2, cells // 2] = 1
    found = enlarged(first)
    assert found.shape == (256, 256)
    if side == 64:
        assert [float(found[place, place]) for place in (0, 15, 16)] == [1.0, 1.0, 0.25]
    else:
        assert [float(found[place, place]) for place in (15, 16)] == pytest.approx([0.0625, 0.04])
    assert float(enlarged(middle).max()) == pytest.approx((stride / side) ** 2)
    torch.testing.assert_close(enlarged(torch.full_like(first, 3)), torch.full((256, 256), 3.0))


def test_sides_of_their_own():
    """Rows and columns of an image that is not square."""
    scores = torch.arange(6.0).view(1, 2, 3)
    found = spread(scores, (4, 6), [(0, 2), (0, 2, 4)], 2, covering)
    torch.testing.assert_close(found, scores.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_between_centres():
    found = between(10, (0, 4, 7), 3)  # centres 1, 5 and 8
    assert found.shape == (10, 3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(10))
    assert found[[0, 1, 2, 5, 9]].tolist() == [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]]
