"""CS-Flow against a slow version written from the paper's equations and figures."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.cs_flow import CrossConvolutions, CSFlow, check_size
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.testing.setup import Setup, pictures

KERNEL = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 8
make = functools.partial(CSFlow, epochs=2, hidden=4, kernels=[3, 5], lr=0.01)


def network(images):
    """A tiny frozen network with one level: (B, 6, H / 8, W / 8)."""
    return [F.relu(F.conv2d(images, KERNEL, stride=8))]


def fit(method):
    shapes = [tuple(level.shape[1:]) for level in method.backbone(torch.rand(1, 3, 64, 64))]
    fit_method(method, shapes, TrainingSet("cog", pictures(24)), seed=0)
    return method.requires_grad_(False)


@pytest.fixture(scope="module")
def method():
    return fit(make(network))


def convolve(x, layer):
    """A zero-padded convolution, element by element: (C, h, w) float64."""
    weight, bias, stride = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy(), layer.stride[0]
    side = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    height, width = x.shape[1] // stride, x.shape[2] // stride
    found = np.empty((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
            found[:, i, j] = np.tensordot(weight, window, axes=3) + bias
    return found


def double(x):
    return F.interpolate(torch.from_numpy(x)[None], scale_factor=2, mode="bilinear", align_corners=False)[0].numpy()


def subnet(net, maps):
    """The three outputs: each scale's own convolution, plus one from the smaller and one from the larger scale."""
    hidden = [convolve(x, layer) for x, layer in zip(maps, net.first, strict=True)]
    hidden = [np.where(x > 0, x, 0.1 * x) for x in hidden]
    large = convolve(hidden[0], net.second[0]) + convolve(double(hidden[1]), net.up[0])
    middle = convolve(hidden[1], net.second[1]) + convolve(double(hidden[2]), net.up[1])
    middle = middle + convolve(hidden[0], net.down[0])
    small = convolve(hidden[2], net.second[2]) + convolve(hidden[1], net.down[1])
    return [float(factor) * x for factor, x in zip(net.gamma, (large, middle, small), strict=True)]


