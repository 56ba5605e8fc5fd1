"""GANomaly: its networks counted, its steps and scores against slow versions, and that small sets train."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.gan import agree, initialise, shrinking
from anomaly_bench.components.training import Loop
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import ganomaly
from anomaly_bench.methods.ganomaly import GANomaly
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures


def built(**settings):
    torch.manual_seed(0)
    method = GANomaly(**{"epochs": 1, "size": 16, "width": 4, "latent": 5, "batch": 8, "samples": 8, **settings})
    method.build([(3, 32, 32)])
    return method


def fitted(images, steps, **settings):
    method, normals = built(**settings), TrainingSet("cog", images)
    normals.steps = steps
    method.fit(normals)
    return method.eval()


@pytest.mark.parametrize(
    ("size", "widest", "generator", "discriminator"),
    [(32, 256, 3_206_528, 663_296), (64, 512, 10_729_856, 2_765_568), (128, 1024, 38_359_424, 11_164_416)],
)
def test_parameters_of_the_networks(size, widest, generator, discriminator):
    with torch.device("meta"):
        method, critic = GANomaly(epochs=1, size=size), shrinking(3, size, 1)
        method.build([(3, 256, 256)])
        images = torch.empty(2, 3, size, size)
        codes, outputs, others = method.reconstruct(images)
        assert critic[:-1](images).shape == (2, widest, 4, 4)
        assert critic(images).shape == (2, 1, 1, 1)
    assert codes.shape == others.shape == (2, 100, 1, 1)
    assert outputs.shape == images.shape
    assert sum(value.numel() for value in method.parameters()) == generator
    assert sum(value.numel() for value in critic.parameters()) == discriminator
    layers = [*method.modules(), *critic.modules()]
    assert all(layer.bias is None for layer in layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))


def test_sizes_that_halving_does_not_lead_to_4():
    for size in (8, 24, 0):
        with pytest.raises(UsageError, match=rf"method.size={size}: expected a power of two of at least 16, such as"):
            GANomaly(epochs=1, size=size)


def test_losses_by_hand():
    method, zero, hundredth = GANomaly(epochs=1), torch.zeros(()), torch.tensor(0.01)
    assert method.loss(zero, hundredth, zero).item() == pytest.approx(0.5)
    assert method.loss(hundredth, zero, zero).item() == method.loss(zero, zero, hundredth).item() == hundredth.item()
    logits = torch.zeros(3, 1, 1, 1)
    assert (agree(logits, 1) + agree(logits, 0)).item() / 2 == pytest.approx(math.log(2))


def training(method):
    """A discriminator, and an epoch of its training with the method, in double precision."""
    critic = shrinking(3, 16, 1, 4).double()
    optimisers = [torch.optim.Adam(network.parameters(), 0.01, (0.5, 0.999)) for network in (method, critic)]
    loop = Loop(nn.ModuleList([method, critic]), optimisers, TrainingSet("cog", pictures(8, side=32)), 1)
    return critic, next(iter(loop))


def slow_step(method, critic, images, optimisers):
    """As in the authors' code: the discriminator judges twice, and gradients are cleared in between."""
    codes = method.encoder(images)
    outputs = method.decoder(codes)
    others = method.second(outputs)
    real, made = critic(images).sigmoid(), critic(outputs.detach()).sigmoid()
    judged = 0.5 * (F.binary_cross_entropy(real, real * 0 + 1) + F.binary_cross_entropy(made, made * 0))
    optimisers[0].zero_grad()
    features, imitated = critic[:-1](images), critic[:-1](outputs)
    adversarial, contextual = ((features - imitated) ** 2).mean(), (outputs - images).abs().mean()
    (adversarial + 50 * contextual + ((others - codes) ** 2).mean()).backward()
    optimisers[0].step()
    optimisers[1].zero_grad()
    judged.backward()
    optimisers[1].step()


def same(first, second):
    for (name, found), expected in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=name)


def test_steps_follow_a_slow_version():
    method = built().double()
    critic, epoch = training(method)
    others = copy.deepcopy(nn.ModuleList([method, critic]))
    optimisers = [torch.optim.Adam(network.parameters(), 0.01, (0.5, 0.999)) for network in others]
    for number in range(3):
        images = method.prepared(to_tensor(pictures(4, 10 * number, side=32)).double())
        method.step(images, critic, epoch)
        slow_step(*others, images, optimisers)
        same(method, others[0])
        same(critic, others[1])
    assert epoch.steps == 6


def test_a_collapsed_discriminator_starts_again(monkeypatch):
    """Its weights are drawn anew; its running statistics and the optimiser's moments stay."""
    method = built().double()
    critic, epoch = training(method)
    images = method.prepared(to_tensor(pictures(4, side=32)).double())
    for _ in range(2):
        method.step(images, critic, epoch)
    statistics, fresh = critic[3].running_mean.clone(), copy.deepcopy(critic)
    monkeypatch.setattr(ganomaly, "COLLAPSED", 100.0)
    torch.manual_seed(3)
    method.step(images, critic, epoch)
    torch.manual_seed(3)
    same(critic, fresh.apply(initialise))
    assert not torch.equal(critic[3].running_mean, statistics * 0)
    assert epoch.loop.optimisers[1].state[critic[0].weight]["step"] == 3


def test_scores_follow_a_slow_version_and_ignore_other_images():
    method, images = fitted(pictures(8, side=32), 8), to_tensor(pictures(3, 500, side=32))
    found = method.score(images)
    assert found.map is None
    for number, image in enumerate(images):
        shown = 2 * F.interpolate(image[None], (16, 16), mode="bilinear", antialias=True) - 1
        code = method.encoder(shown)
        error = ((code - method.second(method.decoder(code))) ** 2).mean()
        torch.testing.assert_close(found.image[number], error.detach(), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(method.score(image[None]).image[0], found.image[number])
    method.train()
    assert not torch.allclose(
        method.reconstruct(images[:, :, ::2, ::2])[0][:1], method.encoder(images[:1, :, ::2, ::2])
    )


def test_what_is_reconstructed_scores_0():
    method = built(size=32).eval()
    images = to_tensor(pictures(2, side=32))
    method.second, shown = method.encoder, method.prepared(images)
    method.decoder = nn.Identity()
    method.decoder.forward = lambda codes: shown
    assert not method.score(images).image.any()


def test_a_set_smaller_than_a_batch_trains():
    method = fitted(pictures(5, side=32), None, batch=64, samples=5, epochs=2)
    assert method.facts["training"]["steps"] == 4
    dropped = fitted(pictures(5, side=32), None, batch=2, samples=5)
    assert dropped.facts["training"] | {"curve": 0, "spread": 0} == {
        "epochs": 1, "steps": 4, "samples": 4, "last_tenth": None, "curve": 0, "spread": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_the_networks_learn():
    """Reconstructions follow the images, and a defect stands out in the codes."""
    images = to_tensor(pictures(4, 500, side=16))
    method = fitted(pictures(16, side=16), 240, lr=0.002, batch=8, width=8, epochs=1)
    assert (method.reconstruct(method.prepared(images))[1] - method.prepared(images)).abs().mean() < 0.2
    defective = images.clone()
    defective[:, :, 4:12, 4:12] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert (method.score(defective).image > method.score(images).image).all()
