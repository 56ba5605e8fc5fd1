"""Glance: maps by loops, the distillation loss by hand, and what it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from setups import setup
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.methods import glance
from anomaly_bench.methods.glance import distillation, starts
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(3, 500))


def built(**settings):
    method = setup("glance").new(**settings)
    torch.manual_seed(0)
    method.build(setup("glance").shapes())
    return method


def test_maps_follow_a_loop_over_patches():
    method = built(grid=3, weight=0.7).eval()
    method.term_mean.copy_(torch.tensor([0.5, 0.2]))
    method.term_std.copy_(torch.tensor([2.0, 0.1]))
    found = method.score(TEST)
    places = starts(64, method.side, 3)
    assert places == [0, (64 - method.side) // 2, 64 - method.side]
    half = (method.side - 1) / 2
    with torch.no_grad():
        for number, top, left in [(0, 0, 0), (1, places[1], places[2]), (2, places[2], places[1])]:
            patch = TEST[number : number + 1, :, top : top + method.side, left : left + method.side]
            own = method.describe(F.interpolate(patch, (33, 33), mode="bilinear"))
            corner = torch.tensor([[[top, left]]])
            other = method.glancing(glance.normalised(TEST[number : number + 1]), corner, method.side)
            distance = float((own - other).square().mean())
            stain = 1 - float(method.judge(torch.cat([own, other], dim=1)).sigmoid())
            expected = 0.7 * (distance - 0.5) / 2 + 0.3 * (stain - 0.2) / 0.1
            assert half == int(half)
            at = found.map[number, top + int(half), left + int(half)]
            assert float(at) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))
    method.grid = 1
    single = method.score(TEST).map
    assert torch.equal(single, single[:, :1, :1].expand_as(single))


def test_the_distance_alone():
    method = built(weight=1.0).eval()
    before = method.score(TEST)
    nn.init.constant_(method.judge[2].bias, 5.0)
    assert torch.equal(method.score(TEST).map, before.map)


def test_patches_are_even():
    assert starts(256, 33, 20) == [int(number * 223 / 19) for number in range(20)]
    assert starts(10, 8, 20) == [0, 1, 2]


def test_distillation_by_hand():
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    wanted = torch.rand(4, 5)
    assert float(distillation(codes, wanted, wanted)) == pytest.approx(0)
    assert float(distillation(codes, wanted + 1, wanted)) == pytest.approx(5 / 2)
    same = codes[:, :1].expand(4, 2)
    assert float(distillation(same, wanted, wanted)) == pytest.approx(2 / 2)  # two pairs of equal entries


def test_parameters():
    with torch.device("meta"):
        networks = glance.local_network(), glance.GlobalNetwork(glance.CODE)
    counts = [sum(each.numel() for each in part.parameters()) for part in networks]
    assert counts == [537_728, 472_448]


@pytest.mark.slow
def test_stains_are_found():
    """After training, stained patches of a new image get the higher score of the classifier."""
    method = built(epochs=24)
    method.fit(TrainingSet("few", pictures(24)))
    method.eval()
    torch.manual_seed(1)
    corners = glance.random_corners((64, 64), method.side, 3, 20)
    patches = method.patches(TEST, corners)
    predicted = torch.cat(
        [method.glancing(glance.normalised(TEST), corners[:, number : number + 1], method.side) for number in range(20)]
    )
    own = method.describe(patches).view(3, 20, -1).transpose(0, 1).flatten(0, 1)
    dirty = method.describe(glance.stained(patches)).view(3, 20, -1).transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        answers = [method.judge(torch.cat([codes, predicted], dim=1))[:, 0] for codes in (own, dirty)]
    assert float((answers[0] > answers[1]).float().mean()) > 0.7
    terms = method.terms(TEST, corners[:, 0]).detach()
    assert terms.shape == (3, 2)
    assert all(0 <= float(each) <= 1 for each in terms[:, 1])


@pytest.mark.parametrize(("side", "hidden"), [(9, 4), (33, 1)])  # 64 x 64 / (9 x 9 x 12) = 4.2
def test_patches_that_are_hidden_at_once(side, hidden, monkeypatch):
    """In training, on a twelfth of an image at most, but at least one."""
    method, seen = built(epochs=4, side=side), []
    loss = method.loss
    monkeypatch.setattr(method, "loss", lambda images, corners: seen.append(corners.shape[1]) or loss(images, corners))
    method.fit(TrainingSet("few", pictures(2)))
    assert set(seen) == {hidden}


def test_wrong_settings():
    for settings, message in (
        ({"pretraining": 0.0}, "method.pretraining=0.0"),
        ({"weight": 1.5}, r"method.weight=1.5: expected shares"),
        ({"grid": 0}, "method.grid=0: expected at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
    with pytest.raises(UsageError, match=r"method.side=65: expected patches within images of 64 x 64 pixels"):
        built(side=65).fit(TrainingSet("few", pictures(2)))
