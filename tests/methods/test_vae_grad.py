"""VAE-Grad: its gradient against finite differences, its steps by hand, and that each image stops by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.variational import divergence
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import vae_grad
from anomaly_bench.methods.ae_l2 import AEL2
from anomaly_bench.methods.ae_ssim import AESSIM
from anomaly_bench.methods.vae_grad import NETWORKS, VAEGrad
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures


def built(replaced=None, side=16, **settings):
    """A method in evaluation mode, with its own network or another one."""
    torch.manual_seed(0)
    method = VAEGrad(epochs=1, **{"latent": 4, "samples": 2, "batch": 2, **settings})
    method.build([(3, side, side)])
    if replaced is not None:
        method.network = replaced
    return method.eval()


class Constant(nn.Module):
    """A network that ignores its input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return torch.full_like(images, self.value) + 0 * images


@pytest.mark.parametrize(("network", "channels"), [("vae", 3), ("ae_l2", 3), ("ae_ssim", 1)])
def test_the_gradient_is_that_of_finite_differences(network, channels):
    """Through the network; with a detached reconstruction, it would be 2 (x - f(x))."""
    method = built(side=32, network=network, weight=0.05).double()
    start = torch.rand(1, channels, 32, 32, dtype=torch.float64)
    moved = (start + 0.1 * torch.randn_like(start)).clamp(0, 1)
    slopes, outputs, errors = method.slopes(moved, start)

    def energy(image):
        with torch.no_grad():
            error = method.residual(method.network(image), image).sum()
        return float(error + 0.05 * (image - start).abs().sum())

    assert errors.item() + 0.05 * float((moved - start).abs().sum()) == pytest.approx(energy(moved))
    for place in torch.randperm(moved.numel())[:12].tolist():
        step = torch.zeros(moved.numel(), dtype=torch.float64)
        step[place] = 1e-6
        step = step.view_as(moved)
        found = (energy(moved + step) - energy(moved - step)) / 2e-6
        assert slopes.flatten()[place].item() == pytest.approx(found, rel=1e-4, abs=1e-7)
    if network != "ae_ssim":
        assert not torch.allclose(slopes, 2 * (moved - outputs) + 0.05 * (moved - start).sign(), rtol=1e-3)


def test_steps_by_hand():
    """A network that ignores its input: rate 0.5 times 2 e times e^2; from the second step on the distance counts."""
    images = torch.full((1, 3, 16, 16), 0.6)
    one = built(Constant(0.2), weight=0.05, moves=1).score(images)
    torch.testing.assert_close(one.map, torch.full((1, 16, 16), 3 * 0.064))
    assert one.image.item() == pytest.approx(3 * 0.064)
    error = 0.4 - 0.064
    second = 0.064 + 0.5 * (2 * error - 0.05) * error**2
    torch.testing.assert_close(built(Constant(0.2), weight=0.05, moves=2).score(images).map / 3, one.map * 0 + second)
    assert not built(Constant(0.2), moves=0).score(images).map.any()
    assert not built(Constant(0.2), rate=0.0).score(images).map.any()
    assert not built(nn.Identity()).score(images).map.any(), "what is reconstructed does not move"
    far = built(Constant(0.0), rate=1e3, moves=1).score(images)
    torch.testing.assert_close(far.map, torch.full((1, 16, 16), 3 * 0.6))  # stays in [0, 1]


def test_parameters_of_the_network():
    with torch.device("meta"):
        method = VAEGrad(epochs=1)
        method.build([(3, 128, 128)])
    assert sum(parameter.numel() for parameter in method.parameters()) == 1_255_499
    with pytest.raises(UsageError, match=r"method\.network=vaes: no such choice; did you mean vae"):
        VAEGrad(epochs=1, network="vaes")


def test_an_image_stops_by_itself():
    """At its threshold, while the others go on; alone it ends where it does in a batch."""
    method = built(Constant(0.5), weight=0.0, moves=20)
    images = torch.full((3, 3, 16, 16), 0.5)
    images[1], images[2] = 0.9, 0.52
    method.threshold.fill_(16 * 16 * 3 * 0.2**2)
    moved = method.project(images)
    assert torch.equal(moved[[0, 2]], images[[0, 2]])
    errors = (moved - 0.5).square().sum(dim=(1, 2, 3))
    assert errors[1] < method.threshold
    assert method.project(images[1:2]).equal(moved[1:2])
    start = images[1:2]
    for _ in range(20):
        if (start - 0.5).square().sum() <= method.threshold:
            break
        start = start - 0.5 * 2 * (start - 0.5) ** 3
    torch.testing.assert_close(moved[1:2], start)


@pytest.mark.parametrize("group", [None, "textures"])
def test_the_threshold_is_the_smallest_error_of_a_training_image(group):
    side = 16 if group is None else 144
    method, normals = built(side=side), TrainingSet("cog", pictures(3, side=side), group=group)
    method.fit(normals)
    images = to_tensor(normals.pixels)
    corners = [(0, 0)] if group is None else [(top, left) for top in (0, 16) for left in (0, 16)]
    size = min(side, 128)
    parts = [image[None, :, top : top + size, left : left + size] for image in images for top, left in corners]
    with torch.no_grad():
        least = min((method.network(part) - part).square().sum().item() for part in parts)
    assert method.threshold.item() == pytest.approx(least, rel=1e-5)
    method.moves = 2
    scores = method.score(images[:1])
    assert scores.map.shape == (1, side, side)


@pytest.mark.parametrize("network", NETWORKS)
def test_losses_are_those_of_the_networks(network, monkeypatch):
    method = built(side=32, network=network)
    views = method.prepare(torch.rand(2, 3, 32, 32))
    if network == "vae":
        monkeypatch.setattr(vae_grad, "sample", lambda means, log_variances: means)
        means, log_variances = method.network.encode(views).split(4, dim=1)
        errors = F.mse_loss(method.network.decode(means), views, reduction="sum") / 2
        expected = errors + divergence(means, log_variances).mean()
    else:
        other = AEL2(epochs=1, latent=4) if network == "ae_l2" else AESSIM(epochs=1, latent=4)
        expected = other.loss(method.network(views), views)
        torch.testing.assert_close(method.residual(views * 0.9, views), other.residual(views * 0.9, views))
    torch.testing.assert_close(method.training_loss(views), expected)
