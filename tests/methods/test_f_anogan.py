"""f-AnoGAN: its networks counted, its blocks and losses by hand, the order of its steps, and what each one changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.gan import critic_loss, kept_statistics, rms_prop
from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.f_anogan import FAnoGAN, Residual, batch_norm, layer_norm
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

IMAGES = to_tensor(pictures(3, 500, side=32))


def built(**settings):
    torch.manual_seed(0)
    method = FAnoGAN(**{"epochs": 1, "size": 32, "width": 2, "latent": 5, "batch": 4, "samples": 96, **settings})
    method.build([(3, 32, 32)])
    return method


def test_parameters_of_the_networks():
    with torch.device("meta"):
        method = FAnoGAN(epochs=1)
        method.build([(3, 256, 256)])
        images = method.generator(torch.empty(2, 128))
        assert images.shape == (2, 3, 64, 64)
        assert method.critic[:-1](images).shape == (2, 8192)
        assert method.encoder(images).shape == (2, 128)
    counts = [sum(value.numel() for value in part.parameters()) for part in method.children()]
    assert counts == [8_540_483, 7_491_841, 8_532_352]
    norms = [layer for layer in method.modules() if isinstance(layer, nn.BatchNorm2d)]
    buffers = sum(value.numel() for norm in norms for value in norm.buffers() if value.dtype == torch.float32)
    assert sum(counts) == 24_564_676
    assert buffers + len(norms) == 8721


def test_settings_out_of_range():
    with pytest.raises(UsageError, match=r"method.size=24: expected a multiple of 16 of at least 32"):
        FAnoGAN(epochs=1, size=24)
    with pytest.raises(UsageError, match=r"method.adversarial=1: expected a share between 0 and 1, such as 0.24"):
        FAnoGAN(epochs=1, adversarial=1)


@pytest.mark.parametrize("grows", [True, False])
def test_blocks_follow_a_slow_version(grows):
    torch.manual_seed(0)
    block, images = Residual(4, 6, layer_norm, grows).double(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    state = {name: torch.randn_like(value) if "norm" in name else value for name, value in block.state_dict().items()}
    block.load_state_dict(state)
    inner = images
    for name, kernel in (("first", 0), ("second", 1)):
        mean, variance = inner.mean(dim=(1, 2, 3), keepdim=True), inner.var(dim=(1, 2, 3), correction=0, keepdim=True)
        gain, offset = (state[f"{name}_norm.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        inner = ((inner - mean) / (variance + 1e-5).sqrt() * gain + offset).clamp(min=0)
        if grows and not kernel:
            inner = inner.repeat_interleave(2, 2).repeat_interleave(2, 3)
        inner = F.conv2d(inner, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1)
    shortcut = F.conv2d(images, state["shortcut.weight"], state["shortcut.bias"])
    if grows:
        expected = inner + shortcut.repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        expected = (inner + shortcut).unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    torch.testing.assert_close(block(images), expected)
    assert block.first.bias is None
    assert block.first.weight.shape[:2] == ((6, 4) if grows else (4, 4))


def test_initial_weights():
    """Uniform, with twice the variance in the blocks' 3 x 3 convolutions."""
    block = Residual(32, 32, batch_norm, True)
    assert block.first.weight.std().item() == pytest.approx(math.sqrt(4 / (2 * 9 * 32)), rel=0.05)
    assert block.shortcut.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.1)
    assert block.first.weight.abs().max() <= math.sqrt(3) * math.sqrt(4 / (2 * 9 * 32))
    assert not block.second.bias.any()


class Linear(nn.Module):
    """A critic with the same gradient everywhere, of the given norm."""

    def __init__(self, size, norm):
        super().__init__()
        self.weights = torch.full((3 * size * size,), norm / math.sqrt(3 * size * size))

    def forward(self, images):
        return (images.flatten(1) * self.weights).sum(dim=1, keepdim=True)


