"""Depth GAN: its networks counted, its maps and its size; the contract tests that it learns."""

from __future__ import annotations

import pytest
import torch
from setups import setup

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.depth_gan import DepthGAN
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import scans


@pytest.mark.parametrize(
    ("channels", "counts"), [(1, [3_224_353, 3_845_056, 4_885_568]), (4, [3_225_220, 3_846_592, 4_887_104])]
)
def test_parameters_of_the_networks(channels, counts):
    with torch.device("meta"):
        method = DepthGAN(epochs=1)
        method.build([(channels, 256, 256)])
        images = method.generator(torch.empty(2, 128))
        assert images.shape == (2, channels, 256, 256)
        assert method.critic[:-1](images).shape == (2, 512 * 4 * 4)
        assert method.critic(images).shape == (2, 1)
        assert method.encoder(images).shape == (2, 128)
    parts = (method.generator, method.critic, method.encoder)
    assert [sum(value.numel() for value in part.parameters()) for part in parts] == counts


@pytest.mark.parametrize("channels", [1, 4])
def test_maps_are_distances_from_the_restoration(channels):
    method = setup("depth_gan").new()
    torch.manual_seed(0)
    method.build([(channels, 64, 64)])
    method.largest.fill_(0.5)
    method.eval()
    depths = torch.from_numpy(scans("depth", 2)).permute(0, 3, 1, 2)
    colours = torch.rand(2, channels - 1, 64, 64)
    images = torch.cat([colours, depths], dim=1)
    scaled = torch.cat([colours, depths / 0.5], dim=1)
    expected = (scaled - method.generator(method.encoder(scaled))).square().sum(dim=1).sqrt()
    found = method.score(images)
    assert torch.allclose(found.map, expected, atol=1e-6)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    method.generator, method.encoder = torch.nn.Identity(), torch.nn.Identity()  # a perfect restoration
    assert (method.score(images).map == 0).all()


def test_the_critic_starts_as_a_constant():
    method = setup("depth_gan").new()
    method.build([(1, 64, 64)])
    assert not method.critic(torch.rand(2, 1, 64, 64)).any()
    assert method.critic[:-1](torch.rand(2, 1, 64, 64)).std() > 0.1


def test_images_are_square_and_their_side_can_be_halved():
    for height, width in ((64, 96), (96, 96), (4, 4)):
        with pytest.raises(UsageError, match=f"{height} x {width} pixels; expected square ones whose side is a power"):
            setup("depth_gan").new().build([(1, height, width)])


@pytest.mark.slow
def test_the_networks_learn():
    """Depths are restored better than by the untrained networks, and unlike scans unlike."""
    normals = TrainingSet("scans", scans("depth", 12))
    images = torch.from_numpy(scans("depth", 12)).permute(0, 3, 1, 2)
    settings = {"epochs": 40, "lr": 0.001, "encoder_lr": 0.001, "judged": 2, "adversarial": 0.6, "width": 8}
    method = setup("depth_gan").new(**settings)
    torch.manual_seed(0)
    method.build([(1, 64, 64)])
    method.largest.copy_(images.max())
    before = method.eval().score(images).map.mean()
    torch.manual_seed(0)
    method.fit(normals)
    assert method.score(images).map.mean() < 0.5 * before
    assert method.facts["training"]["spread"] > 0.01
