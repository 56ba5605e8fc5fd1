"""Glance: nothing leaks out of the hole; partial convolutions and maps by loops; what it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from setups import setup
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.methods import glance
from anomaly_bench.methods.glance import GlobalNetwork, between, distillation, holes, partial_convolution, starts
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(3, 500))


def built(**settings):
    method = setup("glance").new(**settings)
    torch.manual_seed(0)
    method.build(setup("glance").shapes())
    return method


def test_pixels_in_the_hole_never_change_the_prediction():
    torch.manual_seed(0)
    network, corners = GlobalNetwork(), torch.tensor([[0, 0], [13, 29], [31, 31]])
    inside = holes(TEST, corners, 33)
    assert inside.sum(dim=(1, 2, 3)).tolist() == [33 * 33] * 3
    assert inside[1, 0, 13:46, 29:62].all()
    for training in (True, False):
        network.train(training)
        expected = network(TEST, corners, 33)
        assert torch.equal(network(torch.where(inside > 0, 100 * torch.rand_like(TEST), TEST), corners, 33), expected)
        outside = TEST.clone()
        outside[:, :, -1, 0] += 1
        assert not torch.isclose(network(outside, corners, 33), expected).all(dim=1).any()


def test_the_prediction_depends_on_the_place():
    torch.manual_seed(0)
    network = GlobalNetwork()
    images = torch.rand(1, 3, 128, 128).expand(2, -1, -1, -1)
    first, second = network(images, torch.tensor([[0, 0], [80, 80]]), 33).detach()
    assert float((first - second).norm() / first.norm()) > 0.05


def test_partial_convolutions_follow_their_equation():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3, padding=1)
    cells, visible = torch.rand(1, 2, 9, 9), torch.ones(1, 1, 9, 9)
    visible[..., 2:7, 3:8] = 0
    found, seen = partial_convolution(cells, visible, layer)
    padded, mask = F.pad(cells, (1, 1, 1, 1)), F.pad(visible, (1, 1, 1, 1))
    for row in range(9):
        for column in range(9):
            window = mask[0, :, row : row + 3, column : column + 3]
            count = float(window.sum())
            part = layer.weight * padded[0, :, row : row + 3, column : column + 3] * window
            expected = part.sum(dim=(1, 2, 3)) * 9 / max(count, 1) + layer.bias if count else torch.zeros(4)
            torch.testing.assert_close(found[0, :, row, column], expected)
            assert float(seen[0, 0, row, column]) == (count > 0)
    whole = nn.Conv2d(2, 4, 3)
    torch.testing.assert_close(partial_convolution(cells, torch.ones_like(visible), whole)[0], whole(cells))
    nn.init.constant_(layer.weight, 1 / 18)
    nn.init.zeros_(layer.bias)
    constant = partial_convolution(torch.full_like(cells, 0.3), visible, layer)
    torch.testing.assert_close(constant[0], 0.3 * constant[1].expand_as(constant[0]))


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
            corner = torch.tensor([[top, left]])
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


def test_between_centres():
    found = between(10, (0, 4, 7), 3)  # centres 1, 5 and 8
    assert found.shape == (10, 3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(10))
    assert found[[0, 1, 2, 5, 9]].tolist() == [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]]
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
        counts = [sum(each.numel() for each in part.parameters()) for part in (glance.local_network(), GlobalNetwork())]
    assert counts == [537_728, 472_448]


@pytest.mark.slow
def test_stains_are_found():
    """After training, stained patches of a new image get the higher score of the classifier."""
    method = built(epochs=24)
    method.fit(TrainingSet("few", pictures(24)))
    method.eval()
    torch.manual_seed(1)
    corners = method.draw(TEST, 20)
    patches = method.patches(TEST, corners)
    predicted = torch.cat(
        [method.glancing(glance.normalised(TEST), corners[:, number], method.side) for number in range(20)]
    )
    own = method.describe(patches).view(3, 20, -1).transpose(0, 1).flatten(0, 1)
    dirty = method.describe(glance.stained(patches)).view(3, 20, -1).transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        answers = [method.judge(torch.cat([codes, predicted], dim=1))[:, 0] for codes in (own, dirty)]
    assert float((answers[0] > answers[1]).float().mean()) > 0.7
    terms = method.terms(TEST, corners[:, 0]).detach()
    assert terms.shape == (3, 2)
    assert all(0 <= float(each) <= 1 for each in terms[:, 1])


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


def test_constants():
    assert math.prod(glance.GlobalNetwork().layers[0].stride) * 2**6 == glance.STRIDE**2
