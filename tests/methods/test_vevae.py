"""VEVAE: its gradient against finite differences, and its attention against a slow version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.vevae import VEVAE, losses, mirrored
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

IMAGES = to_tensor(pictures(3, 500))


def built(**settings):
    torch.manual_seed(0)
    method = VEVAE(epochs=1, **{"width": 16, "latent": 6, **settings})
    method.build([(3, 64, 64)])
    with torch.no_grad():  # norms as after some training
        method.code(method.block(method.before(IMAGES)))
    return method.eval()


def test_parameters_of_the_network():
    with torch.device("meta"):
        method = VEVAE(epochs=1)
        method.build([(3, 256, 256)])
        inputs = method.before(torch.empty(2, 3, 256, 256))
        assert method.block.layers[0](inputs).shape == (2, 128, 64, 64)
        means, _ = method.code(method.block(inputs))
        assert means.shape == (2, 32, 1, 1)
        assert method.decoder(means).shape == (2, 3, 256, 256)
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in method.named_children()}
    assert sum(counts.values()) == 39_207_459
    assert sum(counts.values()) - counts["decoder"] == 11_201_664
    with pytest.raises(UsageError, match="VEVAE cannot take images of 96 x 64 pixels; expected sides that are mult"):
        VEVAE(epochs=1).build([(3, 96, 64)])


def test_the_gradient_is_that_of_finite_differences():
    method, images = built().double(), IMAGES[:1].double()
    layer = method.block.layers[0]
    added = torch.zeros(1)
    layer.register_forward_hook(lambda layer, inputs, outputs: outputs + added)

    def explained():
        with torch.no_grad():
            return float(method.code(method.block(method.before(images)))[0].sum())

    with torch.no_grad():
        inputs = method.before(images)
        outputs = layer(inputs)
    slopes = method.slopes(outputs, inputs)
    for place in torch.randperm(outputs.numel())[:12].tolist():
        step = torch.zeros(outputs.numel(), dtype=torch.float64)
        step[place] = 1e-5
        added = step.view_as(outputs)
        above = explained()
        added = -added
        found = (above - explained()) / 2e-5
        assert slopes.flatten()[place].item() == pytest.approx(found, rel=1e-3, abs=1e-9)


def test_attention_is_that_of_a_slow_version():
    """One image after the other, one channel after the other, with hooks and a backward pass."""
    method = built()
    scores = method.score(IMAGES)
    for number, image in enumerate(IMAGES):
        kept = []
        handle = method.block.layers[0].register_forward_hook(lambda *words, kept=kept: kept.append(words[2]))
        means, _ = method.code(method.block(method.before(image[None])))
        handle.remove()
        kept[0].retain_grad()
        means.sum().backward()
        maps, slopes = kept[0][0].detach(), kept[0].grad[0]
        slopes = slopes / (math.sqrt((slopes**2).mean()) + 1e-5)
        total = sum(slopes[channel].mean() * maps[channel] for channel in range(len(maps)))
        enlarged = torch.nn.functional.interpolate(total[None, None], (64, 64), mode="bilinear")[0, 0]
        torch.testing.assert_close(scores.map[number], enlarged.abs(), rtol=1e-3, atol=1e-5)
        assert scores.image[number] == scores.map[number].max()


def test_attention_and_the_code_s_scale():
    """Without a gradient it is zero; scaling the means hardly changes it, nor does their sign."""
    method = built()
    before = method.score(IMAGES).map
    for scale in (3.0, -1.0):
        with torch.no_grad():
            method.heads.mean.weight.mul_(scale)
        after = method.score(IMAGES).map
        assert (after - before).abs().max() < 2e-2 * before.max()
    torch.nn.init.zeros_(method.heads.mean.weight)
    assert not method.score(IMAGES).map.any()


def test_losses_by_hand():
    grey, zero = torch.full((2, 1, 28, 28), 0.5), torch.zeros(2, 4, 1, 1)
    torch.testing.assert_close(losses(0 * grey, grey, zero, zero), torch.full((2,), 784 * math.log(2)))
    found = losses(0 * grey, grey, zero + 1, zero)
    torch.testing.assert_close(found, torch.full((2,), 784 * math.log(2) + 0.5 * 4))


def test_about_half_of_the_views_are_mirrored():
    torch.manual_seed(0)
    images = torch.rand(200, 1, 2, 3)
    views = mirrored(images)
    same = (views == images).all(dim=(1, 2, 3))
    assert 70 < same.sum() < 130
    assert torch.equal(views[~same], images[~same].flip(3))


def test_the_loss_falls_and_outputs_follow_their_inputs():
    images = np.full((8, 64, 64, 3), 60, np.uint8)
    for number in range(8):
        images[number, 8 * number : 8 * number + 8] = 200
    method, normals = built(lr=3e-3), TrainingSet("bars", images)
    normals.steps = 15
    method.fit(normals)
    curve = method.facts["training"]["curve"]["loss"]
    assert curve[-1] < curve[0]
    assert method.facts["training"]["spread"] > 0.1
