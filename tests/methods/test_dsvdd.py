"""Deep SVDD against a slow version without torch's layers and optimiser, and the properties that prevent collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.dsvdd import DSVDD, Decoder
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS = pictures(24, side=16)
TEST = to_tensor(pictures(4, 500, side=16))
LR, DECAY = 1e-3, 1e-2


def built(**settings):
    torch.manual_seed(0)
    method = DSVDD(epochs=4, **{"lr": LR, "weight_decay": DECAY, "batch": 8, "size": 16, **settings})
    method.build([(3, 16, 16)])
    return method


def fitted(steps, method=None, pixels=PIXELS):
    method = built() if method is None else method
    normals = TrainingSet("points", pixels)
    normals.steps = steps
    method.fit(normals)
    return method


def test_parameters_of_the_paper():
    """2,400 + 51,200 + 204,800 + 262,144, and no bias or learnt scale among them."""
    method = DSVDD(epochs=1)
    method.build([(3, 32, 32)])
    shapes = [tuple(parameter.shape) for parameter in method.parameters()]
    assert shapes == [(32, 3, 5, 5), (64, 32, 5, 5), (128, 64, 5, 5), (128, 2048)]
    assert sum(parameter.numel() for parameter in method.parameters()) == 520_544


def slow_images(pixels):
    """Contrast normalisation of one image after the other, and the smallest and largest value of all."""
    rows = []
    for image in (pixels / np.float32(255)).astype(np.float64):
        centred = image.transpose(2, 0, 1) - image.mean()
        rows.append(centred / np.abs(centred).mean())
    rows = np.array(rows)
    return torch.from_numpy((rows - rows.min()) / (rows.max() - rows.min()))


def slow_norm(values, axes):
    """Batch normalisation of a training batch."""
    mean = values.mean(axes, keepdim=True)
    return (values - mean) / ((values - mean) ** 2).mean(axes, keepdim=True).add(1e-4).sqrt()


def leaky(values):
    return torch.where(values > 0, values, 0.01 * values)


class Slow:
    """The networks as functions of their weights, with the running statistics that the centre needs."""

    def __init__(self, encoder, decoder):
        self.encoder = [weight.detach().clone().requires_grad_() for weight in encoder]
        self.decoder = [weight.detach().clone().requires_grad_() for weight in decoder]
        self.running = [(0.0, 1.0)] * 3

    def encode(self, images, training=True):
        for layer in range(3):
            images = F.conv2d(images, self.encoder[layer], padding=2)
            if training:
                self.update(layer, images.detach())
                images = slow_norm(images, (0, 2, 3))
            else:
                mean, variance = (torch.as_tensor(value).reshape(-1, 1, 1) for value in self.running[layer])
                images = (images - mean) / (variance + 1e-4).sqrt()
            images = leaky(images)
            count, channels, height, width = images.shape
            images = images.reshape(count, channels, height // 2, 2, width // 2, 2).amax((3, 5))
        return images.flatten(1) @ self.encoder[3].T

    def update(self, layer, values):
        statistics = values.mean((0, 2, 3)), values.transpose(0, 1).flatten(1).var(dim=1)
        self.running[layer] = tuple(
            0.9 * old + 0.1 * new for old, new in zip(self.running[layer], statistics, strict=True)
        )

    def decode(self, codes):
        images = leaky(slow_norm(codes, (0,)).reshape(len(codes), 32, 2, 2))
        for layer in range(4):
            images = F.conv_transpose2d(images, self.decoder[layer], padding=2)
            if layer < 3:
                images = leaky(slow_norm(images, (0, 2, 3))).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return 1 / (1 + (-images).exp())


class SlowAdam:
    def __init__(self, weights):
        self.weights, self.count = weights, 0
        self.moments = [[torch.zeros_like(weight), torch.zeros_like(weight)] for weight in weights]

    def step(self, loss, lr):
        self.count += 1
        for weight, moments, gradient in zip(
            self.weights, self.moments, torch.autograd.grad(loss, self.weights), strict=True
        ):
            gradient = gradient + DECAY * weight.detach()
            moments[0] = 0.9 * moments[0] + 0.1 * gradient
            moments[1] = 0.999 * moments[1] + 0.001 * gradient**2
            first, second = moments[0] / (1 - 0.9**self.count), moments[1] / (1 - 0.999**self.count)
            with torch.no_grad():
                weight -= lr * first / (second.sqrt() + 1e-8)


def slow_centre(outputs):
    centre = outputs.mean(dim=0).detach()
    for number, value in enumerate(centre):
        if abs(value) < 0.1:
            centre[number] = 0.1 if value > 0 else -0.1
    return centre


@pytest.mark.slow
def test_twenty_steps_of_an_independent_version(monkeypatch):
    """14 steps of pretraining, 6 of Deep SVDD, each part with its drop of the learning rate, in float64."""
    drawn, batches = [], Epoch.batches

    def recorded(self, *words):
        for numbers in batches(self, *words):
            drawn.append(numbers)
            yield numbers

    monkeypatch.setattr(Epoch, "batches", recorded)
    method = built().double()
    state = torch.get_rng_state()
    decoder = Decoder(128, 2, 3).double()
    torch.set_rng_state(state)
    slow = Slow(method.parameters(), decoder.parameters())
    fitted(20, method)

    images = slow_images(PIXELS)
    optimiser = SlowAdam([*slow.encoder, *slow.decoder])
    for step in range(14):
        batch = images[drawn[step]]
        loss = ((slow.decode(slow.encode(batch)) - batch) ** 2).sum() / len(batch)
        optimiser.step(loss, LR / 10 if step >= 10 else LR)
    centre = slow_centre(slow.encode(images, training=False))
    optimiser = SlowAdam(slow.encoder)
    for step in range(14, 20):
        distances = ((slow.encode(images[drawn[step]]) - centre) ** 2).sum(dim=1)
        optimiser.step(distances.mean(), LR / 10 if step >= 16 else LR)

    torch.testing.assert_close(method.centre, centre, rtol=1e-5, atol=1e-5)
    for found, expected in zip(method.parameters(), slow.encoder, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected = ((slow.encode(images, training=False) - centre) ** 2).sum(dim=1)
    torch.testing.assert_close(method.score(to_tensor(PIXELS)).image, expected, rtol=1e-5, atol=1e-5)


def test_no_entry_of_the_centre_is_close_to_zero():
    method = built()
    images = method.prepared(TrainingSet("points", PIXELS))
    method.network.eval()
    mean = method.network(images).mean(dim=0)
    method.set_centre(images)
    near = mean.abs() < 0.1
    assert near.any()
    assert (~near).any()
    assert torch.equal(method.centre[near], 0.1 * mean[near].sign())
    torch.testing.assert_close(method.centre[~near], mean[~near])


def test_the_network_cannot_output_a_constant():
    """After training, the outputs for unlike images still differ."""
    method = fitted(40)
    images = method.scaled(method.contrast(TEST))
    outputs = method.network(images)
    assert outputs.std(dim=0).mean() > 1e-3
    assert method.facts["training"]["curve"]["loss"][-1] < method.facts["training"]["curve"]["loss"][0]
    assert not any(name.endswith("bias") for name in method.state_dict())
    assert not any(norm.affine for norm in method.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_contrast_and_brightness_count_for_nothing():
    method = fitted(4)
    torch.testing.assert_close(method.score(0.5 * TEST + 0.1).image, method.score(TEST).image)


def test_a_single_image_and_a_budget_within_the_pretraining():
    for steps in (1, 12):
        method = fitted(steps, pixels=PIXELS[:1])
        assert method.centre.abs().min() >= 0.1
        assert method.score(TEST).image.isfinite().all()


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"method.size=30, method.outputs=128: expected a size that"):
        DSVDD(epochs=1, size=30)
    with pytest.raises(UsageError, match=r"method.pretraining=1: expected a share of at least 0 and below 1"):
        DSVDD(epochs=1, pretraining=1)
