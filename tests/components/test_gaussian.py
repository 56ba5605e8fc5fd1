"""Shared tensor operations against scipy, torch and slow float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from anomaly_bench.components import augmentation, gaussian, position_code, upsampling


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), (28, 28)), ((14, 10), (50, 41)), ((3, 5), (12, 20)), ((8, 8), (8, 8))]
)
@pytest.mark.parametrize("sigma", [0.0, 1.5, 4.0])
def test_smooth_upsample_is_interpolation_then_scipy_blur(grid, size, sigma):
    maps = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(maps[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(each, sigma) if sigma else each for each in large])
    found = upsampling.smooth_upsample(maps, size, sigma)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_align_replicates_deeper_levels_and_selects_channels():
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 5, 2, 2, generator=generator)]
    rows = upsampling.align(levels, [torch.tensor([2]), torch.tensor([0, 4])])
    assert rows.shape == (16, 2, 3)
    for i in range(4):
        for j in range(4):
            for b in range(2):
                expected = [levels[0][b, 2, i, j], levels[1][b, 0, i // 2, j // 2], levels[1][b, 4, i // 2, j // 2]]
                assert rows[i * 4 + j, b].tolist() == [float(value) for value in expected]
    assert upsampling.align(levels).shape == (16, 2, 8)


@pytest.mark.parametrize("batches", [[20], [7, 13], [1, 1, 18], [6, 6, 6, 2]])
def test_moments_match_numpy_for_any_batching(batches):
    x = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(0)) * 3 + 100  # a mean far from zero
    moments = gaussian.Moments(torch.empty(4, 6), torch.empty(4, 6, 6))
    for part in x.split(batches, dim=1):
        moments.add_(part.clone())
    moments.finish()
    for position in range(4):
        values = x[position].double().numpy()
        np.testing.assert_allclose(moments.mean[position], values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.scatter[position] / 19, np.cov(values.T), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block_bytes", [1, 8 * 36 * 2, 10**9])
def test_whitened_length_is_the_mahalanobis_distance(block_bytes):
    x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1))  # fewer images than dimensions
    moments = gaussian.Moments(torch.empty(5, 6), torch.empty(5, 6, 6))
    moments.add_(x.clone())
    moments.finish()
    gaussian.whiten_(moments.scatter, 3, 0.01, block_bytes)
    tested = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(2))
    found = gaussian.mahalanobis(tested, moments.mean, moments.scatter)
    for p in range(5):
        inverse = np.linalg.inv(np.cov(x[p].double().numpy().T) + 0.01 * np.eye(6))
        for b in range(2):
            difference = (tested[p, b].double() - x[p].double().mean(0)).numpy()
            assert float(found[p, b]) == pytest.approx(np.sqrt(difference @ inverse @ difference), rel=1e-4)


@pytest.mark.parametrize(("channels", "height", "width"), [(8, 3, 5), (24, 4, 4)])
def test_position_code_is_sines_and_cosines_of_columns_then_rows(channels, height, width):
    expected = np.empty((channels, height, width))
    for channel, row, column in np.ndindex(channels, height, width):
        half = channel % (channels // 2)
        place = column if channel < channels // 2 else row
        angle = place / 10000 ** (half // 2 * 2 / (channels // 2))
        expected[channel, row, column] = np.cos(angle) if half % 2 else np.sin(angle)
    np.testing.assert_allclose(position_code.position_code(channels, height, width), expected, atol=1e-6)


def test_position_code_of_an_odd_number_of_channels():
    with pytest.raises(ValueError, match="position code of 6 channels: expected a multiple of 4"):
        position_code.position_code(6, 2, 2)


@pytest.mark.parametrize("size", [(32, 32), (20, 36)])
def test_rotation_matches_torchvision(size):
    from torchvision.transforms.v2.functional import rotate

    images = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([0.0, 5.625, -33.0, 200.0])
    found = augmentation.rotate_images(images, angles)
    for number, angle in enumerate(angles.tolist()):
        expected = rotate(images[number : number + 1], angle)[0]
        same = (found[number] == expected).all(dim=0).float().mean()
        assert same > 0.99, "except for ties between two pixels"
    assert torch.equal(augmentation.rotate_images(images, torch.full((4,), 0.0)), images)


def test_a_quarter_turn_is_exact():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmentation.rotate_images(images, torch.tensor([90.0, -90.0]))[0], images[0].rot90(1, (1, 2)))
    assert torch.equal(augmentation.rotate_images(images, torch.tensor([90.0, -90.0]))[1], images[1].rot90(-1, (1, 2)))
