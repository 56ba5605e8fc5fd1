"""FastFlow against a slow version written from its equations, and the paper's settings."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components.flows import join
from anomaly_bench.config.instantiate import construct
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures

SMALL = ("method.steps=3", "method.epochs=2", "method.layer_norm=false")


def slow_flow(flow, level):
    """z and log-determinants for (B, C, h, w), in float64, one position and channel at a time."""
    x = level.double().numpy()
    log_det = np.zeros(len(x))
    for step in flow:
        half = x.shape[1] // 2
        raw = copy.deepcopy(step.subnet).double()(torch.from_numpy(x[:, :half])).detach().numpy()
        order, g, offset = (each.detach().numpy() for each in (step.order, step.scale, step.offset))
        changed, moved = x.copy(), np.empty_like(x)
        for b, c, i, j in np.ndindex(len(x), half, *x.shape[2:]):
            log_scale = 2 * math.tanh(0.1 * raw[b, c, i, j])
            changed[b, half + c, i, j] = x[b, half + c, i, j] * math.exp(log_scale) + 0.1 * raw[b, half + c, i, j]
            log_det[b] += log_scale
        for c in range(x.shape[1]):
            scale = 0.1 * 2 * math.log(1 + math.exp(g[order[c]] / 2))
            moved[:, c] = changed[:, order[c]] * scale + offset[order[c]]
            log_det += x.shape[2] * x.shape[3] * math.log(scale)
        x = moved
    return x, log_det


@pytest.fixture(scope="module")
def fitted():
    return Setup("fastflow", overrides=SMALL).fitted()


def assert_follows_the_equations(fitted, normalise):
    images = to_tensor(pictures(2, first=900))
    images[0, :, 20:30, 20:30] = 0
    loss, likelihoods = 0.0, []
    for level, flow, norm in zip(fitted.backbone(images), fitted.flows, fitted.norms, strict=True):
        z, log_det = slow_flow(flow, normalise(level, norm))
        loss += np.mean([0.5 * (each**2).sum() for each in z] - log_det)
        energy = torch.from_numpy((z**2).mean(axis=1) / 2)
        likelihoods.append(torch.exp(-F.interpolate(energy[:, None], size=(64, 64), mode="bilinear")[:, 0]))
    assert fitted.loss(fitted.read(images)).item() == pytest.approx(loss, rel=1e-4)
    expected = -torch.log(sum(likelihoods) / len(likelihoods))
    result = fitted.score(images)
    torch.testing.assert_close(result.map.double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(result.image.double(), expected.amax(dim=(1, 2)), rtol=1e-3, atol=1e-5)


def test_loss_maps_and_scores_follow_the_equations(fitted):
    assert_follows_the_equations(fitted, lambda level, norm: level)


def slow_norm(level, norm):
    """Each image to mean 0 and variance 1, then every channel's and position's own scale and shift, in float64."""
    x = level.double()
    normal = np.empty(x.shape)
    for image, each in enumerate(x.numpy()):
        variance = sum((value - each.mean()) ** 2 for value in each.flat) / each.size
        for place in np.ndindex(each.shape):
            standard = (each[place] - each.mean()) / math.sqrt(variance + 1e-5)
            normal[image][place] = norm.weight[place].item() * standard + norm.bias[place].item()
    return torch.from_numpy(normal)


def test_trained_layer_norm_follows_the_slow_version():
    words = ("method.steps=1", "method.epochs=2", "method.layer_norm=true", "method.affine=true", "method.levels=[3]")
    setup = Setup("fastflow", overrides=words)
    made = setup.fitted()
    (norm,) = made.norms
    assert norm.weight.shape == setup.shapes()[0]
    assert not norm.weight.eq(1).any(), "it is trained"
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    assert_follows_the_equations(made, slow_norm)


def test_the_map_ranks_pixels_as_the_sum_of_likelihoods_does():
    """On a single grid, without interpolation or underflow of exp."""
    energies = [3 * torch.rand(2, 5, 5, dtype=torch.float64) for _ in range(3)]
    summed = -sum(torch.exp(-each) for each in energies)
    assert join(energies).flatten().argsort().equal(summed.flatten().argsort())
    assert join(energies[:1]).allclose(energies[0])


def test_strong_anomalies_stay_finite_and_ordered(fitted):
    """Even if exp(-E) is 0 in float32 or z^2 would overflow."""
    strengths = torch.tensor([1e2, 1e4, 1e8, 1e16, 1e30])
    maps = join([strengths, 2 * strengths, 3 * strengths])
    assert maps.isfinite().all()
    assert (maps.diff() > 0).all()

    images, backbone = to_tensor(pictures(1)), fitted.backbone
    scores = []
    for factor in (1, 10, 100, 1e4, 1e6, 1e15):
        fitted.backbone = lambda batch, factor=factor: [factor * level for level in backbone(batch)]
        scores.append(float(fitted.score(images).image[0].detach()))
    fitted.backbone = backbone
    assert scores == sorted(set(scores))
    assert math.isfinite(scores[-1])


def test_levels_are_standardised_unless_the_papers_learning_rate_applies():
    assert not Setup("fastflow", "wrn50", ("backbone.weights=random",)).config["method"]["layer_norm"]
    setup = Setup("fastflow", overrides=("method.steps=1",))
    assert setup.config["method"]["layer_norm"]
    images = to_tensor(pictures(2))
    for level, found in zip(setup.network(images), setup.new().read(images), strict=True):
        for before, after in zip(level, found, strict=True):
            expected = (before - before.mean()) / before.std(correction=0)
            torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


def test_steps_alternate_kernel_sizes():
    method = Setup("fastflow", "wrn50", ("backbone.weights=random",)).config["method"]
    assert (method["steps"], method["kernels"]) == (8, [3, 1])
    with torch.device("meta"):
        made = construct(method, "method", backbone=None)
        made.build([(8, 4, 4), (16, 2, 2)])
    sides = [[step.subnet[0].kernel_size[0], step.subnet[2].kernel_size[0]] for step in made.flows[1]]
    assert sides == [[3, 3], [1, 1]] * 4
    assert [step.subnet[0].out_channels for step in made.flows[1]] == [8] * 8


@pytest.mark.parametrize(
    ("backbone", "expected", "side", "within"),
    [
        ("wrn50", 41_337_856, 256, 0),  # the paper: 41.3 M
        ("r18", 4_657_408, 256, 0),  # the paper: 4.9 M
        ("deit_base", 14.8e6, 384, 0.01),
        ("cait_m48", 14.8e6, 448, 0.01),
    ],
)
def test_extra_parameters_of_the_papers_networks(backbone, expected, side, within):
    """Counted on the meta device; input, levels, steps and kernels come from method + backbone."""
    config = Setup("fastflow", backbone, ("backbone.weights=random", "protocol=paper")).config
    assert (config["input"]["resize"], config["input"]["crop"]) == (side, None)
    with torch.device("meta"):
        network = construct(config["backbone"], "backbone", levels=config["method"]["levels"])
        method = construct(config["method"], "method", backbone=network)
        method.build(network.shapes((side, side)))
    assert sum(value.numel() for value in method.parameters()) == pytest.approx(expected, rel=within, abs=0)
    assert all(value.is_meta for value in method.state_dict().values())


def test_transformer_features_pass_the_last_normalisation():
    words = ("backbone.network=deit_tiny_distilled_patch16_224", "backbone.weights=random", "method.steps=2")
    setup = Setup("fastflow", "deit_base", (*words, "method.epochs=2"))
    assert setup.config["method"]["levels"] == ["block7"]
    (level,) = setup.network(to_tensor(pictures(2)))
    torch.testing.assert_close(level.mean(dim=1), torch.zeros(2, 4, 4), rtol=0, atol=1e-5)
    assert setup.fitted().score(to_tensor(pictures(2))).map.shape == (2, 64, 64)


def test_unsupported_transformer_size_is_rejected_before_training():
    words = ("backbone.network=deit_tiny_distilled_patch16_224", "backbone.weights=random")
    odd = pictures(3)[:, :60, :60]
    with pytest.raises(UsageError, match=r"60 x 60 pixels; expected .* multiples of 16, such as 48 or 64"):
        Setup("fastflow", "deit_base", words).fitted(TrainingSet("odd", odd))


def test_trained_layer_norms_add_what_the_re_implementations_count():
    config = Setup("fastflow", "wrn50", ("backbone.weights=random",)).config["method"]
    with torch.device("meta"):
        made = construct({**config, "layer_norm": True, "affine": True}, "method", backbone=None)
        made.build([(256, 64, 64), (512, 32, 32), (1024, 16, 16)])
    assert sum(value.numel() for value in made.parameters()) == 41_337_856 + 2 * (2**20 + 2**19 + 2**18)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("method.steps=0",), r"method.steps=0: expected at least 1"),
        (("method.kernels=[3,2]",), r"method.kernels=\[3, 2\]: expected odd numbers, such as \[3,1\]"),
        (("method.kernels=[]",), "expected odd numbers"),
        (("method.affine=true", "method.layer_norm=false"), "set method.layer_norm=true too"),
    ],
)
def test_invalid_settings(keys, message):
    with pytest.raises(UsageError, match=message):
        Setup("fastflow", overrides=keys).new()
