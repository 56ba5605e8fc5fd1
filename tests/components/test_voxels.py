"""Grids of voxels: what fills them, the camera, and the way back to pixels; turned scans."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_bench.components.scans import background_axis, turn_points
from anomaly_bench.components.voxels import MARGIN, Voxels
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import scans

CALIBRATION = Path(__file__).parents[3] / "shared" / "data" / "mvtec3d_meta" / "camera_parameters.json"
GRID = 16


def fitted(pixels=None, grid=GRID):
    voxels = Voxels(grid)
    voxels.fit(TrainingSet("scans", scans("xyz", 4) if pixels is None else pixels), 2)
    return voxels


def as_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_a_point_fills_its_cell():
    """Exactly the cells with points are 1; with colours they hold the mean of their points' colours."""
    pixels = scans("xyz", 2)
    voxels = fitted(pixels)
    colours = np.random.default_rng(0).random(pixels.shape, dtype=np.float32)
    shapes, coloured = voxels.fill(as_images(pixels)), voxels.fill(as_images(np.concatenate([colours, pixels], -1)))
    assert shapes.shape == (2, 1, GRID, GRID, GRID)
    for number in range(2):
        sums = {}
        for point, colour in zip(pixels[number].reshape(-1, 3), colours[number].reshape(-1, 3), strict=True):
            if point.any():
                x, y, z = np.floor((point - voxels.corner.numpy()) / voxels.cell.numpy()).astype(int)
                sums.setdefault((z, y, x), []).append(colour)
        assert {tuple(place) for place in (shapes[number, 0] == 1).nonzero().tolist()} == sums.keys()
        assert int((shapes[number] == -1).sum()) == GRID**3 - len(sums)
        for place, found in sums.items():
            assert coloured[number][:, *place].numpy() == pytest.approx(np.mean(found, axis=0), abs=1e-5)
        assert (coloured[number].permute(1, 2, 3, 0)[shapes[number, 0] == -1] == -1).all()


def test_pixels_without_a_value_fill_no_voxel():
    voxels = fitted()
    assert (voxels.fill(torch.zeros(1, 3, 64, 64)) == -1).all()
    one = torch.zeros(1, 3, 64, 64)
    one[0, :, 30, 30] = torch.tensor([0.0, 0.0, 0.5])
    assert int((voxels.fill(one) == 1).sum()) == 1


def test_the_grid_holds_all_training_points_and_points_outside_fill_its_border():
    pixels = scans("xyz", 4)
    voxels, points = fitted(pixels), pixels[pixels.any(axis=3)]
    low, side = voxels.corner.numpy(), float(voxels.cell) * GRID
    assert side == pytest.approx(MARGIN * (points.max(axis=0) - points.min(axis=0)).max(), rel=1e-5)
    assert (points > low).all()
    assert (points < low + side).all()
    far = torch.zeros(1, 3, 64, 64)
    far[0, :, 0, 0] = torch.tensor([9.0, 0.0, -9.0])
    (place,) = (voxels.fill(far)[0, 0] == 1).nonzero().tolist()
    assert (place[0], place[2]) == (0, GRID - 1)


def test_the_camera_is_found():
    """Points made by a pinhole: the fitted camera projects each to its pixel."""
    pixels = scans("xyz", 4)
    voxels = fitted(pixels)
    _, rows, columns = np.nonzero(pixels.any(axis=3))
    points = pixels[pixels.any(axis=3)]
    found = (points / points[:, 2:]) @ voxels.camera.numpy().T
    assert np.abs(found - np.stack([columns, rows], axis=1)).max() < 0.01


