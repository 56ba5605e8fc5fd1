"""PaDiM against a slow version written from the paper's equations."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures


def embeddings(setup, method, pixels):
    """(N, h, w, D) float64: levels read and dimensions picked position by position."""
    levels = [level.double().numpy() for level in setup.network(to_tensor(pixels))]
    count, (height, width) = len(pixels), levels[0].shape[-2:]
    rows = np.empty((count, height, width, sum(level.shape[1] for level in levels)))
    for i in range(height):
        for j in range(width):
            parts = [level[:, :, i * level.shape[2] // height, j * level.shape[3] // width] for level in levels]
            rows[:, i, j] = np.concatenate(parts, axis=1)
    return rows[..., method.chosen.numpy()]


@pytest.mark.parametrize("dimensions", [20, 176])
def test_maps_and_scores_follow_the_equations(dimensions):
    setup = Setup("padim", overrides=(f"method.dimensions={dimensions}",))
    train, test = pictures(24), pictures(2, first=900)
    test[0, 20:30, 20:30] = 0
    method = setup.fitted(TrainingSet("slow", train))
    known, tested = embeddings(setup, method, train), embeddings(setup, method, test)
    height, width = known.shape[1:3]
    distances = np.empty((2, height, width))
    for i in range(height):
        for j in range(width):
            mean = known[:, i, j].mean(axis=0)
            covariance = np.cov(known[:, i, j], rowvar=False) + 0.01 * np.eye(dimensions)
            inverse = np.linalg.inv(covariance)
            distances[:, i, j] = [mahalanobis(each, mean, inverse) for each in tested[:, i, j]]
    result = method.score(to_tensor(test))
    large = torch.nn.functional.interpolate(torch.from_numpy(distances)[:, None], size=(64, 64), mode="bilinear")
    expected = np.stack([gaussian_filter(each, 4) for each in large[:, 0].numpy()])
    np.testing.assert_allclose(result.map.numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(result.image.numpy(), expected.max(axis=(1, 2)), rtol=1e-3)


def test_random_dimensions_depend_only_on_the_seed():
    first, second = Setup("padim").fitted(), Setup("padim").fitted(TrainingSet("other", pictures(5, first=300)))
    assert torch.equal(first.chosen, second.chosen)
    assert len(first.chosen.unique()) == 100
    assert not torch.equal(first.chosen, Setup("padim", overrides=("seed=1",)).fitted().chosen)


def test_published_settings_per_backbone():
    assert Setup("padim", "r18").config["method"]["dimensions"] == 100
    assert Setup("padim", "wrn50").config["method"]["dimensions"] == 550
    assert Setup("padim", "wrn50", ("method.dimensions=30",)).config["method"]["dimensions"] == 30


def test_more_dimensions_than_channels():
    with pytest.raises(UsageError, match=r"method.dimensions=500.*176 channels"):
        Setup("padim", overrides=("method.dimensions=500",)).fitted()


def test_one_training_image_is_too_few():
    with pytest.raises(ValueError, match=r"1 training image.*at least 2"):
        Setup("padim").fitted(TrainingSet("single", pictures(1)))


def test_different_image_size_is_rejected():
    with pytest.raises(ValueError, match="score images of the same size"):
        Setup("padim").one.score(torch.rand(1, 3, 96, 96))


def test_stored_statistics_are_counted_without_data():
    """R18-Rd100 at 224 px: 3136 means and factors, 121 MiB."""
    setup = Setup("padim", "r18", ("backbone.weights=random",))
    method = setup.new()
    with torch.device("meta"):
        method.build(setup.network.shapes((224, 224)))
    stored = sum(buffer.nbytes for name, buffer in method.named_buffers() if name != "chosen")
    assert stored == 3136 * (100**2 + 100) * 4


MEMORY = """
import numpy as np, torch
from anomaly_bench.hardware import timing
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import Setup
torch.set_num_threads(2)
setup = Setup("padim", "wrn50", ("backbone.weights=random",))
pixels = np.random.default_rng(0).integers(0, 256, ({images}, {side}, {side}, 3), np.uint8)
timing.reset_peaks(torch.device("cpu"))
setup.fitted(TrainingSet("memory", pixels))
print(timing.peak_ram_mb())
"""


@pytest.mark.slow
def test_peak_memory_on_wrn50_is_little_more_than_the_statistics():
    """At 96 px: one copy of the statistics, the network and one batch's features."""
    code = MEMORY.format(images=40, side=96)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    statistics = 24 * 24 * 550 * 551 * 4 / 1e6  # MB
    assert float(done.stdout) < statistics + 1900
    gc.collect()
