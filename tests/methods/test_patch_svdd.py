"""Patch SVDD: one pass of an image against single patches, maps against a loop, pairs of patches, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from setups import setup
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.methods import patch_svdd as module
from anomaly_bench.methods.patch_svdd import Classifier, Encoder, PatchSVDD
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

SIDE = 80
PIXELS = pictures(4, side=SIDE)
TEST = to_tensor(pictures(2, 500, side=SIDE))


@pytest.fixture(scope="module")
def fitted():
    normals = TrainingSet("waves", PIXELS)
    normals.steps = 4
    return setup("patch_svdd").fitted(normals)


def count(network, trained=False):
    return sum(value.numel() for value in network.parameters() if value.requires_grad or not trained)


def test_parameters_of_the_published_networks():
    with torch.device("meta"):
        encoder, classifier = Encoder(3, 32, 64), Classifier(64)
        method = PatchSVDD(epochs=1)
        method.build([(3, 256, 256)])
        dense = encoder.dense(torch.empty(1, 3, 256, 256), 4)
        assert encoder.small(torch.empty(2, 3, 32, 32)).shape == (2, 64, 1, 1)
        assert encoder.large(torch.empty(2, 3, 64, 64)).shape == (2, 64)
    assert (count(encoder.small), count(encoder), count(method)) == (360_832, 401_984, 401_984)
    assert (count(classifier), count(classifier, trained=True)) == (25_864, 25_864 - 1024)
    assert [tuple(codes.shape[2:]) for codes in dense] == [(13, 13), (57, 57)]
    places = {side: [list(range(0, 257 - side, stride))] * 2 for side, stride in ((64, 16), (32, 4))}
    assert {side: [list(axis) for axis in axes] for side, axes in method.places.items()} == places


@pytest.mark.parametrize("stride", module.STRIDES)
def test_dense_codes_are_those_of_each_patch(stride):
    torch.manual_seed(0)
    encoder, image = Encoder(3, 4, 8).double(), torch.randn(1, 3, 96, 128, dtype=torch.float64)
    for found, side, step, encode in zip(
        encoder.dense(image, stride),
        (64, 32),
        (4 * stride, stride),
        (encoder.large, lambda patch: encoder.small(patch).flatten(1)),
        strict=True,
    ):
        assert list(found.shape[2:]) == [len(range(0, length - side + 1, step)) for length in (96, 128)]
        assert found.abs().max() < 1
        for row in range(found.shape[2]):
            for column in range(0, found.shape[3], 3):
                patch = image[:, :, step * row : step * row + side, step * column : step * column + side]
                torch.testing.assert_close(found[:, :, row, column], encode(patch), rtol=1e-10, atol=1e-12)


def test_quadrants_are_encoded_one_by_one():
    encoder, patch = Encoder(3, 4, 8), torch.randn(1, 3, 64, 64)
    corners = [patch[:, :, top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32)]
    codes = torch.stack([encoder.small(corner)[0, :, 0, 0] for corner in corners], dim=1).view(1, 8, 2, 2)
    expected = encoder.last(F.leaky_relu(encoder.join(codes), 0.1)).tanh().flatten(1)
    torch.testing.assert_close(encoder.large(patch), expected)


def test_maps_follow_a_loop_over_patches(fitted):
    """Patch by patch, with all distances, in NumPy."""
    result = fitted.score(TEST)
    bank = {side: [] for side in (64, 32)}
    encode = {64: fitted.encoder.large, 32: lambda patch: fitted.encoder.small(patch).flatten(1)}

    def patches(image):
        for side, stride in ((64, 16), (32, 4)):
            for top in range(0, SIDE - side + 1, stride):
                for left in range(0, SIDE - side + 1, stride):
                    with torch.no_grad():
                        code = encode[side](image[None, :, top : top + side, left : left + side])
                    yield side, top, left, code[0].double().numpy()

    images = to_tensor(PIXELS)
    average = images.mean(dim=0)
    for image in images - average:
        for side, _, _, code in patches(image):
            bank[side].append(code)
    for number, image in enumerate(TEST - average):
        sums = {side: np.zeros((2, SIDE, SIDE)) for side in bank}
        for side, top, left, code in patches(image):
            distance = np.sqrt(((np.stack(bank[side]) - code) ** 2).sum(axis=1)).min()
            sums[side][:, top : top + side, left : left + side] += [[[distance]], [[1.0]]]
        expected = np.prod([total / covers for total, covers in sums.values()], axis=0)
        np.testing.assert_allclose(result.map[number].numpy(), expected, rtol=2e-3)
        assert float(result.image[number]) == float(result.map[number].max())


def test_training_images_score_zero(fitted):
    assert fitted.score(to_tensor(PIXELS)).map.max() < 1e-3 * fitted.score(TEST).map.min()


@pytest.mark.parametrize("side", [64, 32])
def test_pairs_of_patches(side):
    """Displacements, of patches of an image whose values are their own coordinates."""
    torch.manual_seed(0)
    rows = torch.arange(256.0)
    image = torch.stack([rows[:, None].expand(256, 256), rows.expand(256, 256)])[None].expand(400, -1, -1, -1)
    drawn, shifts = module.near_pairs(image, side)
    reach, first, second = side // 32, *drawn.chunk(2)
    assert {tuple(pair) for pair in shifts.tolist()} == {
        (down, across) for down in range(-reach, reach + 1) for across in range(-reach, reach + 1) if down or across
    }
    expected = (first[:, :, 0, 0] + shifts).clamp(0, 256 - side)
    assert torch.equal(second[:, :, 0, 0], expected)
    assert torch.equal(first[0] - first[0, :, :1, :1], image[0, :, :side, :side])
    assert (first[:, :, 0, 0].amin(), first[:, :, 0, 0].amax()) == (0, 256 - side)

    drawn, labels = module.neighbouring_pairs(image, side)
    places = drawn.mean(dim=(2, 3)).chunk(2)
    assert set(labels.tolist()) == set(range(8))
    inside = ((places[1] > side / 2 + 1) & (places[1] < 256 - side / 2 - 2)).all(dim=1)
    signs = torch.tensor(module.DIRECTIONS)[labels][inside]
    away = (places[1] - places[0])[inside]
    assert inside.sum() > 20
    assert away[signs == 0].abs().max() < 0.5
    moved = away[signs != 0] * signs[signs != 0]
    assert 3 * side / 4 - 0.5 < moved.min() < moved.max() < side - 0.5
    noise = drawn - (drawn.mean(dim=(2, 3), keepdim=True) + image[0, :, :side, :side] - (side - 1) / 2)
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05)


def test_noise_of_a_channel_and_of_its_values():
    torch.manual_seed(0)
    drawn, _ = module.neighbouring_pairs(torch.zeros(300, 3, 64, 64), 64)
    assert float(drawn.mean(dim=(2, 3)).std()) == pytest.approx(0.02, rel=0.05)
    assert float(drawn.std(dim=(2, 3)).mean()) == pytest.approx(0.02, rel=0.05)


def test_the_loss_by_hand(fitted, monkeypatch):
    """Each patch by itself; near patches that coincide add nothing."""
    torch.manual_seed(0)
    classifiers, images = nn.ModuleList([Classifier(64), Classifier(64)]), TEST - fitted.mean
    kept: dict = {}
    for name in ("neighbouring_pairs", "near_pairs"):
        draw = getattr(module, name)
        kept |= {(name, side): draw(images, side) for side in (64, 32)}
        monkeypatch.setattr(module, name, lambda images, side, name=name, kept=kept: kept[name, side])
    expected = 0.0
    for side, classifier in zip((64, 32), classifiers, strict=True):
        encode = fitted.encoder.large if side == 64 else lambda patch: fitted.encoder.small(patch).flatten(1)
        patches, labels = kept["neighbouring_pairs", side]
        first, second = (torch.cat([encode(patch[None]) for patch in part]) for part in patches.chunk(2))
        layers = list(classifier)
        hidden = nn.Sequential(*layers[:-1])(first - second)
        weight = layers[-1].weight / layers[-1].weight.norm(dim=0)
        expected += F.cross_entropy(hidden @ weight.T + layers[-1].bias, labels)
        near = kept["near_pairs", side][0].chunk(2)
        first, second = (torch.cat([encode(patch[None]) for patch in part]) for part in near)
        expected += 0.001 * (first - second).square().sum(dim=1).sqrt().mean()
    found = fitted.loss(images, classifiers)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all((value.grad is None) == (value.shape == (8, 128)) for value in classifiers.parameters())
    fitted.zero_grad()


def test_equal_patches_have_no_infinite_gradient():
    """Moving a patch into the image can make it equal to the first."""
    method = setup("patch_svdd").new()
    method.build([(3, 64, 64)])
    images = torch.rand(2, 3, 64, 64)
    method.loss(images, nn.ModuleList([Classifier(64), Classifier(64)])).backward()
    assert all(value.grad.isfinite().all() for value in method.encoder.parameters())


def test_images_are_centred(fitted):
    images = to_tensor(PIXELS)
    torch.testing.assert_close((images - fitted.mean).mean(dim=0), torch.zeros(3, SIDE, SIDE), rtol=0, atol=1e-6)


def test_wrong_settings(fitted):
    for settings, message in (
        ({"stride": 3}, "method.stride=3: expected 2, 4 or 8 pixels"),
        ({"repeats": 0}, "method.repeats=0: expected at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            PatchSVDD(epochs=1, **settings)
    for size, message in (
        ((72, 64), "Patch SVDD cannot take images of 72 x 64 pixels; expected sides that are multiples of 16"),
        ((48, 64), "Patch SVDD cannot take images of 48 x 64 pixels; expected at least 64 on each side"),
    ):
        with pytest.raises(UsageError, match=message):
            PatchSVDD(epochs=1).build([(3, *size)])
    with pytest.raises(ValueError, match="score images of the same size"):
        fitted.score(TEST[:, :, :64, :64])