@pytest.mark.skipif(not CALIBRATION.exists(), reason="needs the calibration of MVTec 3D-AD in ../shared/data")
def test_a_fitted_pinhole_is_close_to_the_calibrated_camera_of_the_real_dataset():
    """Points on a plane, seen by the tire's camera with its lens distortion (HALCON's division model)."""
    camera = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    height, width, size = camera["image_height"], camera["image_width"], 100
    rows, columns = np.meshgrid(np.linspace(0, height - 1, size), np.linspace(0, width - 1, size), indexing="ij")
    x, y = (columns - camera["cx"]) * camera["sx"], (rows - camera["cy"]) * camera["sy"]
    rays = np.stack([x, y], axis=-1) / (1 + camera["kappa"] * (x**2 + y**2))[..., None] / camera["focus"]
    points = 0.5 * np.concatenate([rays, np.ones((size, size, 1))], axis=-1)
    voxels = fitted(np.float32(points)[None])
    found = np.concatenate([rays, np.ones((size, size, 1))], axis=-1) @ voxels.camera.double().numpy().T
    found *= [(width - 1) / (size - 1), (height - 1) / (size - 1)]  # pixels of the real image
    errors = np.linalg.norm(found - np.stack([columns, rows], axis=-1), axis=-1)
    assert 0 < np.median(errors) < 1, "pixels of 600 x 800"
    assert errors.max() < 4, "in the corners, where the lens bends most"


def test_a_voxel_returns_to_the_pixels_of_its_points():
    """By a loop over voxels: each projects to the rectangle of its cross-section, pixels take the largest value."""
    voxels = fitted(grid=8)
    values = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = np.zeros((64, 64))
    (low, cell), camera = (voxels.corner.double().numpy(), float(voxels.cell)), voxels.camera.double().numpy()
    for z, y, x in np.ndindex(8, 8, 8):
        depth = low[2] + (z + 0.5) * cell
        corners = [camera @ ((low[0] + (x + i) * cell) / depth, (low[1] + (y + i) * cell) / depth, 1) for i in (0, 1)]
        (left, top), (right, bottom) = corners
        rows, columns = np.arange(64)[:, None], np.arange(64)
        there = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
        expected[there] = np.maximum(expected[there], float(values[0, z, y, x]))
    found = voxels.project(values, (64, 64))[0].numpy()
    assert (np.abs(found - expected) > 1e-6).mean() < 0.01, "but for pixels on the edge of a cell"


def test_a_removed_part_raises_the_map_at_its_pixels():
    pixels = scans("xyz", 4)
    voxels = fitted(pixels, grid=32)
    image = as_images(pixels[:1])
    holed = image.clone()
    holed[:, :, 30:40, 20:30] = 0
    maps = voxels.project((voxels.fill(image) - voxels.fill(holed)).abs()[:, 0], (64, 64))[0]
    assert (maps[33:37, 23:27] == 2).all()
    assert (maps[:24] == 0).all()
    assert (maps[:, 36:] == 0).all()


def test_turned_points_return_and_keep_their_distance_from_the_plane():
    points = as_images(scans("xyz", 2))
    axes = torch.nn.functional.normalize(torch.tensor([[0.1, 0.2, 1.0], [0.0, -0.1, 1.0]]), dim=1)
    angles = torch.tensor([0.08, -0.05])
    turned = turn_points(points, angles, axes)
    assert torch.allclose(turn_points(turned, -angles, axes), points, atol=1e-6)
    assert (turned[:, :, :2, :2] == 0).all()
    distances = [(each * axes[:, :, None, None]).sum(dim=1) for each in (points, turned)]
    assert torch.allclose(*distances, atol=1e-6)
    assert (turned - points).abs().max() > 0.005


def test_the_background_plane_is_found_beside_an_object():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    points = torch.stack([columns / 100, rows / 100, 0.5 + 0.1 * columns / 100])
    points[2, 20:44] -= 0.1  # an object that reaches over two borders
    points[:, :3] = 0
    axis = background_axis(points)
    expected = torch.tensor([-0.1, 0.0, 1.0]) / math.hypot(0.1, 1)
    assert torch.allclose(axis, expected, atol=1e-4)
    assert torch.equal(background_axis(torch.zeros(3, 64, 64)), torch.tensor([0.0, 0.0, 1.0]))


def test_scans_without_points_are_refused():
    with pytest.raises(ValueError, match="no points"):
        fitted(np.zeros((2, 8, 8, 3), np.float32))
