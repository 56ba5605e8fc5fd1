"""DFR against an independent version: features by torch's resizing and pooling, 1 x 1 convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.dfr import PRESETS, autoencoder, enlarge, explaining, rows, to_regions
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, new_images, pictures

SMALL = ("method.latent=6", "method.batch=4", "method.lr=0.001")


def slow_regions(levels, preset, size=64):
    """(B, C, size / 4, size / 4)."""
    found = []
    for level in levels:
        if preset == "last":
            level = F.interpolate(level, size=(size, size), mode="bilinear", align_corners=True)
            found.append(F.avg_pool2d(level, 4, 4))
        elif preset == "paper":
            found.append(F.avg_pool2d(F.interpolate(level, size=(size, size), mode="nearest"), 4, 4))
        else:
            found.append(F.interpolate(level, size=(size // 4, size // 4), mode="nearest"))
    return torch.cat(found, dim=1)


class Slow(nn.Module):
    """The autoencoder as the authors write it."""

    def __init__(self, channels, latent, norms):
        super().__init__()
        hidden = (channels + 2 * latent) // 2
        widths = [channels, hidden, 2 * latent, latent, 2 * latent, hidden, channels]
        self.layers = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 1) for i in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(widths[i + 1]) for i in (0, 1, 3, 4)) if norms else None

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in (0, 1, 3, 4):
                x = F.relu(x if self.norms is None else self.norms[number - (number > 2)](x))
        return x


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_maps_and_scores_follow_a_slow_version(preset, monkeypatch):
    drawn, batches = [], Epoch.batches

    def recorded(self, *words):
        for numbers in batches(self, *words):
            drawn.append(numbers)
            yield numbers

    monkeypatch.setattr(Epoch, "batches", recorded)
    setup = Setup("dfr", overrides=(f"method.preset={preset}", "method.epochs=2", *SMALL))
    train, test = pictures(10), to_tensor(pictures(2, 900))
    torch.manual_seed(0)
    method = setup.new()
    method.build(setup.shapes())
    slow = Slow(176, 6, norms=preset == "last")
    for ours, theirs in zip(method.parameters(), ordered(slow), strict=True):
        theirs.data = ours.detach().clone().view_as(theirs)
    method.fit(TrainingSet("few", train))

    with torch.no_grad():
        targets = slow_regions(setup.network(to_tensor(train)), preset)
    optimiser = torch.optim.Adam(slow.parameters(), 1e-3)
    for numbers in drawn:
        loss = ((slow(targets[numbers]) - targets[numbers]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert [len(numbers) for numbers in drawn] == [4, 4, 2] * 2
    slow.eval()
    with torch.no_grad():
        tested = slow_regions(setup.network(test), preset)
        torch.testing.assert_close(method.regions(test, method.preset)[0], tested, rtol=1e-5, atol=1e-5)
        error = (slow(tested) - tested) ** 2
    error = error.sum(dim=1, keepdim=True).sqrt() if preset == "paper" else error.mean(dim=1, keepdim=True)
    maps = F.interpolate(error, size=(64, 64), mode="bilinear", align_corners=preset == "last")[:, 0]
    found = method.score(test)
    torch.testing.assert_close(found.map, maps, rtol=1e-3, atol=1e-5 * float(maps.max()))
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))


def ordered(slow):
    """The parameters in our order: each layer's, then its norm's."""
    for number, layer in enumerate(slow.layers):
        yield from layer.parameters()
        if slow.norms is not None and number in (0, 1, 3, 4):
            yield from slow.norms[number - (number > 2)].parameters()


@pytest.mark.parametrize(
    ("side", "first", "second", "last"),
    [
        (258, 1.51176, 5.54314, 255.48825),
        (256, 1.5, 5.5, 253.5),
        (66, 0.38235, 1.40196, 64.61765),
        (34, 0.19412, 0.71176, 32.80589),
        (32, 0.18235, 0.66863, 30.81764),
    ],
)
def test_a_ramp_through_resizing_and_pooling(side, first, second, last):
    found = to_regions(side, 64, PRESETS["last"]) @ torch.arange(float(side))
    assert found[[0, 1, 63]].tolist() == pytest.approx([first, second, last], rel=1e-4)


def test_a_single_error_is_spread_as_in_the_authors_code():
    errors = torch.zeros(1, 64, 64)
    errors[0, 0, 0] = 1
    large = enlarge(errors, (256, 256), corners=True)
    assert large[0, 0, :6].tolist() == pytest.approx([1, 0.75294, 0.50588, 0.25882, 0.01176, 0], abs=1e-5)
    assert float(large.sum()) == pytest.approx(6.39792, rel=1e-5)
    for corners in (True, False):
        constant = enlarge(torch.full((1, 16, 16), 0.3), (64, 64), corners)
        torch.testing.assert_close(constant, torch.full((1, 64, 64), 0.3))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_perfect_reconstruction_scores_zero(preset):
    setup = Setup("dfr", overrides=(f"method.preset={preset}", *SMALL))
    method = setup.new()
    method.build(setup.shapes())
    method.network = nn.Identity()
    found = method.eval().score(new_images())
    assert float(found.map.abs().max()) == float(found.image.max()) == 0


def test_the_code_explains_more_than_90_percent():
    corners = torch.tensor([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)])
    centred = corners * torch.tensor([9.0, 4.0, 1.0, 0.25]).sqrt()
    assert explaining(centred + 7) == 2
    assert explaining(centred * torch.tensor([1.0, 0.0, 0.0, 0.0])) == 1
    assert explaining(torch.ones(5, 4)) <= 4


@pytest.mark.parametrize(
    ("channels", "latent", "norms", "expected"),
    [
        (3456, 100, True, 13_422_060),
        (3456, 100, False, 13_413_948),
        (3456, 200, True, 15_046_360),
        (3456, 200, False, 15_037_048),
        (3456, 300, True, 16_830_660),
        (3456, 300, False, 16_820_148),
        (2048, 100, True, 5_103_596),
        (2048, 200, True, 6_164_696),
    ],
)
def test_parameters_of_the_published_networks(channels, latent, norms, expected):
    with torch.device("meta"):
        network = autoencoder(channels, latent, norms)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_vgg19_gives_3456_channels_on_a_grid_of_64():
    with torch.device("meta"):
        setup = Setup("dfr", "vgg19_reflect", ("backbone.weights=random", *SMALL))
        method = setup.new()
        network = setup.network.network
        (regions,) = method.regions(torch.empty(2, 3, 256, 256), method.preset)
    assert regions.shape == (2, 3456, 64, 64)
    assert sum(parameter.numel() for parameter in network.parameters()) == 10_585_152
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_size_of_the_code_follows_ten_images():
    setup = Setup("dfr", overrides=("method.epochs=1", "method.batch=4"))
    method = setup.fitted(TrainingSet("twelve", pictures(12)))
    features = slow_regions(setup.network(to_tensor(pictures(10))), "last")
    values = torch.linalg.svdvals((rows(features) - rows(features).mean(dim=0)).double()).square()
    expected = next(n for n in range(1, 176) if values[:n].sum() > 0.9 * values.sum())
    assert method.facts["latent"] == expected
    assert method.network[6].out_features == (expected if PRESETS["last"].norms else None)
    loaded = setup.new(**method.resolved)
    loaded.build(setup.shapes())
    loaded.load_state_dict(method.state_dict())
    assert torch.equal(loaded.eval().score(new_images()).map, method.score(new_images()).map)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.preset=newest", "method.preset=newest: no such choice"),
        ("method.latent=0", "method.latent=0: expected at least 1, or null"),
    ],
)
def test_wrong_settings(word, message):
    with pytest.raises(UsageError, match=message):
        Setup("dfr", overrides=(word,)).fitted()


def test_sides_that_are_no_multiples_of_4():
    setup = Setup("dfr", overrides=SMALL)
    with pytest.raises(UsageError, match="DFR cannot take images of 62 x 62 pixels"):
        setup.fitted(TrainingSet("odd", pictures(4, side=62)))
