"""Couplings against a slow version of their equations, autograd's Jacobian, and round trips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_bench.components.flows import Flow, OneSided, TwoSided, random_rotation


def linear(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, outputs))


def convolution(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, outputs, 3, padding=1))


class Jointly(nn.Module):
    """Every output map depends on all input maps."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.parts = nn.ModuleList(linear(sum(inputs), count) for count in outputs)

    def forward(self, maps):
        means = torch.cat([each.flatten(2).mean(dim=2) if each.dim() > 2 else each for each in maps], dim=1)
        found = [part(means) for part in self.parts]
        return [
            out if each.dim() == 2 else out[..., None, None] + each[:, :1]
            for out, each in zip(found, maps, strict=True)
        ]


def shaken(make):
    """A flow in float64 with all parameters perturbed."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # rotations are only as orthogonal as their precision allows
    try:
        flow = Flow(make())
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return flow


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_sided(channels, subnet=linear, steps=1, **keys):
    return shaken(lambda: [OneSided(channels, subnet, 1.9, **keys) for _ in range(steps)])


def two_sided(channels, steps=1):
    return shaken(lambda: [TwoSided(channels, Jointly, 3.0) for _ in range(steps)])


CASES = {
    "hard": (one_sided(6), draw(3, 6), ()),
    "odd": (one_sided(5, steps=2), draw(3, 5), ()),
    "soft": (one_sided(6, soft=True, steps=2), draw(3, 6), ()),
    "condition": (one_sided(4, soft=True, condition=3), draw(3, 4), (draw(3, 3),)),
    "maps": (one_sided(4, convolution, steps=3), draw(2, 4, 3, 2), ()),
    "soft maps": (one_sided(4, convolution, soft=True), draw(2, 4, 3, 2), ()),
    "two-sided": (two_sided([6], steps=2), [draw(3, 6)], ()),
    "two-sided odd": (two_sided([5]), [draw(3, 5)], ()),
    "three maps": (two_sided([4, 3, 4], steps=2), [draw(2, 4, 4, 2), draw(2, 3, 2, 1), draw(2, 4, 1, 1)], ()),
}


def flat(x):
    """(B, all elements)"""
    return torch.cat([each.flatten(1) for each in x], dim=1) if isinstance(x, list) else x.flatten(1)


def shaped(values, like):
    if not isinstance(like, list):
        return values.view(like.shape)
    parts = values.split([each[0].numel() for each in like], dim=1)
    return [part.reshape(len(part), *each.shape[1:]) for part, each in zip(parts, like, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_the_inverse_is_exact(name):
    flow, x, condition = CASES[name]
    y, _ = flow(x, *condition)
    torch.testing.assert_close(flat(flow.inverse(y, *condition)), flat(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(flat(y), flat(x))


@pytest.mark.parametrize("name", CASES)
def test_log_determinant_matches_autograd_jacobian(name):
    flow, x, condition = CASES[name]
    jacobian = torch.autograd.functional.jacobian(lambda values: flat(flow(shaped(values, x), *condition)[0]), flat(x))
    _, log_det = flow(x, *condition)
    assert log_det.shape == (len(flat(x)),)
    for index, found in enumerate(log_det):
        expected = torch.linalg.slogdet(jacobian[index, :, index]).logabsdet
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_one_sided_follows_its_equations():
    flow, x, _ = CASES["odd"]
    block = flow[0]
    for row, found in zip(x, block(x)[0], strict=True):
        predicted = (0.1 * block.subnet(row[None, :3]))[0].tolist()
        expected = row.tolist()
        for i in range(2):
            expected[3 + i] = expected[3 + i] * math.exp(1.9 * math.tanh(predicted[i])) + predicted[2 + i]
        for i in range(5):
            softplus = math.log(1 + math.exp(0.5 * block.scale[i].item())) / 0.5
            expected[i] = expected[i] * 0.1 * softplus + block.offset[i].item()
        assert found.tolist() == pytest.approx([expected[i] for i in block.order], rel=1e-12)


def test_two_sided_follows_its_equations():
    flow, maps, _ = CASES["two-sided odd"]
    block = flow[0]
    for row, found in zip(maps[0], block(maps)[0][0], strict=True):
        values = row[block.order0]
        first, second = values[:2], values[2:]
        s, t = block.from_second([second[None]])[0][0].split(2)
        first = torch.stack(
            [f * math.exp(3 * 0.636 * math.atan(a / 3)) + b for f, a, b in zip(first, s, t, strict=True)]
        )
        s, t = block.from_first([first[None]])[0][0].split(3)
        second = [f * math.exp(3 * 0.636 * math.atan(a / 3)) + b for f, a, b in zip(second, s, t, strict=True)]
        assert found.tolist() == pytest.approx([*first.tolist(), *map(float, second)], rel=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_channels_start_with_scale_one(soft):
    block = OneSided(8, lambda a, b: nn.Linear(a, b), 2.0, soft=soft)
    nn.init.zeros_(block.subnet.weight)
    nn.init.zeros_(block.subnet.bias)
    x = torch.randn(4, 8)
    y, log_det = block(x)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))  # a permutation
    torch.testing.assert_close(log_det, torch.zeros(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("clamp", [1.9, 2.0])
def test_the_log_scale_is_clamped(clamp):
    block = OneSided(2, lambda a, b: nn.Linear(a, b), clamp)
    nn.init.constant_(block.subnet.weight, 1e6)
    assert float(block(torch.ones(1, 2))[1]) == pytest.approx(clamp, abs=1e-5)
    glow = TwoSided([2], lambda a, b: Large(), clamp)
    assert float(glow([torch.ones(1, 2)])[1]) == pytest.approx(2 * clamp * 0.636 * math.pi / 2, rel=1e-5)


class Large(nn.Module):
    def forward(self, maps):
        return [torch.full((1, 2), 1e9)]


def test_outputs_of_the_two_sided_coupling_are_clamped():
    glow = TwoSided([2], lambda a, b: Large(), 3.0)
    assert glow([torch.ones(1, 2)])[0][0].tolist() == [[1e6, 1e6]]


def test_rotations():
    torch.manual_seed(0)
    for size in (2, 3, 64):
        for _ in range(4):
            rotation = random_rotation(size).double()
            torch.testing.assert_close(rotation @ rotation.T, torch.eye(size).double(), rtol=0, atol=1e-5)
            assert float(torch.linalg.det(rotation)) == pytest.approx(1, abs=1e-5)
    angles = [math.atan2(r[1, 0], r[0, 0]) for r in (random_rotation(2) for _ in range(400))]
    counts, _ = np.histogram(angles, bins=4, range=(-math.pi, math.pi))
    assert counts.min() > 70, "uniform over the circle"


def test_permutations_are_buffers_drawn_by_the_torch_seed():
    def state(seed):
        torch.manual_seed(seed)
        flow = Flow([OneSided(6, linear, 2.0), OneSided(6, linear, 2.0, soft=True), TwoSided([6, 4], Jointly, 3.0)])
        assert not {"order", "rotation"} & {name.split(".")[-1] for name, _ in flow.named_parameters()}
        return {name: value for name, value in flow.state_dict().items() if "order" in name or "rotation" in name}

    first, again, other = state(3), state(3), state(4)
    assert first.keys() == {"0.order", "1.rotation", "2.order0", "2.order1"}
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_parameters_are_counted_on_the_meta_device():
    with torch.device("meta"):
        flow = Flow([OneSided(2048, linear, 1.9, soft=True, condition=128), OneSided(6, convolution, 2.0)])
        glow = TwoSided([4, 6], Jointly, 3.0)
    assert all(tensor.is_meta for module in (flow, glow) for tensor in [*module.parameters(), *module.buffers()])
    subnet = (1024 + 128) * 7 + 7 + 7 * 2048 + 2048
    assert sum(value.numel() for value in flow[0].parameters()) == subnet + 2 * 2048
