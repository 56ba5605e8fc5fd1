"""Voxel AE: its weights, its size, and its maps; the contract tests that it learns."""

from __future__ import annotations

import pytest
import torch
from setups import setup

from anomaly_bench.components.scans import Views
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.voxel_ae import VoxelAE, share_filled
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import scans


def built(channels=3):
    method = setup("voxel_ae").new()
    torch.manual_seed(0)
    method.build([(channels, 64, 64)])
    return method


def test_weights_of_filled_and_empty_voxels():
    """Over the training scans their sums are equal, and the mean is 1."""
    method, normals = built(), TrainingSet("scans", scans("xyz", 6))
    method.voxels.fit(normals, 4)
    method.filled.copy_(share_filled(Views(normals, 3, lambda images, *_: method.voxels.fill(images)), 4))
    grids = method.voxels.fill(normals.select(torch.arange(6)))
    weights, empty = method.weights(grids), grids == -1
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights[empty].sum().item() == pytest.approx(weights[~empty].sum().item(), rel=1e-4)


@pytest.mark.parametrize("channels", [3, 6])
def test_maps_are_distances_from_the_restoration(channels):
    method, pixels = built(channels), torch.from_numpy(scans("xyz", 4)).permute(0, 3, 1, 2)
    images = torch.cat([torch.rand(4, channels - 3, 64, 64), pixels], dim=1)
    method.voxels.fit(TrainingSet("scans", images.permute(0, 2, 3, 1).numpy()), 4)
    method.eval()
    grids = method.voxels.fill(images)
    expected = (grids - method.network(grids)).square().sum(dim=1).sqrt()
    found = method.score(images)
    assert torch.allclose(found.map, method.voxels.project(expected, (64, 64)), atol=1e-5)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    method.network = torch.nn.Identity()  # a perfect restoration
    assert (method.score(images).map == 0).all()


def test_parameters():
    for channels, millions in ((3, 13.90), (6, 13.91)):
        with torch.device("meta"):
            method = VoxelAE(epochs=1)
            method.build([(channels, 256, 256)])
        assert round(sum(part.numel() for part in method.parameters()) / 1e6, 2) == millions


def test_sides_of_the_grid_are_powers_of_two():
    with pytest.raises(UsageError, match=r"method.grid=48: expected a power of two"):
        VoxelAE(epochs=1, grid=48)
