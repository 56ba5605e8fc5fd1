"""Partial convolutions by a loop; nothing leaks out of the hole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.partial_convolution import POOLED, STRIDE, GlobalNetwork, holes, partial_convolution
from anomaly_bench.protocol import to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(3, 500))


def test_pixels_in_the_hole_never_change_the_prediction():
    torch.manual_seed(0)
    network, corners = GlobalNetwork(16), torch.tensor([[[0, 0]], [[13, 29]], [[31, 31]]])
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


def test_several_squares_are_hidden_at_once():
    torch.manual_seed(0)
    network, corners = GlobalNetwork(16), torch.tensor([[[0, 0], [40, 30]], [[10, 5], [15, 9]], [[44, 44], [0, 44]]])
    inside = holes(TEST, corners, 20)
    assert inside.sum(dim=(1, 2, 3)).tolist() == [800, 800 - 15 * 16, 800]
    expected = network(TEST, corners, 20)
    assert expected.shape == (6, 16)
    assert torch.equal(network(torch.where(inside > 0, 100 * torch.rand_like(TEST), TEST), corners, 20), expected)
    turned = network(TEST, corners.flip(1), 20)
    torch.testing.assert_close(turned.view(3, 2, 16).flip(1).flatten(0, 1), expected)


def test_the_prediction_depends_on_the_place():
    torch.manual_seed(0)
    network = GlobalNetwork(16)
    images = torch.rand(1, 3, 128, 128).expand(2, -1, -1, -1)
    first, second = network(images, torch.tensor([[[0, 0]], [[80, 80]]]), 33).detach()
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


def test_stride():
    assert GlobalNetwork(16).layers[0].stride[0] * 2 ** len(POOLED) == STRIDE
