"""Texture inspection against scikit-learn, by hand, and against HALCON's way of joining levels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from setups import SMALLER, setup
from sklearn.mixture import GaussianMixture

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.texture_inspection import combine, log_likelihood, state
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, new_images, pictures


def made(*words):
    return Setup("texture_inspection", overrides=(*SMALLER["texture_inspection"], *words))


def likelihood(model, values):
    parts = (torch.from_numpy(model.weights_), torch.from_numpy(model.means_), state(model)["whiteners"])
    return log_likelihood(torch.from_numpy(values), *parts).numpy()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_likelihood_is_that_of_scikit_learn(count):
    values = np.random.default_rng(0).normal(size=(400, 9)) @ np.random.default_rng(1).normal(size=(9, 9))
    values[:150] += 4
    model = GaussianMixture(count, random_state=0).fit(values)
    np.testing.assert_allclose(likelihood(model, values), model.score_samples(values), rtol=1e-8)
    assert model.weights_.sum() == pytest.approx(1)


def test_one_gaussian_by_hand():
    values = np.random.default_rng(0).normal(size=(3000, 49)) * np.linspace(0.5, 2, 49)
    model = GaussianMixture(1, reg_covar=0).fit(values)
    covariance = np.cov(values.T, bias=True)
    off = values - values.mean(axis=0)
    squared = np.einsum("nd,de,ne->n", off, np.linalg.inv(covariance), off)
    expected = squared / 2 + np.linalg.slogdet(covariance)[1] / 2 + 24.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(-likelihood(model, values), expected, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:Best performing")  # few rounds do not converge
def test_more_rounds_never_lower_the_likelihood():
    values = to_tensor(pictures(4)).mean(dim=1).unfold(1, 7, 9).unfold(2, 7, 9).reshape(-1, 49).double().numpy()
    found = []
    for rounds in (1, 2, 4, 8, 16):
        found.append(GaussianMixture(2, max_iter=rounds, tol=0, random_state=0).fit(values).score(values))
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(found))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_thresholded_map_is_the_union_of_intersections(count):
    levels = list(torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    for c in (-1.0, 0.0, 0.7):
        regions = [level > c for level in levels]
        pairs = [fine & coarse for fine, coarse in itertools.pairwise(regions)]
        expected = torch.stack(pairs or regions).any(dim=0)
        assert torch.equal(combine(levels) > c, expected)


def test_maps_follow_a_slow_version():
    """Patch by patch at each level, with the likelihood of the fitted mixture written out."""
    method, images = made("method.scales=2").one, new_images()[:1]
    grey = (images[0].double().numpy() * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=0)
    found = []
    for mixture, level in zip(method.mixtures, (grey, grey.reshape(32, 2, 32, 2).mean(axis=(1, 3))), strict=True):
        padded, values = np.pad(level, 3, mode="reflect"), np.empty(level.shape)
        precisions = [w @ w.T for w in mixture.whiteners.double().numpy()]
        for i, j in np.ndindex(*level.shape):
            patch, total = padded[i : i + 7, j : j + 7].ravel(), 0.0
            for weight, mean, precision in zip(mixture.weights, mixture.means, precisions, strict=True):
                off = patch - mean.double().numpy()
                scale = np.linalg.slogdet(precision)[1] / 2 - 24.5 * math.log(2 * math.pi)
                total += float(weight) * np.exp(scale - off @ precision @ off / 2 - 50)
            values[i, j] = -np.log(total) - 50
        level_map = torch.from_numpy((values - float(mixture.threshold)) / float(mixture.deviation))
        found.append(torch.nn.functional.interpolate(level_map[None, None], (64, 64), mode="bilinear")[0, 0])
    result = method.score(images)
    torch.testing.assert_close(result.map[0].double(), torch.minimum(*found), rtol=1e-3, atol=1e-3)
    assert float(result.image[0]) == pytest.approx(float(result.map.max()))


def test_thresholds_are_those_of_the_training_patches():
    words = ("method.quantile=0.5", "method.images=24", "method.patches=60000", "method.gaussians=[1]")
    method = made(*words).one
    level = method.pyramid(to_tensor(pictures(24)))[0]
    values = torch.cat([method.novelty(method.mixtures[0], image) for image in level.split(1)])
    assert float((values > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(values.std()) == pytest.approx(1, abs=0.1)


def test_a_constant_image_has_a_constant_map_and_a_shift_shifts_it():
    method = made().one
    constant = method.score(torch.full((1, 3, 64, 64), 0.4)).map
    torch.testing.assert_close(constant, constant[:, :1, :1].expand_as(constant), rtol=1e-5, atol=1e-4)
    grey = to_tensor(pictures(1, first=900, side=128))
    plain, shifted = method.score(grey[..., :96, :96]).map, method.score(grey[..., 8:104, 8:104]).map
    torch.testing.assert_close(shifted[:, 36:52, 36:52], plain[:, 44:60, 44:60], rtol=1e-4, atol=1e-4)


def test_a_change_of_colour_at_constant_grey_changes_nothing():
    method, images = made().one, 0.25 + new_images() / 2
    step = 0.05
    other = images.clone()
    other[:, 0, 20:30, 20:30] += step
    other[:, 2, 20:30, 20:30] -= step * 0.299 / 0.114
    torch.testing.assert_close(method.score(other).map, method.score(images).map, rtol=1e-3, atol=1e-3)


def test_the_number_of_gaussians_is_chosen_on_held_out_patches():
    method, random = made("method.gaussians=[1,2,5]").new(), np.random.default_rng(0)
    method.build([(3, 64, 64)])

    def patches(count, apart):
        values = random.normal(size=(count, 49))
        values[::2] += apart
        return torch.from_numpy(values).float()

    assert len(method.choose("two", patches(3000, 4), patches(500, 4))["weights"]) == 2
    assert len(method.choose("one", patches(3000, 0), patches(500, 0))["weights"]) == 1


def test_objects_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"screw is an object: .* textures only.*method.force=true"):
        made().fitted(TrainingSet("screw", pictures(4), group="objects"))
    for words, group in ((("method.force=true",), "objects"), ((), "textures"), ((), None)):
        normals = TrainingSet("any", pictures(4), group=group)
        assert made(*words).fitted(normals).score(new_images()).map.isfinite().all()


def test_the_papers_size_has_four_levels():
    method = Setup("texture_inspection").new()
    method.build([(3, 400, 400)])
    assert [level.shape[2] - 6 for level in method.pyramid(torch.zeros(1, 3, 400, 400))] == [400, 200, 100, 50]
    assert setup("texture_inspection").config["method"]["about"]["input"]["resize"] == 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method.side=4",), "method.side=4.*expected an odd side"),
        (("method.gaussians=[]",), r"method.gaussians=\[\]: expected numbers"),
        (("method.scales=5",), "level 5 of 64 x 64 pixels is smaller than a patch of 7"),
        (("method.scales=8",), "cannot take images of 64 x 64"),
    ],
)
def test_wrong_settings(words, message):
    with pytest.raises(UsageError, match=message):
        made(*words).fitted()


def test_constant_or_too_few_patches():
    with pytest.raises(ValueError, match="grey: the training images are constant"):
        made().fitted(TrainingSet("grey", np.full((3, 64, 64, 3), 100, np.uint8)))
    with pytest.raises(ValueError, match="2 Gaussians of 1 patches"):
        made("method.patches=1").fitted()
