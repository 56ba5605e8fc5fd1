"""ITAE: turns, its network and schedule, and scores against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_bench.components import training
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import itae
from anomaly_bench.methods.itae import ITAE
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS = pictures(7, side=32)
TEST = to_tensor(pictures(3, 500, side=32))


def built(**settings):
    torch.manual_seed(0)
    method = ITAE(**{"epochs": 10, "batch": 3, "width": 4, **settings})
    method.build([(3, 32, 32)])
    return method


@pytest.fixture(scope="module")
def fitted():
    method = built()
    method.fit(TrainingSet("gratings", PIXELS))
    return method.eval()


def test_parameters_of_the_network():
    method = ITAE(epochs=1)
    with torch.device("meta"):
        method.build([(3, 256, 256)])
        assert method.network(torch.rand(2, 1, 256, 256)).shape == (2, 3, 256, 256)
    assert sum(parameter.numel() for parameter in method.parameters()) == 13_395_840


def test_four_quarter_turns_return_the_image():
    images = torch.rand(2, 3, 32, 32)
    turned = images
    for count in range(4):
        assert torch.equal(itae.turn(images, count), turned)
        turned = itae.turn(turned, 1)
    assert torch.equal(turned, images)
    assert np.array_equal(itae.turn(images, 1), np.rot90(images.numpy(), axes=(2, 3)))


def test_training_images_score_one_on_average(fitted):
    images = itae.scaled(to_tensor(PIXELS))
    assert float(fitted.score(to_tensor(PIXELS)).image.mean()) == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        for errors, mean in zip(fitted.errors(images), fitted.means, strict=True):
            assert float(errors.mean() / mean) == pytest.approx(1, abs=1e-6)


def test_scores_follow_a_slow_version(fitted):
    result = fitted.score(TEST)
    for number, image in enumerate(TEST):
        target, total = 2 * image.double().numpy() - 1, 0.0
        for count in range(4):
            grey = np.rot90(target.mean(axis=0), count).copy()
            with torch.no_grad():
                restored = fitted.network(torch.from_numpy(grey).float()[None, None])[0].double().numpy()
            total += np.abs(target - restored).mean(axis=0) / float(fitted.means[count])
        np.testing.assert_allclose(result.map[number].numpy(), total / 4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.image, result.map.mean(dim=(1, 2)))


def test_a_perfect_restoration_scores_zero(fitted):
    class Perfect(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, images):
            self.count += 1
            return images.rot90(1 - self.count, (2, 3)).expand(-1, 3, -1, -1)

    method, grey = built().eval(), TEST.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    method.network = Perfect()
    result = method.score(grey)
    assert result.map.abs().max() < 1e-6
    assert result.image.abs().max() < 1e-6


def test_colour_is_restored_from_grey(fitted):
    """Other channels of the same mean: the same restored image, another score."""
    shifted = TEST + torch.tensor([0.1, -0.1, 0.0]).view(3, 1, 1)
    found = [fitted.network(itae.erased(itae.scaled(images))) for images in (TEST, shifted)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert (fitted.score(TEST).image - fitted.score(shifted).image).abs().min() > 1e-3


def test_the_learning_rate_is_halved_nine_times(monkeypatch):
    rates = []
    step = training.Epoch.step

    def watched(self, losses):
        rates.append(self.loop.optimisers[0].param_groups[0]["lr"])
        step(self, losses)

    monkeypatch.setattr(training.Epoch, "step", watched)
    method, normals = built(), TrainingSet("gratings", PIXELS)
    normals.steps = 20
    method.fit(normals)
    assert rates == [0.1 / 2 ** (number // 2) for number in range(20)]


def test_wrong_sides():
    with pytest.raises(UsageError, match="ITAE turns images: 32 x 64 pixels found; expected square ones"):
        ITAE(epochs=1).build([(3, 32, 64)])
    with pytest.raises(UsageError, match="ITAE cannot take images of 40 x 40 pixels"):
        ITAE(epochs=1).build([(3, 40, 40)])
