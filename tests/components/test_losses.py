from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from anomaly_bench.components.losses import focal_loss, ssim, ssim_map


def images(seed, shape=(2, 3, 24, 31)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(a, b):
    """scikit-image's means and maps, image by image and channel by channel."""
    keys = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    pairs = [
        [structural_similarity(x, y, **keys) for x, y in zip(c, d, strict=True)] for c, d in zip(a, b, strict=True)
    ]
    means, maps = (np.array([[pair[part] for pair in row] for row in pairs]) for part in (0, 1))
    return means, maps


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_ssim_matches_scikit_image(noise):
    first = images(0)
    second = (first + noise * (images(1) - 0.5)).clamp(0, 1)
    means, maps = reference(first.numpy(), second.numpy())
    np.testing.assert_allclose(ssim_map(first, second).numpy(), maps, atol=1e-10)
    assert float(ssim(first, second)) == pytest.approx(means.mean(), abs=1e-10)


def test_ssim_in_float32():
    first, second = images(0), images(1)
    assert torch.allclose(ssim_map(first.float(), second.float()).double(), ssim_map(first, second), atol=1e-4)


def test_zero_padding_affects_only_the_border():
    first, second = images(0), images(1)
    mirror, zeros = ssim_map(first, second), ssim_map(first, second, zeros=True)
    inner = (..., slice(5, -5), slice(5, -5))
    assert torch.allclose(mirror[inner], zeros[inner])
    padded = [torch.nn.functional.pad(image, (5, 5, 5, 5)) for image in (first, second)]
    assert torch.allclose(ssim_map(*padded)[inner], zeros)


def test_image_is_identical_to_itself():
    assert torch.allclose(ssim_map(images(0), images(0)), torch.ones(()).double())


def test_gradients_of_similarity():
    second = images(1, (1, 1, 12, 12))
    assert torch.autograd.gradcheck(lambda first: ssim(first, second), images(0, (1, 1, 12, 12)).requires_grad_())


def slow_focal(logits, target, gamma=2.0, smooth=1e-5):
    losses = []
    batch, classes, height, width = logits.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                odds = np.exp(logits[b, :, i, j] - logits[b, :, i, j].max())
                probability = odds / odds.sum()
                weights = np.full(classes, smooth / (classes - 1))
                weights[target[b, i, j]] = 1 - smooth
                right = (weights * probability).sum() + smooth
                losses.append(-(max(1 - right, 0) ** gamma) * np.log(right))
    return np.mean(losses)


@pytest.mark.parametrize("classes", [2, 3])
def test_focal_loss_follows_the_equation(classes):
    logits = 5 * (images(0, (2, classes, 3, 4)) - 0.5)
    target = torch.randint(classes, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    assert float(focal_loss(logits, target)) == pytest.approx(slow_focal(logits.numpy(), target.numpy()), rel=1e-9)


def test_focal_loss_of_confident_predictions():
    right = torch.tensor([[20.0, -20.0]])[..., None, None]
    assert float(focal_loss(right, torch.zeros(1, 1, 1, dtype=torch.int64))) == pytest.approx(0, abs=1e-9)
    wrong = float(focal_loss(right, torch.ones(1, 1, 1, dtype=torch.int64)))
    assert wrong == pytest.approx(-np.log(2e-5), rel=1e-3)
    assert np.isfinite(float(focal_loss(1e4 * right, torch.ones(1, 1, 1, dtype=torch.int64))))
