"""DifferNet against a slow version written from the paper's equations."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import rotate

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.differnet import DifferNet
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.testing.setup import Setup, pictures

KERNEL = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
make = functools.partial(DifferNet, epochs=2, hidden=6, views=3, train_views=5, blocks=2)


def network(images):
    """A tiny frozen network with one level: (B, 5, H / 4, W / 4)."""
    return [F.relu(F.conv2d(images, KERNEL, stride=4))]


def fit(method, pixels):
    fit_method(method, [(5, 16, 16)], TrainingSet("cog", pixels), seed=0)
    return method


@pytest.fixture(scope="module")
def method():
    return fit(make(network, lr=0.01), pictures(24)).requires_grad_(False)


def vectors(images):
    """(B, 15): averages over the image and over every second and fourth pixel."""
    scales = [images, images[..., ::2, ::2], images[..., ::4, ::4]]
    return np.concatenate([network(scale)[0].double().numpy().mean(axis=(2, 3)) for scale in scales], axis=1)


def halves_through(subnet, x):
    """Log-scale and shift predicted by a subnet for rows x, in float64."""
    for layer in subnet.layers:
        if isinstance(layer, torch.nn.ReLU):
            x = np.maximum(x, 0)
        else:
            x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    raw, shift = np.split(x, 2, axis=1)
    return 3 * 0.636 * np.arctan(raw / 3), shift


def slow(method, x):
    """The flow's z and log-determinants for rows x."""
    total = np.zeros(len(x))
    for block in method.flow:
        x = x[:, block.order0.numpy()]
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        scale, shift = halves_through(block.from_second, second)
        first, total = first * np.exp(scale) + shift, total + scale.sum(axis=1)
        scale, shift = halves_through(block.from_first, first)
        second, total = second * np.exp(scale) + shift, total + scale.sum(axis=1)
        x = np.concatenate([first, second], axis=1)
    return x, total


def test_scores_are_the_mean_over_rotations(method):
    images = to_tensor(pictures(2, first=900))
    images[0, :, 20:30, 20:30] = 0
    expected = np.zeros(2)
    for angle in (0.0, 120.0, 240.0):
        z, _ = slow(method, vectors(rotate(images, angle)))
        expected += (z**2).mean(axis=1) / 3
    result = method.score(images)
    assert result.map is None
    np.testing.assert_allclose(result.image, expected, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_scores_do_not_depend_on_rotations_per_pass(method, count, monkeypatch):
    seen = []

    def counting(images):
        seen.append(len(images))
        return network(images)

    images = to_tensor(pictures(count, first=900))
    expected = torch.cat([method.score(each).image for each in torch.split(images, 1)])
    monkeypatch.setattr(method, "backbone", counting)
    torch.testing.assert_close(method.score(images).image, expected, rtol=1e-5, atol=0)
    assert max(seen) <= max(32, count)


def test_loss_is_the_likelihood_per_dimension(method):
    x = vectors(to_tensor(pictures(4)))
    z, log_det = slow(method, x)
    expected = ((z**2).sum(axis=1) / 2 - log_det).mean() / x.shape[1]
    assert float(method.loss(torch.from_numpy(x).float())) == pytest.approx(expected, rel=1e-4)


def test_stored_vectors_match_rotated_images():
    images = to_tensor(pictures(3))
    torch.manual_seed(5)
    (kept,) = make(network).random_views(images)
    torch.manual_seed(5)
    angles = 360 * torch.rand(5, 3)
    assert kept.shape == (3, 15, 5, 1)
    for view, image in [(0, 0), (4, 2)]:
        turned = rotate(images[image : image + 1], float(angles[view, image]))
        np.testing.assert_allclose(kept[image, :, view, 0], vectors(turned)[0], rtol=1e-4)


def test_batch_has_some_rotations_of_each_image():
    kept = (torch.arange(2)[:, None, None, None] * 100 + torch.arange(5)[:, None]).expand(2, 15, 5, 1).float()
    epoch = type("Epoch", (), {"generator": torch.Generator().manual_seed(0)})
    drawn = make(network).drawn(kept, epoch)
    assert drawn.shape == (8, 15)
    assert (drawn == drawn[:, :1]).all()
    assert (drawn[:4] < 5).all()
    assert ((drawn[4:] >= 100) & (drawn[4:] < 105)).all()
    assert len(drawn[:, 0].unique()) > 2


def passes(epochs, train_views):
    """Number of images the network processes when training on 3 images."""
    seen = []

    def counting(images):
        seen.append(len(images))
        return network(images)

    fit(make(counting, epochs=epochs, train_views=train_views), pictures(3))
    return sum(seen)


def test_fixed_rotations_pass_the_network_once_and_new_ones_every_epoch():
    assert passes(1, 2) == passes(3, 2)
    assert passes(3, 0) - passes(1, 0) == 2 * 3 * 4 * 3  # epochs x images x rotations x scales


def test_new_rotations_follow_the_seed():
    images = to_tensor(pictures(2))
    first, second = (fit(make(network, train_views=0), pictures(3)).score(images).image for _ in range(2))
    assert torch.equal(first, second)


def test_extra_parameters_of_the_published_backbone():
    setup = Setup("differnet", "alexnet", ("backbone.weights=random",))
    with torch.device("meta"):
        method = setup.new()
        method.build(setup.network.shapes((448, 448)))
    assert sum(value.numel() for value in method.parameters()) == 172_077_056


def test_images_too_small_for_the_smallest_scale(command, tree):
    words = ["method=differnet", "backbone=alexnet", "backbone.weights=random", "method.hidden=8", "method.epochs=1"]
    status, _, err = command(*words, "dataset=folder", f"data_root={tree}", "input.resize=128")
    assert status == 2
    assert "found images of 128 x 128 pixels" in err
    assert "at least 256 x 256" in err


@pytest.mark.parametrize("keys", [{"views": 0}, {"train_views": -1}])
def test_impossible_numbers_of_rotations(keys):
    with pytest.raises(UsageError, match=r"method.views=.*expected at least 1"):
        make(network, **keys)


def test_strong_anomalies_have_finite_and_larger_scores(method):
    factors = torch.tensor([1, 10, 1e2, 1e3, 1e4, 1e5])
    scores = method.score(to_tensor(pictures(1, first=900)) * factors.view(-1, 1, 1, 1)).image
    assert scores.isfinite().all()
    assert (scores.diff() > 0).all()
