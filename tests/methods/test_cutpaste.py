"""CutPaste: its copies, the Gaussian against scipy, Grad-CAM by autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.covariance import LedoitWolf

from anomaly_bench.errors import UsageError
from anomaly_bench.methods import cutpaste
from anomaly_bench.methods.cutpaste import CutPaste
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS = pictures(6)
TEST = to_tensor(pictures(2, 500))


def built(**settings):
    torch.manual_seed(0)
    method = CutPaste(**{"epochs": 2, "updates": 2, "batch": 3, "width": 4, "patch": 32, "stride": 8, **settings})
    method.build([(3, 64, 64)])
    return method


def fitted(**settings):
    method = built(**settings)
    method.fit(TrainingSet("gratings", PIXELS))
    return method.eval()


def test_the_published_network():
    """Two ResNet-18 without classifiers, each with a head of 512 and 128."""
    trunk = 11_689_512 - 513 * 1000
    head = 512 * 512 + 2 * 512 + 512 * 128 + 2 * 128
    for maps, networks in (("patches", 2), ("gradcam", 1)):
        for variant, classes in (("3-way", 3), ("cutpaste", 2), ("scar", 2), ("union", 2)):
            method = CutPaste(epochs=1, maps=maps, variant=variant)
            with torch.device("meta"):
                method.build([(3, 256, 256)])
            expected = networks * (trunk + head + 129 * classes)
            assert sum(parameter.numel() for parameter in method.parameters()) == expected
    assert len(cutpaste.starts(256, 64, 4)) == 49


def test_copies_come_from_the_same_images():
    """The first are the images, the others differ from them in a box only."""
    method, views = built(), [torch.rand(3, 64, 64) for _ in range(4)]
    copies, labels = method.copies(views)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for number, view in enumerate(views):
        assert torch.equal(copies[number], view)
        for copy in (copies[4 + number], copies[8 + number]):
            changed = (copy != view).any(dim=0)
            assert 0 < changed.any(dim=0).sum() * changed.any(dim=1).sum() < 0.25 * 64 * 64
    assert built(variant="union").copies(views)[1].tolist() == [0] * 4 + [1] * 4


def test_training_images_are_shifted_by_up_to_a_tenth(monkeypatch):
    monkeypatch.setattr(cutpaste, "JITTER", lambda image: image)
    image = torch.rand(3, 64, 48)
    padded = np.pad(image.numpy(), ((0, 0), (6, 6), (4, 4)), "reflect")
    torch.manual_seed(0)
    found = {cutpaste.shifted(image).numpy().tobytes() for _ in range(1500)}
    expected = {padded[:, top : top + 64, left : left + 48].tobytes() for top in range(13) for left in range(9)}
    assert found == expected


def test_both_networks_see_the_same_shifted_image(monkeypatch):
    seen = []
    monkeypatch.setattr(CutPaste, "loss", lambda self, network, views, device: seen.append(views))
    method = built()
    list(method.losses(TEST))
    whole, patches = seen
    for view, patch in zip(whole, patches, strict=True):
        assert patch.shape == (3, 32, 32)
        windows = view.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 33, 33, 32, 32)
        assert (windows == patch[:, None, None]).all(dim=(0, 3, 4)).any()


def test_the_learning_rate_falls_by_a_cosine(monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def watched(self, *words, **keys):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *words, **keys)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    method, normals = built(maps="gradcam"), TrainingSet("gratings", PIXELS)
    normals.steps = 8
    method.fit(normals)
    assert rates == pytest.approx([0.03 * (1 + math.cos(math.pi * number / 8)) / 2 for number in range(8)])
    assert (rates[0], rates[4]) == (0.03, pytest.approx(0.015))


def test_scores_are_negative_log_densities():
    """Of images and of patches, without the constant: the mean scores 0. The length of the features does not matter."""
    method = fitted()
    with torch.no_grad():
        images = method.whole.embed(method.whole.features(to_tensor(PIXELS))), TEST
        patches = method.embed_patches(to_tensor(PIXELS), 32).flatten(0, 2), TEST[:, :, :32, :32]
        for network, (known, tested) in ((method.whole, images), (method.patches, patches)):
            features = network.features(tested)
            embedded = network.embed(features)
            torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(tested)))
            torch.testing.assert_close(network.embed(7 * features), embedded)
            estimate = LedoitWolf().fit(known.double().numpy())
            density = stats.multivariate_normal(estimate.location_, estimate.covariance_)
            expected = density.logpdf(estimate.location_) - density.logpdf(embedded.double().numpy())
            np.testing.assert_allclose(network.density(embedded).numpy(), expected, rtol=1e-3)
            assert float(network.density(network.gaussian.mean)) == 0
        expected = method.whole.density(method.whole.embed(method.whole.features(TEST)))
    assert torch.equal(method.score(TEST).image, expected)


def test_patches_are_those_of_a_loop():
    method = fitted()
    found = method.embed_patches(TEST, 8)
    assert found.shape[:3] == (2, 5, 5)
    for image in range(2):
        for row in range(5):
            for column in range(5):
                patch = TEST[image : image + 1, :, 8 * row : 8 * row + 32, 8 * column : 8 * column + 32]
                alone = method.patches.embed(method.patches.features(patch))[0]
                torch.testing.assert_close(found[image, row, column], alone, rtol=1e-4, atol=1e-5)


def test_grad_cam_is_that_of_autograd():
    method = fitted(maps="gradcam")
    features = method.whole.features(TEST).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(method.whole.density(method.whole.embed(features)).sum(), features)
    expected = (slopes.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).clamp(min=0).detach()
    torch.testing.assert_close(method.whole.grad_cam(features.detach()), expected, rtol=1e-3, atol=1e-6)
    result = method.score(TEST)
    large = F.interpolate(expected[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(result.map, large, rtol=1e-3, atol=1e-6)


def test_too_few_images():
    with pytest.raises(ValueError, match="two: 2 training images; CutPaste's Gaussian needs at least 3"):
        built().fit(TrainingSet("two", PIXELS[:2]))


def test_wrong_settings():
    for settings, message in (
        ({"variant": "3way"}, "method.variant=3way: no such choice; did you mean 3-way"),
        ({"maps": "grad"}, "method.maps=grad: no such choice"),
        ({"patch": 30}, "method.patch=30, method.stride=8, method.fitted_stride=32: expected patches of at least 32"),
        ({"stride": 0}, "method.stride=0"),
        ({"patch": 96}, "method.patch=96: images of 64 x 64 pixels; expected none smaller"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
