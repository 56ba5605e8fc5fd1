"""AE-L2 and AE-SSIM, and their shared network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from anomaly_bench.components import autoencoder
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.ae_l2 import AEL2
from anomaly_bench.methods.ae_ssim import AESSIM
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.runs.evaluator import fit_method


@pytest.mark.parametrize(
    ("channels", "side", "latent", "millions"),
    [(1, 128, 100, 1.049), (1, 256, 128, 1.196), (3, 256, 128, 1.198)],
)
def test_parameters_as_printed(channels, side, latent, millions):
    network = autoencoder.AutoEncoder(channels, side, latent)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_output_has_the_inputs_shape(side):
    assert autoencoder.AutoEncoder(3, side, 4)(torch.rand(1, 3, side, side)).shape == (1, 3, side, side)


def test_unsupported_sizes():
    with pytest.raises(
        UsageError, match="100 x 100 pixels; expected sides that are multiples of 16, such as 96 or 112"
    ):
        autoencoder.AutoEncoder(3, 100, 4)
    with pytest.raises(UsageError, match="64 x 96 pixels; expected square"):
        autoencoder.side_of((3, 64, 96), False)
    with pytest.raises(UsageError, match="expected at least 128 x 128"):
        autoencoder.side_of((3, 64, 200), True)


class Plus(nn.Module):
    """A network that adds 0.1."""

    def forward(self, images):
        return images + 0.1


@pytest.mark.parametrize("size", [(128, 128), (140, 170), (256, 256)])
def test_patches_cover_the_image_and_are_averaged(size):
    covered = np.zeros(size)
    places = list(autoencoder.places(*size))
    for top, left in places:
        covered[top : top + 128, left : left + 128] += 1
    assert covered.min() >= 1
    assert all(b - a <= 30 for a, b in itertools.pairwise(autoencoder.starts(size[0], 128, 30)))
    numbers = iter(range(1, 10_000))

    def numbered(output, patch):  # a different residual for each patch
        return torch.full((len(patch), 128, 128), float(next(numbers)))

    found = autoencoder.residual_map(Plus(), torch.rand(1, 3, *size), numbered, True, 8)[0].numpy()
    expected = np.zeros(size)
    for number, (top, left) in enumerate(places, 1):
        expected[top : top + 128, left : left + 128] += number
    np.testing.assert_allclose(found, expected / covered, rtol=1e-5)


def test_squared_error_of_colours():
    method = AEL2(epochs=1)
    method.build([(3, 128, 128)])
    method.network = Plus()
    method.eval()
    result = method.score(torch.rand(2, 3, 16, 16))
    assert torch.allclose(result.map, torch.tensor(3 * 0.01), atol=1e-6)
    assert torch.allclose(result.image, torch.tensor(3 * 0.01), atol=1e-6)


def test_dissimilarity_of_greys():
    method = AESSIM(epochs=1)
    method.build([(3, 128, 128)])
    method.network = Plus()
    method.eval()
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.8
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1).double().numpy()
    keys = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    expected = np.stack([1 - structural_similarity(each, each + 0.1, **keys)[1] for each in grey])
    np.testing.assert_allclose(method.score(images).map.numpy(), expected, atol=1e-3)


def test_views_of_objects_are_whole_images_moved_a_little():
    torch.manual_seed(0)
    images = torch.zeros(50, 3, 100, 100)
    images[:, :, 48:52, 48:52] = 1
    views = autoencoder.view(images, patches=False)
    assert views.shape == images.shape
    weights = views[:, 0] / views[:, 0].sum(dim=(1, 2), keepdim=True)
    rows = (weights.sum(dim=2) * torch.arange(100)).sum(dim=1) - 49.5
    assert 2 < rows.abs().max() <= 5.6, "centres move by up to a twentieth of the side"


def test_views_of_textures_are_patches_at_the_images_scale():
    """A linear ramp keeps its slope, in any direction."""
    torch.manual_seed(0)
    ramp = torch.arange(300.0).expand(1, 3, 256, 300).repeat(40, 1, 1, 1) / 300
    views = autoencoder.view(ramp, patches=True)[:, 0]
    assert views.shape == (40, 128, 128)
    down, right = views[:, 1:, :-1] - views[:, :-1, :-1], views[:, :-1, 1:] - views[:, :-1, :-1]
    slope = (down.square() + right.square()).sqrt()
    assert torch.allclose(slope, torch.tensor(1 / 300), atol=1e-5), "neither larger nor smaller, nor mirrored corners"
    angles = torch.atan2(down[:, 60, 60], right[:, 60, 60])
    assert angles.min() < -2 < 2 < angles.max()


def pixels(count, side):
    rows, columns = np.mgrid[:side, :side]
    wave = 60 + 40 * np.sin((rows + columns) / 9)
    noise = np.random.default_rng(0).normal(0, 3, (count, side, side, 3))
    return (wave[None, ..., None] + noise).clip(0, 255).astype(np.uint8)


def fit(method, normals):
    fit_method(method, [(3, *normals.size)], normals, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", [AEL2, AESSIM])
def test_the_loss_falls(method):
    made = method(epochs=15, lr=5e-3, samples=16, batch=8, latent=8)
    fit(made, TrainingSet("waves", pixels(4, 32)))
    losses = made.facts["training"]["curve"]["loss"]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert "spread" in made.facts["training"]
    assert made.facts["patches"] is False


def bars(count, side):
    """Grey images with one bright bar each, everywhere another."""
    images = np.full((count, side, side, 3), 60, np.uint8)
    for number, top in enumerate(np.linspace(0, side - 6, count).astype(int)):
        images[number, top : top + 6] = 200
    return images


@pytest.mark.slow
@pytest.mark.parametrize("method", [AEL2, AESSIM])
def test_the_loss_ends_below_that_of_the_mean_image(method):
    """A network that ignores its input can at best draw the mean image."""
    normals = TrainingSet("bars", bars(8, 32))
    made = method(epochs=50, lr=2e-3, samples=32, batch=16, latent=8)
    fit(made, normals)
    torch.manual_seed(0)
    views = made.prepare(autoencoder.view(normals.select(torch.arange(8).repeat(8)), patches=False))
    with torch.no_grad():
        drawn = made.network(views)
        ended, mean = (float(made.loss(output, views)) for output in (drawn, views.mean(0, True).expand_as(views)))
    assert ended < 0.4 * mean
    assert drawn.std(dim=0).mean() > 0.5 * views.std(dim=0).mean(), "unlike images have unlike reconstructions"


@pytest.mark.parametrize("side", [128, 256, 512])
def test_unlike_images_have_unlike_codes_and_gradients_reach_the_first_layer(side):
    """Before training, at every depth; with torch's default weights, codes differ by 3e-3 of their size or less."""
    torch.manual_seed(0)
    network = autoencoder.AutoEncoder(3, side, 128)
    images = torch.rand(4, 3, 1, 1).expand(4, 3, side, side) * torch.linspace(0.2, 1, side)
    codes = network.encode(images)
    assert codes.std(dim=0).mean() > 0.05 * codes.abs().mean()
    (network(images) - images).square().mean().backward()
    weights = [layer.weight for layer in network.modules() if hasattr(layer, "weight")]
    sizes = [float(weight.grad.square().mean().sqrt()) for weight in weights]
    assert sizes[0] > 1e-3 * max(sizes)
    assert sizes[0] > 1e-7, "Adam adds 1e-8"


