"""Depth AE: its maps and its size; the contract tests that it learns."""

from __future__ import annotations

import pytest
import torch
from setups import setup

from anomaly_bench.errors import UsageError
from anomaly_bench.testing.setup import scans


@pytest.mark.parametrize("channels", [1, 4])
def test_maps_are_distances_from_the_restoration(channels):
    method = setup("depth_ae").new()
    torch.manual_seed(0)
    method.build([(channels, 64, 64)])
    method.mean.fill_(0.5)
    method.deviation.fill_(0.2)
    method.eval()
    depths = torch.from_numpy(scans("depth", 2)).permute(0, 3, 1, 2)
    colours = torch.rand(2, channels - 1, 64, 64)
    images = torch.cat([colours, depths], dim=1)
    scaled = (images - 0.5) / 0.2
    expected = (scaled - method.network(scaled)).square().sum(dim=1).sqrt()
    found = method.score(images)
    assert torch.allclose(found.map, expected, atol=1e-6)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    method.network = torch.nn.Identity()  # a perfect restoration
    assert (method.score(images).map == 0).all()


def test_images_are_square():
    with pytest.raises(UsageError, match="64 x 96 pixels; expected square ones"):
        setup("depth_ae").new().build([(1, 64, 96)])
