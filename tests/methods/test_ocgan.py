"""OCGAN: the shapes of its networks, its losses by hand, and that the autoencoder learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_bench.components.small_images import resized
from anomaly_bench.methods.ocgan import OCGAN, Critics, critic
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures


def coloured(count, first):
    """Gratings of unlike colours."""
    shades = np.random.default_rng(first).uniform(0.2, 1.5, (count, 1, 1, 3))
    return (pictures(count, first, side=32) * shades).clip(0, 255).astype(np.uint8)


PIXELS, HELD_OUT, TEST = coloured(16, 0), coloured(5, 300), to_tensor(coloured(3, 500))


def built(**settings):
    torch.manual_seed(0)
    method = OCGAN(epochs=4, **{"lr": 2e-3, "batch": 8, "width": 8, "critic_width": 4, **settings})
    method.build([(3, 32, 32)])
    return method


def fitted(steps, **settings):
    method, normals = built(**settings), TrainingSet("points", PIXELS)
    normals.steps, normals.validation = steps, TrainingSet("points", HELD_OUT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # adversarial training amplifies the rounding of other orders of summation
    method.fit(normals)
    torch.set_num_threads(threads)
    return method.eval()


def sides(network, images):
    found = []
    for layer in network:
        images = layer(images)
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            found.append(tuple(images.shape[1:]))
    return found


def test_shapes_from_61_pixels_to_1():
    method = OCGAN(epochs=1)
    with torch.device("meta"):
        method.build([(3, 32, 32)])
        visual, images, codes = critic(3, 12), torch.empty(2, 3, 61, 61), torch.empty(2, 16, 1, 1)
    assert sides(method.encoder, images) == [(64, 29, 29), (128, 13, 13), (256, 5, 5), (16, 1, 1)]
    assert sides(method.decoder, codes) == [(256, 5, 5), (128, 13, 13), (64, 29, 29), (3, 61, 61)]
    assert sides(visual, images) == [(12, 29, 29), (24, 13, 13), (48, 5, 5), (1, 1, 1)]
    kernels = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 16)
    norms = 2 * (128 + 256) + 2 * (256 + 128 + 64)
    assert sum(parameter.numel() for parameter in method.parameters()) == 2 * kernels + norms + 64 + 3


def test_codes_end_in_tanh_on_request():
    bounded, published, images = built(tanh=True).eval(), built().eval(), torch.rand(3, 3, 61, 61)
    before = published.encoder[:-1](images)
    assert torch.equal(bounded.encoder(images), before.tanh())
    assert torch.equal(published.encoder(images), torch.where(before > 0, before, 0.2 * before))


def cross_entropy(logits, label):
    """Mean of -log p, with p from the logistic function."""
    p = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    return float(-np.log(p if label else 1 - p).mean())


def networks():
    """In evaluation mode, as dropout is random."""
    method = built().double().eval()
    return method, Critics(3, 16, 4, 8).double().eval()


def test_losses_by_hand():
    method, critics = networks()
    images, noisy, outputs, made = torch.rand(4, 3, 3, 61, 61, dtype=torch.float64)
    codes, drawn, noise = torch.rand(3, 3, 16, 1, 1, dtype=torch.float64)
    latent, visual, classifier = critics.latent, critics.visual, critics.classifier
    assert latent(codes).shape == (3, 16)
    assert ((latent(codes) > 0) & (latent(codes) < 1)).all(), "a sigmoid before that of the loss"
    expected = cross_entropy(visual(images), 1) + cross_entropy(visual(made), 0)
    expected += cross_entropy(latent(noise), 1) + cross_entropy(latent(codes), 0)
    assert critics.judge(images, made, codes, noise).item() == pytest.approx(expected / 2)
    expected = (cross_entropy(classifier(outputs), 1) + cross_entropy(classifier(made), 0)) / 2
    assert critics.classify(outputs, made).item() == pytest.approx(expected)
    found = method.encoder(noisy)
    error = ((method.decoder(found) - images) ** 2).detach().numpy().mean() / 2
    expected = 10 * cross_entropy(latent(found), 1) + cross_entropy(visual(method.decoder(drawn)), 1) + 10 * error
    assert method.loss(images, noisy, drawn, critics).item() == pytest.approx(expected)


def test_mining_is_a_step_of_gradient_descent():
    """Of each image's own loss, by finite differences."""
    method, critics = networks()
    drawn = 2 * torch.rand(2, 16, 1, 1, dtype=torch.float64) - 1
    found = (drawn - method.mine(drawn.clone(), critics)) / 2
    for image in range(2):
        for element in range(0, 16, 5):
            ends = []
            for change in (1e-5, -1e-5):
                moved = drawn[image : image + 1].clone()
                moved[0, element] += change
                ends.append(cross_entropy(critics.classifier(method.decoder(moved.tanh())), 0))
            slope = (ends[0] - ends[1]) / 2e-5
            assert found[image, element].item() == pytest.approx(slope, rel=1e-3, abs=1e-12)


@pytest.mark.slow
def test_noise_is_mined_late_in_the_training(monkeypatch):
    seen, mine = [], OCGAN.mine
    monkeypatch.setattr(OCGAN, "mine", lambda self, *words: (seen.append(1), mine(self, *words))[1])
    method = fitted(24)
    assert method.facts["training"]["steps"] == 24, "three for each of 8 batches"
    assert len(seen) == 2


@pytest.mark.slow
def test_the_autoencoder_learns():
    method, untrained = fitted(300), built().eval()
    images = 2 * resized(to_tensor(HELD_OUT), (61, 61)) - 1
    error, before = (made.held_out_errors(images).mean() for made in (method, untrained))
    assert error < 0.8 * before
    assert method.facts["training"]["spread"] > 0.05
    assert method.facts["best_epoch"] <= 50
    shown = 2 * resized(TEST, (61, 61)) - 1
    expected = [float(((method.decoder(method.encoder(image[None])) - image) ** 2).mean().detach()) for image in shown]
    torch.testing.assert_close(method.score(TEST).image, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_too_few_images():
    with pytest.raises(ValueError, match="points: 1 training image; expected at least 2"):
        built().fit(TrainingSet("points", PIXELS[:1]))
