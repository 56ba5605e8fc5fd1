"""Voxel VM against its closed form, on 3D data alone and with colours; other planes are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from setups import setup

from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures, scans


def coloured(count, first=0):
    return np.concatenate([pictures(count, first).astype(np.float32) / 255, scans("xyz", count, first)], axis=-1)


@pytest.mark.parametrize("make", [lambda count, first=0: scans("xyz", count, first), coloured])
def test_vm_in_closed_form(make):
    """Without turned views: |x - mean| / deviation of each voxel, and 2 sqrt(n) where no training scan had points."""
    pixels = make(6)
    method = setup("voxel_vm").new(views=1)
    torch.manual_seed(0)
    method.build([(pixels.shape[3], 64, 64)])
    method.fit(TrainingSet("scans", pixels))
    method.eval()
    grids = method.voxels.fill(to_tensor(pixels)).double().numpy()
    deviation = np.maximum(grids.std(axis=0), 6**-0.5)
    tested = to_tensor(make(2, 500))
    tested[:, -3:, 30:34, 30:34] *= 0.97  # nearer than any training point
    x = method.voxels.fill(tested).double().numpy()
    expected = np.linalg.norm((x - grids.mean(axis=0)) / deviation, axis=1)
    found = method.score(tested)
    assert torch.allclose(found.map, method.voxels.project(torch.from_numpy(expected).float(), (64, 64)), atol=1e-4)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    if pixels.shape[3] == 3:
        assert float(found.image.min()) == pytest.approx(2 * 6**0.5, abs=1e-4)


def test_images_are_no_coordinates():
    with pytest.raises(UsageError, match="Voxel VM: images of 4 channels; expected xyz 3"):
        setup("voxel_vm").new().build([(4, 64, 64)])
