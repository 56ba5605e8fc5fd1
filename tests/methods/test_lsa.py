"""LSA: exact causality of the estimator, and its parts against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.lsa import LSA, Masked
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures


def coloured(count, first):
    """Gratings of unlike colours."""
    shades = np.random.default_rng(first).uniform(0.2, 1.5, (count, 1, 1, 3))
    return (pictures(count, first, side=16) * shades).clip(0, 255).astype(np.uint8)


PIXELS, HELD_OUT, TEST = coloured(16, 0), coloured(5, 300), to_tensor(coloured(3, 500))


def built(**settings):
    torch.manual_seed(0)
    method = LSA(
        epochs=4, **{"lr": 1e-3, "batch": 8, "size": 16, "code": 6, "width": 4, "bins": 10, "hidden": 16, **settings}
    )
    method.build([(3, 16, 16)])
    return method


def normals(steps, held_out=HELD_OUT):
    made = TrainingSet("points", PIXELS)
    made.steps, made.validation = steps, None if held_out is None else TrainingSet("points", held_out)
    return made


@pytest.fixture(scope="module")
def fitted():
    method = built()
    method.fit(normals(80))
    return method


def test_an_element_is_predicted_from_those_before_it_only():
    """d output[k] / d input[j] is exactly 0 for j >= k, and not for j < k."""
    method = built().double()
    codes = torch.rand(1, 6, dtype=torch.float64, requires_grad=True)
    for number in range(6):
        outputs = method.estimator(codes[..., None])[0, number]
        (gradient,) = torch.autograd.grad((outputs * torch.arange(1.0, 11)).sum(), codes)
        assert (gradient[0, number:] == 0).all()
        assert (gradient[0, :number] != 0).all()


def test_masked_weights_do_not_learn(fitted):
    """Training moves the weights that are read, and no others."""
    untrained = built()
    for ours, theirs in zip(fitted.estimator, untrained.estimator, strict=True):
        if isinstance(ours, Masked):
            moved = ours.linear.weight != theirs.linear.weight
            assert not moved[ours.mask == 0].any()
            assert moved[ours.mask == 1].float().mean() > 0.5


def test_parameters_of_the_published_networks():
    with torch.device("meta"):
        method = LSA(epochs=1)
        method.build([(3, 32, 32)])
    count = lambda part: sum(parameter.numel() for parameter in part.parameters())  # noqa: E731
    assert count(method.estimator) == 25_835_776
    assert method.encoder(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 64)
    assert method.decoder(torch.empty(2, 64, device="meta")).shape == (2, 3, 32, 32)
    sides = []
    images = torch.empty(2, 3, 32, 32, device="meta")
    for layer in method.encoder[:6]:
        images = layer(images)
        sides.append(tuple(images.shape[1:]))
    assert sides[::5] == [(32, 30, 30), (256, 4, 4)]
    assert sides[2:5] == [(32, 30, 30), (64, 15, 15), (128, 8, 8)]


def test_the_estimator_is_a_loop_over_elements():
    """Each layer as one small linear layer per pair of elements."""
    method = built().double()
    code = torch.rand(6, dtype=torch.float64)
    values = [element.reshape(1) for element in code]
    layers = [layer.linear for layer in method.estimator if isinstance(layer, Masked)]
    for number, layer in enumerate(layers):
        inputs, outputs = layer.in_features // 6, layer.out_features // 6
        found = []
        for row in range(6):
            total = layer.bias[row * outputs : (row + 1) * outputs]
            for column in range(row + (number > 0)):
                rows, columns = slice(row * outputs, (row + 1) * outputs), slice(column * inputs, (column + 1) * inputs)
                total = total + layer.weight[rows, columns] @ values[column]
            found.append(total if layer is layers[-1] else torch.where(total > 0, total, 0.01 * total))
        values = found
    torch.testing.assert_close(method.estimator(code[None, :, None])[0], torch.stack(values))


@torch.no_grad()
def slow_terms(method, image):
    """Negative log-likelihood and squared error of one image."""
    code = method.encoder(image[None])[0]
    logits = method.estimator(code[None, :, None])[0]
    surprise = 0.0
    for element, row in zip(code.tolist(), logits, strict=True):
        surprise -= math.log(row.softmax(dim=0)[min(int(element * 10), 9)].item())
    return surprise, float(((method.decoder(code[None])[0] - image) ** 2).sum())


def test_scores_follow_the_equations(fitted):
    held_out = [slow_terms(fitted, image) for image in to_tensor(HELD_OUT)]
    expected = []
    for image in TEST:
        score = 0.0
        for value, others in zip(slow_terms(fitted, image), zip(*held_out, strict=True), strict=True):
            score += (value - min(others)) / (max(others) - min(others))
        expected.append(score)
    scores = fitted.score(TEST)
    assert scores.map is None
    torch.testing.assert_close(scores.image, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_targets_have_no_gradient_but_the_estimators_input_has():
    method = built().train()
    surprises, _ = method.terms(to_tensor(PIXELS))
    first = method.encoder[0].weight
    (gradient,) = torch.autograd.grad(surprises.mean(), first)
    assert gradient.abs().max() > 0
    top = method.encoder[-2].weight  # the last layer: its gradient comes through the estimator's first layer alone
    codes = method.encoder(to_tensor(PIXELS))
    logits = method.estimator(codes[..., None]).transpose(1, 2)
    loss = F.cross_entropy(logits, (codes * 10).long().clamp(max=9), reduction="none").sum(dim=1).mean()
    (expected,) = torch.autograd.grad(loss, top)
    (found,) = torch.autograd.grad(method.terms(to_tensor(PIXELS))[0].mean(), top)
    torch.testing.assert_close(found, expected)


def test_the_loss_falls_and_outputs_follow_their_inputs(fitted):
    losses = fitted.facts["training"]["curve"]["loss"]
    assert losses[-1] < losses[0]
    assert fitted.facts["training"]["spread"] > 0.01
    assert fitted.facts["best_epoch"] <= 40
    assert (fitted.scales[:, 1] > fitted.scales[:, 0]).all()


def test_wrong_settings_and_too_few_images():
    with pytest.raises(UsageError, match=r"method.size=30: expected a multiple of 8 of at least 16"):
        built(size=30)
    with pytest.raises(ValueError, match="points: 1 training image; expected at least 2"):
        built().fit(TrainingSet("points", PIXELS[:1]))
