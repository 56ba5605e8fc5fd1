"""FCDD: the map's Gaussian against a transposed convolution, the loss by hand, and the frozen part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from setups import setup
from torch import nn

from anomaly_bench.backbones.architectures import create
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import construct
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import fcdd
from anomaly_bench.methods.fcdd import FCDD
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures

PIXELS = pictures(6)
TEST = to_tensor(pictures(3, 500))


def built(**settings):
    made = setup("fcdd", "r18").new(**settings)
    torch.manual_seed(0)
    made.build(setup("fcdd", "r18").shapes())
    return made


def fitted(steps, method=None, pixels=PIXELS):
    method, normals = method or built(), TrainingSet("points", pixels)
    normals.steps = steps
    method.fit(normals)
    return method.eval()


def test_parameters_of_the_published_network():
    node = compose("config", ["backbone=vgg11_bn"])["backbone"]
    with torch.device("meta"):
        backbone = construct(node, "backbone", levels=[1, 2])
        method = FCDD(backbone, epochs=1)
        method.build(backbone.shapes((224, 224)))
    parameters = list(method.parameters())
    assert sum(parameter.numel() for parameter in parameters) == 4_504_833
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == 3_542_529
    assert backbone.shapes((224, 224))[1] == (512, 28, 28)


def test_receptive_field_of_the_published_network():
    """62 pixels, 8 from cell to cell, the first around pixel 3.5: from gradients where all pixels count."""
    layers = create("vgg11_bn", {"mlp_ratio": 0.01}).features[:21]
    positive = [
        nn.AvgPool2d(2) if isinstance(layer, nn.MaxPool2d) else layer
        for layer in layers
        if isinstance(layer, (nn.MaxPool2d, nn.Conv2d))
    ]
    network = nn.Sequential(*positive)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1 / parameter[0].numel())
    for cell in (7, 8):
        images = torch.ones(1, 3, 128, 128, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(images)[0, 0, cell, cell], images)
        seen = gradient[0, 0].sum(dim=1).nonzero()[:, 0]
        assert len(seen) == fcdd.FIELD == 62
        assert (seen[0] + seen[-1]) / 2 == fcdd.JUMP * cell + 3.5
    assert int(3.5) == fcdd.CENTRE


def test_the_gaussian_is_not_normalised():
    ones = fcdd.enlarged(torch.ones(1, 28, 28), (224, 224))[0]
    assert ones.shape == (224, 224)
    assert float(ones[112, 112]) == pytest.approx(3.72264, abs=1e-5)
    assert float(ones[0, 0]) == pytest.approx(0.99128, abs=1e-5)
    assert float(ones[-1, -1]) == pytest.approx(0.99128, abs=1e-5)
    assert float(ones.mean()) == pytest.approx(3.39247, abs=1e-5)
    single = torch.zeros(1, 28, 28)
    single[0, 10, 14] = 1
    peak = fcdd.enlarged(single, (224, 224))[0]
    assert (peak == peak.max()).nonzero().tolist() == [[83, 115], [83, 116], [84, 115], [84, 116]]
    assert float(peak.max()) == 0.25
    assert float(peak.sum()) == pytest.approx(236.3658, abs=1e-3)


def test_maps_follow_a_transposed_convolution():
    line = torch.exp(-0.5 * (torch.arange(-30, 31) / 12) ** 2)
    line = torch.cat([line[:31], line[30:]]) / 2
    answers = torch.rand(2, 28, 28)
    kernel = (line[:, None] * line)[None, None]
    whole = F.conv_transpose2d(answers[:, None], kernel, stride=8, output_padding=6)[:, 0]
    assert whole.shape == (2, 284, 284)
    torch.testing.assert_close(fcdd.enlarged(answers, (224, 224)), whole[:, 27:251, 27:251])


def test_losses_by_hand():
    for mean, expected in ((0.1, 2.35217), (1.0, 0.45868), (3.69, 0.02529), (0.0, 71.38)):
        anomalous = fcdd.loss(torch.full((1, 4, 4), mean), torch.tensor([True]))
        assert float(anomalous) == pytest.approx(expected, rel=1e-4)
        assert float(fcdd.loss(torch.full((1, 4, 4), mean), torch.tensor([False]))) == pytest.approx(mean)
    both = torch.stack([torch.full((4, 4), 0.1), torch.full((4, 4), 1.0)]).requires_grad_()
    mean = fcdd.loss(both, torch.tensor([True, False]))
    assert float(mean.detach()) == pytest.approx((2.35217 + 1) / 2, rel=1e-5)
    mean.backward()
    assert both.grad.isfinite().all()


def test_answers_are_pseudo_huber_and_zeros_score_zero():
    method = built().eval()
    nn.init.zeros_(method.head.weight)
    for output, expected in ((0.0, 0.0), (1.0, 0.41421), (3.0, 2.16228)):
        nn.init.constant_(method.head.bias, output)
        result = method.score(TEST)
        assert result.image.tolist() == pytest.approx([expected] * 3, abs=1e-5)
        assert result.map.shape == (3, 64, 64)
        assert (result.map > 0).all() if output else (result.map == 0).all()


def test_contrast_is_normalised():
    images = torch.rand(3, 3, 8, 8)
    images[2] = 0.4
    found = fcdd.contrast_normalised(images)
    assert found.mean(dim=(1, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(found[:2].abs().mean(dim=(1, 2, 3)), torch.ones(2))
    assert (found[2].abs() < 1e-6).all()
    torch.testing.assert_close(fcdd.contrast_normalised(0.3 * images[:2] + 0.2), found[:2], rtol=1e-4, atol=1e-4)
    method = built()
    method.set_range(TrainingSet("points", PIXELS))
    scaled = method.scaled(method.shrunk(to_tensor(PIXELS)))
    torch.testing.assert_close(scaled.amin(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.amax(dim=(0, 2, 3)), torch.ones(3))


def test_the_first_layers_keep_their_weights_and_count_on():
    method = built()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fitted(2, method)
    state = method.state_dict()
    first = tuple(f"network.network.{part}." for part in ("conv1", "bn1", "layer1"))
    frozen = [name for name in state if name.startswith(first)]
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad == (name not in frozen), name
        assert torch.equal(state[name], before[name]) == (name in frozen), name
    means = [name for name in state if name.endswith("running_mean")]
    assert any(name in frozen for name in means)
    assert not any(torch.equal(state[name], before[name]) for name in means)


def test_it_starts_from_the_networks_weights_without_imagenets_statistics():
    """The unfolded copy equals the backbone, whose normalisation is undone first."""
    backbone = Setup("fcdd", "lite0").network
    copy = backbone.trainable_copy(pretrained=True, normalise=False).eval()
    for found, expected in zip(copy((TEST - backbone.mean) / backbone.std), backbone(TEST), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_learning_rate_falls_by_epochs():
    method = built(lr=1e-3)
    method.epochs = 200
    assert method.rate(0) == 1e-3
    assert method.rate(0.999 / 200) == 1e-3
    assert [method.rate(epoch / 200) for epoch in range(200)] == [1e-3 * 0.985**epoch for epoch in range(200)]
    assert method.rate(1 / 200) == pytest.approx(9.85e-4)


def test_views_are_cropped_or_scaled():
    method = built()
    torch.manual_seed(0)
    image = to_tensor(PIXELS[:1])[0]
    drawn = [method.draw(image) for _ in range(20)]
    assert {tuple(view.shape) for view, _ in drawn} == {(3, 48, 48)}
    assert {anomalous for _, anomalous in drawn} == {True, False}
    assert all(0 <= float(view.min()) <= float(view.max()) <= 1 for view, _ in drawn)
    scaled = method.shrunk(image[None])[0]
    rows = torch.from_numpy(np.floor((np.arange(48) + 0.5) * 64 / 48).astype(int))
    assert torch.equal(scaled, image[:, rows][:, :, rows])


@pytest.mark.slow
def test_the_loss_falls():
    losses = fitted(16, built(batch=8)).facts["training"]["curve"]["loss"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_wrong_settings():
    for settings, message in (
        ({"margin": 12}, "method.margin=12: expected a multiple of 8 pixels"),
        ({"confetti": 0.0}, "method.confetti=0.0: expected a share above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
    with pytest.raises(UsageError, match="FCDD: 1 levels; expected two of one network"):
        built().build([(512, 8, 8)])
    with pytest.raises(UsageError, match=r"method.margin=64: nothing is left of the images"):
        built(margin=64)
    with pytest.raises(
        UsageError, match=r"method.levels: FCDD's last level has 3 rows for 48 pixels; expected level 2"
    ):
        fcdd.enlarged(torch.ones(1, 3, 3), (48, 48))
