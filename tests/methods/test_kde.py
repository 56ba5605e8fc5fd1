"""KDE against scikit-learn's KernelDensity and GridSearchCV, with the preprocessing of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.kde import KDE
from anomaly_bench.protocol import TrainingSet, to_tensor

PAPER = [0.5, 5, 10]
RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.normal(110, 30, (200, 1, 1, 3)) + RANDOM.normal(0, 20, (200, 8, 8, 3))
TRAIN, TEST = TRAIN.clip(0, 255).astype(np.uint8), RANDOM.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def fitted(bandwidths=PAPER, pixels=TRAIN, **settings):
    method = KDE(size=32, variance=0.95, bandwidths=bandwidths, folds=5, **settings)
    method.build([(3, *pixels.shape[1:3])])
    method.fit(TrainingSet("points", pixels))
    return method.eval()


def slow_vectors(pixels):
    """Contrast normalisation, one image after the other."""
    rows = []
    for image in (pixels / np.float32(255)).astype(np.float64).reshape(len(pixels), -1):
        centred = image - image.mean()
        rows.append(centred / np.abs(centred).sum())
    return np.array(rows)


def slow(bandwidths):
    """The bandwidth of scikit-learn's grid search, its scores, and the scores of a sum of kernels."""
    train = slow_vectors(TRAIN)
    low, high = train.min(), train.max()
    pca = PCA(0.95, svd_solver="full").fit((train - low) / (high - low))
    points, tested = (pca.transform((slow_vectors(each) - low) / (high - low)) for each in (TRAIN, TEST))
    search = GridSearchCV(KernelDensity(rtol=0, atol=0), {"bandwidth": bandwidths}, cv=KFold(5)).fit(points)
    bandwidth, dimensions = search.best_params_["bandwidth"], points.shape[1]
    squared = ((tested[:, None] - points) ** 2).sum(axis=2)
    kernels = np.exp(-squared / (2 * bandwidth**2)) / (2 * np.pi * bandwidth**2) ** (dimensions / 2)
    return bandwidth, -search.best_estimator_.score_samples(tested), -np.log(kernels.mean(axis=1))


def test_equals_scikit_learn():
    method = fitted()
    bandwidth, *expected = slow(2 ** np.linspace(0.5, 5, 10))
    assert method.bandwidth.item() == pytest.approx(bandwidth)
    scores = method.score(to_tensor(TEST))
    assert scores.map is None
    for scored in expected:
        np.testing.assert_allclose(scores.image, scored, rtol=1e-6)


def test_the_bandwidth_is_that_of_a_grid_search():
    """Neither the smallest nor the largest: the likelihood includes -k log h."""
    grid = [-4.5, 5, 20]
    bandwidth, _, expected = slow(2 ** np.linspace(*grid))  # scikit-learn's tree loses small densities
    method = fitted(grid)
    assert method.bandwidth.item() == pytest.approx(bandwidth)
    assert 2**-4.5 < bandwidth < 2**0.5, "so float32 statistics count for more"
    np.testing.assert_allclose(method.score(to_tensor(TEST)).image, expected, rtol=1e-5)


def test_scores_ignore_contrast_and_brightness():
    images = to_tensor(TEST)
    method = fitted()
    torch.testing.assert_close(method.score(0.5 * images + 0.1).image, method.score(images).image)


def test_larger_images_are_resized():
    large = TRAIN[:20].repeat(8, axis=1).repeat(8, axis=2)
    method = fitted(pixels=large)
    assert method.mean.shape == (3 * 32 * 32,)
    assert method.score(to_tensor(large[:2])).image.shape == (2,)


def test_invalid_settings_and_sizes():
    with pytest.raises(UsageError, match=r"method.bandwidths=\[1, 2\]: expected \[first exponent"):
        KDE(32, 0.95, [1, 2], 5)
    with pytest.raises(UsageError, match=r"method.variance=1.5: expected a share"):
        KDE(32, 1.5, PAPER, 5)
    with pytest.raises(UsageError, match=r"method.folds=1: expected at least 2"):
        KDE(32, 0.95, PAPER, 1)
    with pytest.raises(ValueError, match=r"points: 3 training images; expected at least method.folds=5"):
        fitted(pixels=TRAIN[:3])
    with pytest.raises(ValueError, match="images of 243 values; expected 192, as in fit"):
        fitted().score(torch.zeros(1, 3, 9, 9))