def slow(method, maps):
    """The flow's z and log-determinant for one image's maps."""
    total = 0.0
    for block in method.flow:
        maps = [x[order.numpy()] for x, order in zip(maps, block.orders, strict=True)]
        first, second = [x[: len(x) // 2] for x in maps], [x[len(x) // 2 :] for x in maps]
        first, added = change(first, subnet(block.from_second, second))
        second, more = change(second, subnet(block.from_first, first))
        maps, total = [np.concatenate(pair) for pair in zip(first, second, strict=True)], total + added + more
    return maps, total


def change(maps, predicted):
    scales = [3 * 0.636 * np.arctan(each[: len(each) // 2] / 3) for each in predicted]
    shifts = [each[len(each) // 2 :] for each in predicted]
    changed = [x * np.exp(scale) + shift for x, scale, shift in zip(maps, scales, shifts, strict=True)]
    return changed, sum(scale.sum() for scale in scales)


def test_scores_maps_and_loss_follow_the_equations(method):
    images = to_tensor(pictures(2, first=900))
    images[0, :, 20:30, 20:30] = 0
    result = method.score(images)
    maps = [network(scale)[0].double().numpy() for scale in (images, images[..., ::2, ::2], images[..., ::4, ::4])]
    losses = []
    for number in range(2):
        z, log_det = slow(method, [each[number] for each in maps])
        elements = np.concatenate([each.ravel() for each in z])
        assert float(result.image[number]) == pytest.approx((elements**2).mean() / 2, rel=1e-3)
        small = torch.from_numpy((z[0] ** 2).mean(axis=0))
        expected = F.interpolate(small[None, None], size=(64, 64), mode="bilinear")[0, 0]
        np.testing.assert_allclose(result.map[number], expected, rtol=2e-3)
        losses.append(((elements**2).sum() / 2 - log_det) / len(elements))
    assert any(block.from_first.gamma.abs().max() > 0.01 for block in method.flow), "otherwise the test is vacuous"
    found = method.loss([torch.from_numpy(each).float() for each in maps])
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)


def test_flow_is_initialised_as_a_permutation():
    method = make(network)
    method.build([(6, 8, 8)])
    maps = [torch.randn(2, 6, side, side) for side in (8, 4, 2)]
    z, log_det = method.flow(maps)
    assert log_det.eq(0).all()
    for x, y in zip(maps, z, strict=True):
        assert torch.equal(x.sort(dim=1).values, y.sort(dim=1).values)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_each_scale_depends_only_on_adjacent_scales(kernel):
    torch.manual_seed(0)
    net = CrossConvolutions([2, 2, 2], [4, 4, 4], hidden=5, kernel=kernel)
    torch.nn.init.ones_(net.gamma)
    maps = [torch.randn(1, 2, side, side, requires_grad=True) for side in (8, 4, 2)]
    found = net(maps)
    assert [tuple(each.shape) for each in found] == [(1, 4, 8, 8), (1, 4, 4, 4), (1, 4, 2, 2)]
    for number, each in enumerate(found):
        gradients = torch.autograd.grad(each.sum(), maps, retain_graph=True, allow_unused=True)
        heard = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert heard == [abs(number - other) < 2 for other in range(3)]


@pytest.mark.parametrize(("kernels", "count"), [("[3,3,3,5]", 275_227_288), ("[3,3,3,1]", 148_218_520)])
def test_extra_parameters_of_the_published_backbone(kernels, count):
    """The second is what Table 3 of Zheng et al. 2022 reports: 148.2 million."""
    setup = Setup("cs_flow", "effb5", ("backbone.weights=random", f"method.kernels={kernels}"))
    with torch.device("meta"):
        method = setup.new()
        shapes = setup.network.shapes((768, 768))
        method.build(shapes)
    assert shapes == [(304, 24, 24)]
    assert sum(value.numel() for value in method.parameters()) == count


@pytest.mark.parametrize(("size", "grid"), [((768, 768), (24, 24)), ((256, 128), (8, 4)), ((224, 224), (16, 16))])
def test_supported_sizes(size, grid):
    check_size(size, grid)


@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [
        ((224, 224), (7, 7), "images of 224 x 224 pixels with a grid of 7 x 7.*multiples of 128, such as 128 or 256"),
        ((250, 256), (8, 8), "multiples of 128, such as 128 or 256"),
        ((256, 320), (8, 10), "multiples of 128, such as 256 or 384"),
        ((64, 64), (2, 2), "such as 128 or 256"),
        ((252, 252), (18, 18), "multiples of 56, such as 224 or 280"),
        ((256, 256), (7, 7), "a backbone with a grid of 8 x 8 here"),
    ],
)
def test_unsupported_sizes(size, grid, expected):
    with pytest.raises(UsageError, match=expected):
        check_size(size, grid)


def test_unsupported_size_is_rejected_before_training(command, tree):
    words = ["method=cs_flow", "method.hidden=4", "dataset=folder", f"data_root={tree}", "input.resize=96"]
    status, _, err = command(*words)
    assert status == 2
    assert "multiples of 128, such as 128 or 256: set input.resize or input.crop" in err


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"backbone": lambda images: network(images) * 2}, "found 2 levels"),
        ({"backbone": network, "kernels": [3, 4]}, "expected odd numbers"),
    ],
)
def test_incompatible_settings(keys, expected):
    with pytest.raises(UsageError, match=expected):
        fit(make(**keys))


def test_strong_anomalies_have_finite_and_larger_scores(method):
    factors = torch.tensor([1, 10, 1e2, 1e3, 1e4, 1e5])
    result = method.score(to_tensor(pictures(1, first=900)) * factors.view(-1, 1, 1, 1))
    for each in (result.image, result.map.amax(dim=(1, 2))):
        assert each.isfinite().all()
        assert (each.diff() > 0).all()
