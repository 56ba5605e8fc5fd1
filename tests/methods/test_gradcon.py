"""GradCon against loops over single images and an independent training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components.training import Epoch, output_spread
from anomaly_bench.methods.gradcon import GradCon
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS, HELD_OUT = pictures(12, side=28), pictures(4, 300, side=28)
TEST = to_tensor(pictures(3, 500, side=28))


def normals(steps=None):
    made = TrainingSet("points", PIXELS)
    made.steps, made.validation = steps, TrainingSet("points", HELD_OUT)
    return made


def built():
    torch.manual_seed(0)
    method = GradCon(epochs=10, batch=8)
    method.build([(3, 28, 28)])
    return method


@pytest.fixture(scope="module")
def fitted():
    method = built()
    method.fit(normals(8))
    return method


def test_parameters_of_the_published_network():
    method = built()
    assert sum(parameter.numel() for parameter in method.parameters()) == 232_771
    codes = method.encoder(TEST)
    assert codes.shape == (3, 64, 3, 3)
    assert [tuple(layer.shape[1:]) for layer in method.mean_gradients] == [
        tuple(layer.weight.shape[1:]) for layer in method.decoder if hasattr(layer, "weight")
    ]
    assert method.decoder(codes).shape == TEST.shape


def slow_scores(method, images):
    """One backward pass per image, as in the authors' evaluation."""
    scores, gradients = [], []
    layers = [layer for layer in method.decoder if hasattr(layer, "weight")]
    for image in images:
        method.zero_grad()
        error = ((method.decoder(method.encoder(image[None])) - image) ** 2).mean()
        error.backward()
        gradients.append([layer.weight.grad.clone() for layer in layers])
        cosine = 0.0
        for layer, mean in zip(layers, method.mean_gradients, strict=True):
            cosine += (layer.weight.grad * mean).sum() / layer.weight.grad.norm() / mean.norm() / 4
        scores.append(error.detach() - 0.12 * cosine)
    return torch.stack(scores), [torch.stack(layer) for layer in zip(*gradients, strict=True)]


def test_gradients_of_each_image_are_those_of_a_loop(fitted):
    expected, gradients = slow_scores(fitted, TEST)
    found = fitted.gradients(fitted.encoder(TEST).detach(), TEST)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    torch.testing.assert_close(fitted.score(TEST).image, expected, rtol=1e-5, atol=1e-6)
    assert fitted.score(TEST).map is None


def test_twenty_steps_of_an_independent_version(monkeypatch):
    """The running mean of the total loss's gradients over the steps of all epochs, at the weights of each step.

    A training of its own would drift away: Adam's first steps are of one length, however small the gradient, so that
    where a gradient is nothing but rounding, that decides on the weight.
    """
    drawn, before, batches = [], [], Epoch.batches

    def recorded(self, *words):
        for numbers in batches(self, *words):
            drawn.append(numbers)
            before.append([parameter.detach().clone().requires_grad_() for parameter in method.parameters()])
            yield numbers

    monkeypatch.setattr(Epoch, "batches", recorded)
    method = built()
    monkeypatch.setattr(method, "mean_loss", lambda images: -float(len(drawn)))  # keeps the last epoch
    method.fit(normals(20))

    def reconstruct(images, weights):
        for layer in range(4):
            images = F.conv2d(images, weights[2 * layer], weights[2 * layer + 1], 2, 2).clamp(min=0)
        for layer, padding in zip(range(4, 8), (2, 1, 2, 1), strict=True):
            images = F.conv_transpose2d(images, weights[2 * layer], weights[2 * layer + 1], 2, padding)
            images = images.clamp(min=0) if layer < 7 else images.sigmoid()
        return images

    pixels, past = to_tensor(PIXELS), []
    for numbers, weights in zip(drawn[:20], before, strict=False):
        error = ((reconstruct(pixels[numbers], weights) - pixels[numbers]) ** 2).mean()
        loss = error
        if past:
            for number, gradient in enumerate(torch.autograd.grad(error, weights[8::2], create_graph=True)):
                mean = torch.stack([step[number] for step in past]).mean(dim=0)
                loss = loss - 0.03 / 4 * (gradient * mean).sum() / gradient.norm() / mean.norm()
        past.append(torch.autograd.grad(loss, weights[8::2]))

    for number, found in enumerate(method.mean_gradients):
        expected = torch.stack([step[number] for step in past]).mean(dim=0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert not torch.equal(before[0][0], before[19][0])
    with torch.no_grad():
        found = reconstruct(TEST, list(method.parameters()))
        torch.testing.assert_close(found, method.decoder(method.encoder(TEST)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_loss_falls_and_outputs_follow_their_inputs():
    method, images = built(), to_tensor(HELD_OUT)
    with torch.no_grad():
        untrained = output_spread(method.decoder(method.encoder(images)), images)
    method.fit(normals(60))
    losses = method.facts["training"]["curve"]["loss"]
    assert losses[-1] < losses[0]
    assert method.facts["training"]["spread"] > 100 * untrained


def test_the_best_epoch_on_held_out_images_is_kept(monkeypatch):
    method, seen = built(), []
    mean_loss = method.mean_loss

    def rising_after_the_second(images):
        seen.append((mean_loss(images), {name: value.clone() for name, value in method.state_dict().items()}))
        return [3.0, 1.0, 2.0, 2.0][len(seen) - 1]

    monkeypatch.setattr(method, "mean_loss", rising_after_the_second)
    method.fit(normals(8))
    assert len(seen) == 4
    assert all(loss == loss for loss, _ in seen)
    assert method.facts["best_epoch"] == 2
    assert all(torch.equal(value, seen[1][1][name]) for name, value in method.state_dict().items())


def test_without_held_out_images_some_are_split_off():
    method, task = built(), TrainingSet("points", PIXELS)
    task.steps = 2
    method.fit(task)
    assert method.facts["training"]["samples"] <= 2 * 8
    with pytest.raises(ValueError, match="points: 1 training image; expected at least 2"):
        built().fit(TrainingSet("points", PIXELS[:1]))
