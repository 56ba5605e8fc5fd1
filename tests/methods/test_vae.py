"""VAE: its parts against torch and torchvision, its loss by hand, and that its code is alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torchvision.models import resnet18

from anomaly_bench.components import variational
from anomaly_bench.components.autoencoder import view
from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import vae
from anomaly_bench.methods.vae import VAE
from anomaly_bench.protocol import TrainingSet


def built(side=32, **settings):
    torch.manual_seed(0)
    method = VAE(epochs=1, **{"width": 16, "latent": 8, "batch": 8, **settings})
    method.build([(3, side, side)])
    return method


def test_divergence_is_that_of_torch():
    torch.manual_seed(0)
    means, log_variances = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    expected = kl_divergence(Normal(means, (0.5 * log_variances).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(variational.divergence(means, log_variances), expected)
    zero = torch.zeros(1, 64, 8, 8)
    assert variational.divergence(zero, zero).item() == 0
    assert variational.divergence(zero + 1, zero).item() == 2048
    assert variational.divergence(zero, zero + 2).item() == pytest.approx(8988.79, abs=0.01)


def test_samples_have_the_means_and_variances():
    torch.manual_seed(0)
    drawn = variational.sample(torch.full((100_000,), 3.0), torch.full((100_000,), 2 * np.log(0.5)))
    assert drawn.mean().item() == pytest.approx(3, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.01)


def test_the_encoder_is_torchvisions_resnet18():
    torch.manual_seed(0)
    theirs = resnet18(weights=None)
    with torch.device("meta"):
        ours = variational.encoder(3)
    kept = [value for name, value in theirs.state_dict().items() if not name.startswith("fc.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), kept, strict=True)), assign=True)
    images = torch.rand(2, 3, 32, 32)
    expected = torch.nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(ours(images), expected)


def test_parameters_of_the_network():
    with torch.device("meta"):
        method = VAE(epochs=1)
        method.build([(3, 256, 256)])
        means, log_variances = method.code(torch.empty(2, 3, 256, 256))
        assert means.shape == log_variances.shape == (2, 64, 8, 8)
        assert method.decoder(means).shape == (2, 3, 256, 256)
    assert sum(parameter.numel() for parameter in method.parameters()) == 22_479_363


def test_unsupported_sizes_and_scores():
    with pytest.raises(UsageError, match="VAE cannot take images of 100 x 64 pixels; expected"):
        VAE(epochs=1).build([(3, 100, 64)])
    with pytest.raises(UsageError, match=r"method\.image_score=elbow: no such choice; did you mean elbo"):
        VAE(epochs=1, image_score="elbow")


class Shifted(torch.nn.Module):
    """A decoder that returns the images plus a constant."""

    def __init__(self, images, by):
        super().__init__()
        self.outputs = images + by

    def forward(self, codes):
        return self.outputs


@pytest.mark.parametrize(("by", "error"), [(0.0, 0.0), (0.1, 0.03)])
def test_losses_and_scores_by_hand(by, error):
    images = torch.rand(2, 3, 256, 256)
    for image_score in ("max", "elbo"):
        method = built(256, image_score=image_score, beta=2.0)
        method.decoder = Shifted(images, by)
        scores = method.eval().score(images)
        torch.testing.assert_close(scores.map, torch.full((2, 256, 256), error), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            divergences = variational.divergence(*method.code(images))
        expected = error if image_score == "max" else error * 256**2 + 2 * divergences
        torch.testing.assert_close(scores.image, torch.ones(2) * expected, rtol=1e-4, atol=1e-6)
    zeros = torch.zeros(2, 64, 8, 8)
    assert built().losses(images, images + by, zeros, zeros)[0].item() == pytest.approx(65536 * error, rel=1e-4)


def test_the_training_loss_is_that_of_sampled_codes(monkeypatch):
    """A batch's mean of sums; the first loss of a fit."""
    seen, found = {}, []
    monkeypatch.setattr(vae, "view", lambda *words: seen.setdefault("views", view(*words)))
    monkeypatch.setattr(vae, "sample", lambda *code: seen.setdefault("codes", variational.sample(*code)))
    monkeypatch.setattr(Epoch, "step", lambda self, loss: found.append(loss.item()) or setattr(self, "steps", 1))
    method, normals = built(64, samples=8, beta=0.5), TrainingSet("bars", bars(8, 64))
    method.fit(normals)
    other = built(64, beta=0.5).train()
    means, log_variances = other.heads(other.encoder(seen["views"]))
    noise = (seen["codes"] - means) / (log_variances / 2).exp()
    assert noise.std().item() == pytest.approx(1, abs=0.2)
    assert not torch.equal(seen["views"], normals.select(torch.arange(8)))
    total = sum(
        (other.decoder(seen["codes"])[number] - seen["views"][number]).square().sum()
        + 0.5 * kl_divergence(Normal(means[number], (log_variances[number] / 2).exp()), Normal(0.0, 1.0)).sum()
        for number in range(8)
    )
    assert found == [pytest.approx(total.item() / 8, rel=1e-4)]


def test_views_without_turn_and_shift_are_the_images():
    images = torch.rand(3, 3, 20, 30)
    torch.testing.assert_close(view(images, False, 0.0, 0.0), images)


def bars(count, side):
    """(count, side, side, 3): a bright bar at another height in each image."""
    images = np.full((count, side, side, 3), 60, np.uint8)
    for number, top in enumerate(np.linspace(0, side - 6, count).astype(int)):
        images[number, top : top + 6] = 200
    return images


def test_the_loss_ends_below_that_of_the_mean_image():
    """No dead code: outputs follow their inputs."""
    method, normals = built(lr=1e-3, batch=16, samples=32), TrainingSet("bars", bars(8, 32))
    normals.steps = 90
    method.fit(normals)
    images = normals.select(torch.arange(8))
    with torch.no_grad():
        errors = method.score(images).map.sum(dim=(1, 2)).mean()
    assert errors < 0.4 * (images - images.mean(dim=0)).square().sum() / 8
    assert method.facts["training"]["spread"] > 0.5