def test_loss_of_the_critic_by_hand():
    method, images, made = built(), torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    for norm in (1.0, 0.0, 3.0):
        method.critic = Linear(32, norm)
        difference = (method.critic(made).mean() - method.critic(images).mean()).item()
        expected = difference + 10 * (norm - 1) ** 2
        assert critic_loss(method, images, made).item() == pytest.approx(expected, abs=1e-4)
    method.critic = Linear(32, 0.0)
    assert critic_loss(method, images, made).item() == 10


def test_the_order_of_the_steps_and_what_each_changes(monkeypatch):
    """Five steps of the critic between those of the generator; the encoder's change nothing else, no statistics."""
    method, normals, seen, step = built(adversarial=0.5), TrainingSet("cog", pictures(8, side=32)), [], Epoch.step
    names = ["critic", "generator", "encoder"]
    last = {name: copy.deepcopy(getattr(method, name).state_dict()) for name in names}

    def watched(self, loss, optimiser, curve=True):
        step(self, loss, optimiser, curve)
        which = names[self.loop.optimisers.index(optimiser)]
        for name in names:
            state = getattr(method, name).state_dict()
            state = {key: value.clone() for key, value in state.items() if "num_batches" not in key}
            changed = [key for key, value in state.items() if not value.equal(last[name][key])]
            assert bool(changed) == (name == which), (name, which, changed)
            last[name] = state
        seen.append((which, curve))

    monkeypatch.setattr(Epoch, "step", watched)
    method.fit(normals)
    critic, generator, encoder = ("critic", True), ("generator", False), ("encoder", True)
    assert seen == [critic] * 5 + [generator] + [critic] * 5 + [generator] + [critic] * 2 + [encoder] * 12


def test_statistics_are_kept_on_request():
    network = nn.Sequential(batch_norm(3)).train()
    with kept_statistics(network):
        network(IMAGES)
    assert not network[0].running_mean.any()
    network(IMAGES)
    torch.testing.assert_close(network[0].running_mean, 0.01 * IMAGES.mean(dim=(0, 2, 3)))


def test_rms_prop_starts_from_one():
    """TensorFlow's equations, of a slope of 1 and one of 0.01."""
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.weight)
    optimiser, second, weight = rms_prop(layer, 0.5), 1.0, 0.0
    for slope in (1.0, 0.01, -2.0):
        layer.weight.grad = torch.full((1, 1), slope)
        optimiser.step()
        second = 0.9 * second + 0.1 * slope**2
        weight -= 0.5 * slope / math.sqrt(second + 1e-10)
        assert layer.weight.item() == pytest.approx(weight, rel=1e-4)


class Shifted(nn.Module):
    """A generator that makes the images plus a constant."""

    def __init__(self, images, by):
        super().__init__()
        self.outputs = images + by

    def forward(self, codes):
        return self.outputs


def test_scores_by_hand():
    method = built(weight=1.0).eval()
    shown = method.prepared(IMAGES)
    method.generator = Shifted(shown, 0.0)
    scores = method.score(IMAGES)
    assert not scores.image.any()
    assert not scores.map.any()
    method.generator = Shifted(shown, 0.1)
    scores = method.score(IMAGES)
    torch.testing.assert_close(scores.map, torch.full((3, 32, 32), 0.1), rtol=0, atol=1e-5)
    features = ((method.critic[:-1](shown) - method.critic[:-1](shown + 0.1)) ** 2).mean(dim=1).detach()
    torch.testing.assert_close(scores.image, 0.01 + features, rtol=1e-4, atol=1e-6)
    method.weight = 0.0
    torch.testing.assert_close(method.score(IMAGES).image, torch.full((3,), 0.01), rtol=1e-4, atol=1e-6)


def pixel_error(method):
    with torch.no_grad():
        shown = method.eval().prepared(IMAGES)
        return (method.generator(method.encoder(shown)) - shown).square().mean().item()


@pytest.mark.slow
def test_the_networks_learn():
    """Images are restored better than by the untrained networks."""
    method = built(width=4, lr=1e-3, encoder_lr=1e-3, samples=1200, batch=8, adversarial=0.5)
    before = pixel_error(method)
    method.fit(TrainingSet("cog", pictures(16, side=32)))
    assert pixel_error(method) < 0.7 * before
    assert method.facts["training"]["spread"] > 0.01
