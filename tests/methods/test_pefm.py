"""PEFM against a slow version written from the paper's and the code's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components import position_code
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.pefm import PEFM
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.testing.setup import Setup, pictures

KERNELS = [torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(count)) for count in (8, 4, 12, 16)]


def networks(images):
    """Two tiny frozen networks with two levels each, of strides 4 and 8."""
    return [F.relu(F.conv2d(images, kernel, stride=4 + 4 * (n % 2))) for n, kernel in enumerate(KERNELS)]


def fit(method):
    fit_method(method, SHAPES, TrainingSet("cog", pictures(24)), seed=0)
    return method.requires_grad_(False)


SHAPES = [tuple(level.shape[1:]) for level in networks(torch.rand(1, 3, 64, 64))]


@pytest.fixture(scope="module")
def method():
    return fit(PEFM(networks, [6, 5], epochs=8))


def slow(network, x, training):
    """A chain of linear layers, all but the last followed by batch norm and ReLU, in float64."""
    layers = [each for each in network if not isinstance(each, torch.nn.ReLU)]
    for layer in layers:
        weights = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
        if isinstance(layer, torch.nn.Linear):
            x = x @ weights["weight"].T + weights["bias"]
            continue
        mean, variance = (weights["running_mean"], weights["running_var"])
        if training:
            mean, variance = x.mean(axis=0), x.var(axis=0)
        x = np.maximum((x - mean) / np.sqrt(variance + layer.eps) * weights["weight"] + weights["bias"], 0)
    return x


def errors(method, pixels, training=False):
    """For each level, the errors (B, h, w, C) of the first and second network's features."""
    levels = [level.double().numpy() for level in networks(to_tensor(pixels))]
    levels = [level / np.sqrt((level**2).sum(axis=1, keepdims=True)) for level in levels]
    found = []
    for first, second, p in zip(levels[:2], levels[2:], method.projectors, strict=True):
        targets, given = [], []
        for features in (first, second):
            targets.append(features.transpose(0, 2, 3, 1))
            code = position_code.position_code(*features.shape[1:]).double().numpy()
            given.append((features + code).transpose(0, 2, 3, 1).reshape(-1, features.shape[1]))
        of_second = slow([*p.encode_first, p.shared, *p.decode_second], given[0], training)
        of_first = slow([*p.encode_second, p.shared, *p.decode_first], given[1], training)
        found.append(
            [targets[0] - of_first.reshape(targets[0].shape), targets[1] - of_second.reshape(targets[1].shape)]
        )
    return found


def test_maps_and_scores_follow_the_equations(method):
    pixels = pictures(2, first=900)
    pixels[0, 20:30, 20:30] = (255, 0, 0)
    maps = [(a**2).sum(axis=-1) / 2 + (b**2).sum(axis=-1) / 2 for a, b in errors(method, pixels)]
    large = [F.interpolate(torch.from_numpy(each)[:, None], size=(64, 64), mode="bilinear")[:, 0] for each in maps]
    expected = (sum(large) / 2).numpy()
    result = method.score(to_tensor(pixels))
    np.testing.assert_allclose(result.map, expected, rtol=1e-4)
    np.testing.assert_allclose(result.image, expected.max(axis=(1, 2)), rtol=1e-4)


def unfitted():
    method = PEFM(networks, [6, 5], epochs=1)
    method.build(SHAPES)
    return method


def test_loss_is_the_sum_of_both_mean_squared_errors():
    pixels, method = pictures(3), unfitted()
    expected = sum((each**2).mean() for pair in errors(method, pixels, training=True) for each in pair)
    assert float(method.loss(method.read(to_tensor(pixels))).detach()) == pytest.approx(expected, rel=1e-5)


def test_levels_are_trained_independently():
    """A shared optimiser is equivalent to one per level: a level trained alone gives the same projector."""
    method, alone = unfitted(), unfitted()
    alone.load_state_dict(method.state_dict())
    levels = method.read(to_tensor(pictures(4)))
    optimiser = torch.optim.Adam(method.parameters(), 1e-2, weight_decay=1e-3)
    single = torch.optim.Adam(alone.projectors[1].parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        method.loss(levels).backward()
        optimiser.step()
        single.zero_grad()
        sum(error.square().mean() for error in alone.errors(levels)[1]).backward()
        single.step()
    for a, b in zip(method.projectors[1].parameters(), alone.projectors[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_extra_parameters_of_the_published_pair():
    """With the latents that the code has by default: 21.55 million."""
    setup = Setup("pefm", "r34_r50", ("backbone.weights=random", "method.latents=[200,400,900]"))
    with torch.device("meta"):
        method = setup.new()
        method.build(setup.network.shapes((256, 256)))
    counts = [sum(value.numel() for value in projector.parameters()) for projector in method.projectors]
    assert [round(count / 1e6, 3) for count in counts] == [0.894, 3.560, 17.101]


def test_tuned_latents_are_the_default():
    setup = Setup("pefm", "r34_r50", ("backbone.weights=random",))
    assert setup.config["method"]["latents"] == [200, 400, 800]


def test_default_latents_match_the_official_logs():
    setup = Setup("pefm", "r34_r50", ("backbone.weights=random", "method.latents=null"))
    with torch.device("meta"):
        method = setup.new()
        method.build(setup.network.shapes((256, 256)))
    assert [projector.shared.out_features for projector in method.projectors] == [200, 400, 800]


@pytest.mark.parametrize(
    ("backbone", "words", "expected"),
    [
        ("lite0", (), "expected two networks .*backbone=r34_r50 or backbone=lite0_lite1"),
        ("lite0", ("method.levels=[1,2]",), "expected two networks"),
        ("lite0_lite1", ("method.latents=[4]",), r"method.latents=\[4\]: expected 3 numbers"),
    ],
)
def test_incompatible_settings(backbone, words, expected):
    with pytest.raises(UsageError, match=expected):
        Setup("pefm", backbone, words).fitted(TrainingSet("cog", pictures(1)))


def test_single_network_is_rejected_in_one_line(command, tree):
    status, _, err = command("method=pefm", "dataset=folder", f"data_root={tree}", "input.resize=64")
    assert status == 2
    assert "error: method=pefm compares two networks" in err
    assert "Traceback" not in err


def test_strong_anomalies_have_finite_and_larger_scores(method):
    images = to_tensor(pictures(1, first=900)).repeat(3, 1, 1, 1)
    images[1, :, 10:50, 10:50] = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    images[2] = 1e6  # not an image at all
    scores = method.score(images).image
    assert scores.isfinite().all()
    assert scores[0] < scores[1:].min()
