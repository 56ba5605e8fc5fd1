"""GEOM: its transformations, the Dirichlet fit against scipy, and scores against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from anomaly_bench.errors import UsageError
from anomaly_bench.methods import geom
from anomaly_bench.methods.geom import GEOM
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS = pictures(12, side=16)
TEST = to_tensor(pictures(3, 500, side=16))


def built(**settings):
    torch.manual_seed(0)
    method = GEOM(epochs=4, seed=0, **{"batch": 16, "size": 16, "width": 1, "shift": 0, **settings})
    method.build([(3, 16, 16)])
    return method


def fitted(steps, pixels=PIXELS, **settings):
    method, normals = built(**settings), TrainingSet("points", pixels)
    normals.steps = steps
    method.fit(normals)
    return method.eval()


def test_the_published_network():
    """WRN-10-4: 16, 64, 128 and 256 channels, one block a stage, 72 outputs."""
    method = GEOM(epochs=1, seed=0)
    method.build([(3, 32, 32)])
    blocks = (16, 64, 9 * 16 * 64 + 16 * 64), (64, 128, 9 * 64 * 128 + 64 * 128), (128, 256, 9 * 128 * 256 + 128 * 256)
    expected = 9 * 3 * 16 + 2 * 256 + 256 * 72 + 72
    expected += sum(2 * inputs + 2 * outputs + 9 * outputs**2 + first for inputs, outputs, first in blocks)
    assert sum(parameter.numel() for parameter in method.parameters()) == expected == 1_214_744
    assert method.network[:4](torch.rand(2, 3, 32, 32)).shape == (2, 256, 8, 8)
    assert method.alpha.shape == (72, 72)
    assert len(method.transforms) == 72
    assert len(GEOM(epochs=1, seed=0, shift=0).transforms) == 8


def test_flips_and_turns_are_undone():
    """By flips and turns of numpy, in the order of the authors' list: turns vary fastest."""
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    for number, transform in enumerate(geom.transformations(0)):
        found = transform(to_tensor(image[None]))[0].permute(1, 2, 0).numpy()
        back = np.rot90(found, -(number % 4))
        assert np.array_equal(back[:, ::-1] if number >= 4 else back, image)


def test_shifts_are_those_of_a_padded_image():
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    padded = np.pad(image, ((8, 8), (8, 8), (0, 0)), "symmetric")
    places = [(down, right) for down in (0, -8, 8) for right in (0, -8, 8)]
    for number, (down, right) in enumerate(places):
        expected = padded[8 - down : 24 - down, 8 - right : 24 - right]
        found = geom.transformations(8)[4 * number](to_tensor(image[None]))[0].permute(1, 2, 0).numpy()
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("alpha", [(0.3, 2.0, 0.7), (40.0, 5.0, 1.0, 0.5)])
def test_the_dirichlet_fit_is_the_maximum_that_scipy_finds(alpha):
    draws = stats.dirichlet(alpha).rvs(300, random_state=0)
    found = geom.fit_dirichlet(torch.from_numpy(draws).log()[None])[0].numpy()

    def unlikely(logarithms):
        values = np.exp(logarithms)
        constant = special.gammaln(values.sum()) - special.gammaln(values).sum()
        return -(constant + ((values - 1) * np.log(draws)).sum(axis=1).mean())

    best = optimize.minimize(unlikely, np.zeros(len(alpha)), tol=1e-12)
    np.testing.assert_allclose(found, np.exp(best.x), rtol=1e-4)
    assert unlikely(np.log(found)) <= best.fun + 1e-9


def test_the_inverse_of_digamma():
    values = torch.tensor([1e-3, 0.2, 0.4, 1.0, 30.0, 1e5], dtype=torch.float64)
    torch.testing.assert_close(geom.inverse_digamma(torch.digamma(values)), values, rtol=1e-9, atol=0)


def test_outputs_that_are_almost_certain_have_a_fit():
    logits = torch.zeros(2, 5, 3)
    logits[..., 0] = 200 + torch.arange(5.0)
    alpha = geom.fit_dirichlet(logits.log_softmax(dim=2))
    assert alpha.isfinite().all()
    assert (alpha > 0).all()


def test_scores_follow_the_equation():
    """One image and one transformation at a time, with scipy's log-density of Dirichlet distributions."""
    method = fitted(12)
    for image, score in zip(TEST, method.score(TEST).image, strict=True):
        total = 0.0
        for number in range(8):
            array = (2 * image - 1).permute(1, 2, 0).numpy()
            array = np.rot90(array[:, ::-1] if number >= 4 else array, number % 4).copy()
            with torch.no_grad():
                outputs = method.network(torch.from_numpy(array).permute(2, 0, 1)[None])[0].double().softmax(0).numpy()
            alpha = method.alpha[number].double().numpy()
            constant = special.gammaln(alpha.sum()) - special.gammaln(alpha).sum()
            total += stats.dirichlet(alpha).logpdf(outputs / outputs.sum()) - constant
        assert float(score) == pytest.approx(-total / 8, rel=1e-4)
    assert method.score(TEST).map is None


def test_each_transformed_image_has_the_label_of_its_transformation():
    method = built(shift=4)
    images = method.prepared(TrainingSet("points", PIXELS))
    numbers = torch.tensor([0, 5, 71, 72 * 3 + 40, 72 * 11])
    batch, labels = method.transformed(images, numbers)
    assert labels.tolist() == [0, 5, 71, 40, 0]
    for found, image, label in zip(batch, (0, 0, 0, 3, 11), labels, strict=True):
        assert torch.equal(found, method.transforms[label](images[image][None])[0])


@pytest.mark.slow
def test_it_learns_to_tell_transformations_apart():
    method = fitted(60)
    losses = method.facts["training"]["curve"]["loss"]
    assert np.mean(losses[-10:]) < 0.5 * np.log(8)
    assert losses[0] > 0.8 * np.log(8)
    turned = to_tensor(np.rot90(pictures(3, 500, side=16), axes=(1, 2)).copy())
    assert (method.score(turned).image > method.score(TEST).image).all()


def test_fewer_images_than_a_batch_and_a_drawn_part():
    method = fitted(2, PIXELS[:2], batch=128)
    assert method.score(TEST).image.isfinite().all()
    assert len(built(images=5).prepared(TrainingSet("points", PIXELS))) == 5
    assert len(built(images=50).prepared(TrainingSet("points", PIXELS))) == len(PIXELS)
    with pytest.raises(ValueError, match="points: 1 training image; GEOM's Dirichlet distribution needs at least 2"):
        fitted(2, PIXELS[:1])


def test_wrong_settings():
    for settings, message in (
        ({"depth": 12}, "method.depth=12: expected 10, 16, 22"),
        ({"width": 0}, "method.width=0: expected at least 1"),
        ({"size": 30}, "method.size=30, method.shift=0: expected a size that is a multiple of 4"),
        ({"shift": -8}, "method.size=16, method.shift=-8: expected"),
        ({"images": 1}, "method.images=1: expected at least 2, or null for all"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
