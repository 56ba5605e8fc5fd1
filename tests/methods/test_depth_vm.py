"""Depth VM against its closed form, on depth alone and with colours; turned views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from setups import setup

from anomaly_bench.components.scans import ANGLE, Views, turn_images
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures, scans


def coloured(count, first=0):
    return np.concatenate([pictures(count, first).astype(np.float32) / 255, scans("depth", count, first)], axis=-1)


@pytest.mark.parametrize("make", [lambda count, first=0: scans("depth", count, first), coloured])
def test_vm_in_closed_form(make):
    """Without turned views: the norm over channels of |x - mean| / deviation, of depths over the largest one."""
    pixels, tested = make(6), make(2, 500)
    method = setup("depth_vm").new(views=1)
    method.build([(pixels.shape[3], 64, 64)])
    method.fit(TrainingSet("scans", pixels))
    method.eval()
    scale = np.array([1.0] * (pixels.shape[3] - 1) + [pixels[..., -1].max()])
    floors = np.array([1 / 255] * (pixels.shape[3] - 1) + [1e-3])
    known, x = pixels.astype(np.float64) / scale, tested.astype(np.float64) / scale
    expected = np.linalg.norm((x - known.mean(axis=0)) / np.maximum(known.std(axis=0), floors), axis=3)
    found = method.score(to_tensor(tested))
    assert np.allclose(found.map, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))


def test_a_lost_pixel_is_a_depth_of_zero():
    pixels = scans("depth", 6)
    method = setup("depth_vm").new(views=1)
    method.build([(1, 64, 64)])
    method.fit(TrainingSet("scans", pixels))
    method.eval()
    images = to_tensor(pixels[:1])
    images[0, 0, 40, 40] = 0
    column = pixels[:, 40, 40, 0] / pixels.max()
    expected = column.mean() / max(column.std(), 1e-3)
    assert float(method.score(images).map[0, 40, 40]) == pytest.approx(expected, rel=1e-3)
    assert float(method.score(to_tensor(pixels[:1])).map[0, 0, 0]) == 0, "no training scan has a value there"


def test_turned_images_return():
    """Nothing is mixed: values are those of the image, also outside; and turning back shows the image again."""
    images = to_tensor(scans("depth", 2)) + 0.1
    angles = torch.tensor([0.08, -0.05])
    turned = turn_images(images, angles)
    assert set(turned.unique().tolist()) <= {*images.unique().tolist()}
    back = turn_images(turned, -angles)
    inner = (slice(None), slice(None), slice(12, 52), slice(12, 52))
    assert (back[inner] - images[inner]).abs().mean() < 0.1 * images[inner].std()
    assert torch.equal(turn_images(images, torch.zeros(2)), images)


def test_views_are_the_scan_and_turned_ones():
    torch.manual_seed(0)
    views = Views(TrainingSet("scans", scans("depth", 3)), 4, turn_images)
    assert len(views) == 12
    assert len(views.angles.unique()) == 3 * 3 + 1
    assert views.angles.abs().max() <= np.deg2rad(ANGLE)
    assert torch.equal(views.select(torch.tensor([4])), to_tensor(scans("depth", 1, 1)))
    assert torch.equal(torch.cat(list(views.batches(5))), views.select(torch.arange(12)))


def test_other_planes_and_counts_are_refused():
    with pytest.raises(UsageError, match="Depth VM: images of 3 channels; expected depth 1"):
        setup("depth_vm").new().build([(3, 64, 64)])
    with pytest.raises(UsageError, match=r"method.views=0"):
        Views(TrainingSet("scans", scans("depth", 1)), 0, turn_images)
