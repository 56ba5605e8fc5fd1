"""Voxel GAN: its networks counted, what its steps change, its maps and its grid; the contract tests that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from setups import setup

from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.voxel_gan import VoxelGAN
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import scans

NETWORKS = ("critic", "generator", "encoder")


def built(channels=3, **settings):
    method = setup("voxel_gan").new(**settings)
    torch.manual_seed(0)
    method.build([(channels, 64, 64)])
    return method


@pytest.mark.parametrize(
    ("channels", "counts"), [(3, [3_303_777, 2_771_904, 4_852_800]), (6, [3_305_507, 2_776_000, 4_856_896])]
)
def test_parameters_of_the_networks(channels, counts):
    with torch.device("meta"):
        method = VoxelGAN(epochs=1)
        method.build([(channels, 256, 256)])
        grids = method.generator(torch.empty(2, 128))
        assert grids.shape == (2, {3: 1, 6: 3}[channels], 64, 64, 64)
        assert method.critic[:-1](grids).shape == (2, 256 * 4**3)
        assert method.critic(grids).shape == (2, 1)
        assert method.encoder(grids).shape == (2, 128)
    parts = (method.generator, method.critic, method.encoder)
    assert [sum(value.numel() for value in part.parameters()) for part in parts] == counts


def test_what_each_step_changes(monkeypatch):
    """Only the network that steps, and running statistics with the generator alone; the encoder comes last."""
    method, seen, step = built(epochs=3, views=8, adversarial=0.5), [], Epoch.step
    last = {name: copy.deepcopy(getattr(method, name).state_dict()) for name in NETWORKS}

    def watched(self, loss, optimiser, curve=True):
        step(self, loss, optimiser, curve)
        which = NETWORKS[self.loop.optimisers.index(optimiser)]
        for name in NETWORKS:
            state = getattr(method, name).state_dict()
            state = {key: value.clone() for key, value in state.items() if "num_batches" not in key}
            changed = [key for key, value in state.items() if not value.equal(last[name][key])]
            assert bool(changed) == (name == which), (name, which, changed)
            last[name] = state
        seen.append(which)

    monkeypatch.setattr(Epoch, "step", watched)
    method.fit(TrainingSet("scans", scans("xyz", 4)))  # 32 views: four batches of eight an epoch
    assert seen == ["critic"] * 5 + ["generator", "critic"] + ["encoder"] * 6


@pytest.mark.parametrize("channels", [3, 6])
def test_maps_are_distances_from_the_restoration(channels):
    method, pixels = built(channels), torch.from_numpy(scans("xyz", 4)).permute(0, 3, 1, 2)
    images = torch.cat([torch.rand(4, channels - 3, 64, 64), pixels], dim=1)
    method.voxels.fit(TrainingSet("scans", images.permute(0, 2, 3, 1).numpy()), 4)
    method.eval()
    grids = method.voxels.fill(images)
    expected = (grids - method.generator(method.encoder(grids))).square().sum(dim=1).sqrt()
    found = method.score(images)
    assert torch.allclose(found.map, method.voxels.project(expected, (64, 64)), atol=1e-5)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    method.generator, method.encoder = torch.nn.Identity(), torch.nn.Identity()  # a perfect restoration
    assert (method.score(images).map == 0).all()


def test_settings_out_of_range():
    with pytest.raises(UsageError, match=r"method.grid=48: expected a power of two"):
        VoxelGAN(epochs=1, grid=48)
    with pytest.raises(UsageError, match=r"method.adversarial=0: expected a share between 0 and 1"):
        VoxelGAN(epochs=1, adversarial=0)
    with pytest.raises(UsageError, match=r"method.judged=0: expected at least 1 step of the critic"):
        VoxelGAN(epochs=1, judged=0)


@torch.no_grad()
def error(method, grids):
    return (method.eval().generator(method.encoder(grids)) - grids).square().mean()


@pytest.mark.slow
def test_the_networks_learn():
    """Scans are restored better than by the untrained networks, and unlike scans unlike."""
    normals = TrainingSet("scans", scans("xyz", 12))
    images = torch.from_numpy(scans("xyz", 12)).permute(0, 3, 1, 2)
    method = built(epochs=40, lr=0.001, encoder_lr=0.001, judged=2, adversarial=0.6)
    method.voxels.fit(normals, 4)
    grids = method.voxels.fill(images)
    before = error(method, grids)
    torch.manual_seed(0)
    method.fit(normals)
    assert error(method, grids) < 0.5 * before
    assert method.facts["training"]["spread"] > 0.01
