"""NSA: the published network, its schedule, scores, and settings for categories."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anomaly_bench.components.imagenet import MEAN, STD
from anomaly_bench.components.synthetic_anomalies.blends import Patches
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import construct
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import nsa
from anomaly_bench.methods.nsa import NSA, Views
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

PIXELS = pictures(6)
TEST = to_tensor(pictures(2, 500))


def built(**settings):
    torch.manual_seed(0)
    method = NSA(**{"epochs": 2, "batch": 3, "width": 8, **settings})
    method.build([(3, 64, 64)])
    return method


def test_parameters_and_sides_of_the_published_network():
    method = NSA(epochs=1)
    with torch.device("meta"):
        method.build([(3, 224, 224)])
        assert sum(parameter.numel() for parameter in method.parameters()) == 11_497_712
        assert sum(parameter.numel() for parameter in method.network[1].parameters()) == 321_200
        sides, images = [], torch.rand(1, 3, 224, 224)
        for layer in (*method.network[0].children(), *method.network[1]):
            images = layer(images)
            if images.dim() == 4:
                sides.append(images.shape[2])
    assert list(dict.fromkeys(sides[: len(sides) // 2])) == [112, 56, 28, 14, 7]
    assert list(dict.fromkeys(sides[len(sides) // 2 :])) == [7, 14, 28, 56, 112, 224]


def test_initial_weights():
    """Convolutions as He's for the fan out; transposed ones as torch leaves them."""
    torch.manual_seed(0)
    layers = [layer for layer in nsa.decoder(64).modules() if hasattr(layer, "weight")]
    for layer in layers:
        deviation = float(layer.weight.detach().std())
        if isinstance(layer, torch.nn.Conv2d):
            assert deviation == pytest.approx(math.sqrt(2 / layer.weight[:, 0].numel()), rel=0.1)
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            assert float(layer.weight.abs().max()) <= 1 / math.sqrt(layer.weight[0].numel())
            assert deviation == pytest.approx(1 / math.sqrt(3 * layer.weight[0].numel()), rel=0.1)


def test_scores_are_means_of_the_papers_map():
    method = built().eval()
    result = method.score(TEST)
    with torch.no_grad():
        expected = torch.sigmoid(
            method.network((TEST - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        )
    assert ((expected > 0) & (expected < 1)).all()
    torch.testing.assert_close(result.image, expected.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(result.map.sigmoid(), expected[:, 0])


def test_the_loss_is_the_cross_entropy_of_all_pixels():
    method, labels = built().eval(), torch.rand(2, 64, 64)
    probabilities = method.score(TEST).map.double().sigmoid()
    expected = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()
    assert float(method.loss(TEST, labels).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_the_learning_rate_falls_by_epochs():
    method = NSA(epochs=320)
    rates = [method.rate(epoch / 320) for epoch in range(320)]
    assert rates[0] == 1e-3
    assert method.rate(0.999 / 320) == 1e-3
    assert rates[160] == pytest.approx((1e-3 + 1e-6) / 2)
    assert method.rate(1.0) == pytest.approx(1e-6)
    assert rates == sorted(rates, reverse=True)


def test_views_are_shifted_and_flipped():
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    padded = np.pad(image, ((4, 4), (8, 8), (0, 0)), "reflect")
    expected = {padded[top : top + 64, left : left + 128].tobytes() for top in (3, 4, 5) for left in range(6, 11)}
    torch.manual_seed(0)
    assert {nsa.view(image, Views()).tobytes() for _ in range(300)} == expected
    found = {nsa.view(image, Views(flip=True))[::-1].tobytes() for _ in range(300)}
    assert expected < found
    assert len(found) == 2 * len(expected)


def test_turned_views_have_no_black_corners():
    torch.manual_seed(0)
    image = np.full((64, 64, 3), 250, np.uint8)
    image[30:34, 8:56] = 10
    found = [nsa.view(image, Views(turn=5)) for _ in range(50)]
    assert all(min(view[0].min(), view[-1].min(), view[:, 0].min(), view[:, -1].min()) > 200 for view in found)
    assert len({view.tobytes() for view in found}) > 20


@pytest.mark.parametrize(("protocol", "per_class"), [("unified", False), ("paper", True)])
def test_settings_for_categories_only_in_the_papers_protocol(protocol, per_class, monkeypatch):
    seen = []
    node = compose("config", ["method=nsa", f"protocol={protocol}"])["method"]
    assert node["per_class"] is per_class
    method = construct({**node, "epochs": 1, "width": 4}, "method")
    blend = nsa.blend_patches
    monkeypatch.setattr(
        nsa, "blend_patches", lambda image, other, rules: seen.append(rules) or blend(image, other, rules)
    )
    for name in ("screw", "gearwheel"):
        method.build([(3, 64, 64)])
        method.fit(TrainingSet(name, PIXELS[:2]))
    one = Patches(most=3, rows=[0.03, 0.4], columns=[0.03, 0.4], resize=[0.7, 1.3], mixed=True, softness=3, midpoint=7)
    assert seen[-1] == one
    screw = Patches(4, [0.03, 0.12], [0.03, 0.12], mixed=False, background=[200, 60], share=0.5, softness=1, midpoint=3)
    assert seen[0] == (screw if per_class else one)


def test_the_authors_settings_are_for_the_categories_of_mvtec():
    known = packaged_node("dataset", "mvtec")["categories"]
    assert set(packaged_node("method", "nsa")["classes"]) == {name for names in known.values() for name in names}


def test_wrong_settings():
    for settings, message in (
        ({"width": 6}, "method.width=6: expected a multiple of 4"),
        ({"patches": {"mots": 3}}, "method.patches.mots: no such setting; did you mean most"),
        ({"classes": {"screw": {"turns": 3}}}, "method.classes.screw.turns: no such setting; did you mean turn"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
    with pytest.raises(UsageError, match="NSA cannot take images of 100 x 64 pixels"):
        NSA(epochs=1).build([(3, 100, 64)])