def test_textures_use_patches_also_in_a_saved_model():
    made, asked = AEL2(epochs=1, samples=1, latent=8), AEL2(epochs=1, samples=1, latent=8, patches=True)
    fit(made, TrainingSet("weave", pixels(2, 144), group="textures"))
    fit(asked, TrainingSet("weave", pixels(2, 144)))
    assert made.resolved == {"patches": True}
    images = torch.rand(1, 3, 144, 144)
    assert made.score(images).map.shape == (1, 144, 144)
    assert torch.equal(asked.score(images).map, made.score(images).map)
    loaded = AEL2(epochs=1, latent=8, **made.resolved)
    loaded.build([(3, 144, 144)])
    loaded.load_state_dict(made.state_dict())
    loaded.eval()
    assert torch.equal(loaded.score(images).map, made.score(images).map)


def test_epoch_has_the_requested_number_of_views():
    seen = []
    made = AEL2(epochs=2, samples=7, batch=3, latent=8)
    original = autoencoder.view

    def view(images, patches):
        seen.append(len(images))
        return original(images, patches)

    autoencoder.view = view
    try:
        fit(made, TrainingSet("waves", pixels(2, 16)))
    finally:
        autoencoder.view = original
    assert seen[:6] == [3, 3, 1] * 2
    assert seen[6:] == [2], "all images once, for the spread of outputs"
