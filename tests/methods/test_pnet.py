"""P-Net: parameters, what skips where, edges of values up to 255, losses and scores by hand, what each step changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d
from setups import setup
from skimage.feature import canny

from anomaly_bench.components.gan import PatchCritic
from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import pnet
from anomaly_bench.methods.pnet import PNet, canny_edges, rate_factor
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

IMAGES = to_tensor(pictures(2, 500))


def built(**settings):
    torch.manual_seed(0)
    method = setup("pnet").new(**settings)
    method.build([(3, 64, 64)])
    return method


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_published_networks():
    with torch.device("meta"):
        method, critic, images = PNet(epochs=1), PatchCritic(norms=True), torch.empty(2, 3, 224, 224)
        method.build([(3, 224, 224)])
        assert method.eval().score(images).map.shape == (2, 224, 224)
        assert critic(images)[-1].shape == (2, 1, 26, 26)
    assert count(method.edges) == 492_618
    assert count(method) - count(method.edges) == 30_023_427
    assert count(critic) == 2_765_696


def test_the_decoder_sees_edges_at_three_sizes_and_the_deepest_features(monkeypatch):
    method, inputs = built(width=8).eval(), {}
    for number, stage in enumerate(method.decoder.stages):
        stage.register_forward_pre_hook(lambda layer, given, number=number: inputs.update({number: given[0]}))
    code = {}
    method.decoder.register_forward_pre_hook(lambda layer, given: code.update(deepest=given[0]))
    with torch.no_grad():
        outputs = method.reconstruct(IMAGES)
        edges = method.structure_encoder(method.structure(IMAGES))
        images = method.image_encoder(IMAGES)
    assert [tuple(output.shape[1:]) for output in edges] == [
        (8, 64, 64),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (64, 4, 4),
    ]
    assert torch.equal(code["deepest"], torch.cat([edges[4], images[4]], dim=1))
    assert [given.shape[1] for given in inputs.values()] == [192, 96, 32, 20]
    for number, skipped in enumerate((edges[3], edges[2], edges[1])):
        assert torch.equal(inputs[number][:, : skipped.shape[1]], skipped)
    doubled = F.interpolate(code["deepest"], scale_factor=2, mode="bilinear", align_corners=True)
    assert torch.equal(inputs[0][:, 64:], doubled)
    assert outputs.shape == IMAGES.shape
    assert 0 < outputs.min() < outputs.max() < 1


def test_edges_are_canny_s_of_values_up_to_255():
    found = canny_edges(IMAGES)
    for image, edges in zip(IMAGES.double().numpy(), found, strict=True):
        expected = np.zeros((64, 64), bool)
        for plane in image:
            expected |= canny(plane * 255, sigma=1)
        assert np.array_equal(edges, expected)
    finer = sum(canny(plane, sigma=1).sum() for plane in IMAGES[0].double().numpy())
    assert 0 < finer < 3 * found[0].sum()
    assert not canny_edges(torch.full((1, 3, 64, 64), 0.3)).any()


def test_the_structure_is_binary_and_passes_no_gradient():
    """So the adversarial loss of the authors' first stage changes no weight."""
    method = built()
    images = IMAGES.clone().requires_grad_()
    structure = method.structure(images)
    assert structure.shape == (2, 1, 64, 64)
    assert set(structure.unique().tolist()) == {0.0, 1.0}
    assert not structure.requires_grad
    assert method.edges(images).requires_grad


def test_cross_entropy_of_probabilities_cannot_vanish():
    method = built()
    torch.nn.init.zeros_(method.edges.decoder.last.weight)
    labels = canny_edges(IMAGES)
    for bias, lowest in ((0.0, math.log(2)), (40.0, math.log(1 + math.exp(-1)))):
        torch.nn.init.constant_(method.edges.decoder.last.bias, 0)
        method.edges.decoder.last.bias.data[0] = bias
        method.edges.decoder.last.bias.data[1] = -bias
        none = F.cross_entropy(method.edges(IMAGES), torch.zeros_like(labels))
        assert none.item() == pytest.approx(lowest, rel=1e-5)


class Shifted(torch.nn.Module):
    """A network that returns what it was made of, plus a constant."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs):
        return self.outputs


def test_losses_and_scores_by_hand():
    method = built(adversarial=1.0).eval()
    targets = method.blurred(IMAGES)
    for by in (0.0, 0.1):
        method.decoder = Shifted(targets + by)
        scores = method.score(IMAGES)
        torch.testing.assert_close(scores.map, torch.full((2, 64, 64), by), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scores.image, torch.full((2,), by**4), rtol=1e-3, atol=1e-9)
        same = [torch.ones(2, 3, 4, 4), torch.zeros(2, 1, 3, 3)]  # features, and logits of a probability of one half
        loss = method.loss(targets + by, targets, same, same)
        assert loss.item() == pytest.approx(math.log(2) + by**2, rel=1e-5)
        other = [torch.zeros(2, 3, 4, 4), torch.full((2, 1, 3, 3), 2.0)]
        loss = method.loss(targets + by, targets, same, other)
        assert loss.item() == pytest.approx(math.log(2) + by**2 + 0.01 * (1 + 4), rel=1e-5)


def test_only_what_is_reconstructed_is_blurred(monkeypatch):
    """With OpenCV's window and border (the pixel at the border is not repeated)."""
    method = built(sigma=2.5).eval()
    window = np.exp(-0.5 * (np.arange(-5, 6) / 2.5) ** 2)
    expected = IMAGES.double().numpy()
    for axis in (2, 3):
        expected = correlate1d(expected, window / window.sum(), axis, mode="mirror")
    torch.testing.assert_close(method.blurred(IMAGES), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)
    flat = torch.full((1, 3, 64, 64), 0.7)
    torch.testing.assert_close(method.blurred(flat), flat)
    assert torch.equal(built(sigma=0).blurred(IMAGES), IMAGES)
    seen = []
    monkeypatch.setattr(method, "reconstruct", lambda images: seen.append(images) or images)
    method.score(IMAGES)
    assert torch.equal(seen[0], IMAGES)


def test_each_step_leaves_the_other_networks(monkeypatch):
    """The first half trains the network of edges; then reconstruction and discriminator take turns."""
    method, critics, taken = built(), [], []
    step = Epoch.step

    def watched(self, loss, optimiser, curve=True):
        networks = {"edges": method.edges, "decoder": method.decoder, "critic": critics[0]}
        before = {name: torch.cat([value.flatten() for value in part.parameters()]) for name, part in networks.items()}
        step(self, loss, optimiser, curve)
        after = {name: torch.cat([value.flatten() for value in part.parameters()]) for name, part in networks.items()}
        rate = optimiser.param_groups[0]["lr"]
        taken.append(([name for name in networks if not torch.equal(before[name], after[name])], rate))

    def new(*words, **keys):
        critics.append(PatchCritic(*words, **keys))
        return critics[0]

    monkeypatch.setattr(Epoch, "step", watched)
    monkeypatch.setattr(pnet, "PatchCritic", new)
    normals = TrainingSet("few", pictures(6))
    normals.steps = 8
    method.fit(normals)
    first, second = [(["edges"], 0.003), (["edges"], 0.0003)], [(["decoder"], 0.005), (["critic"], 2e-5)]
    assert taken == [(names, pytest.approx(rate)) for names, rate in (*2 * first[:1], *2 * first[1:], *2 * second)]


def test_learning_rates_of_the_second_stage():
    factors = [rate_factor(epoch / 800) for epoch in (0, 559, 560, 719, 720, 799)]
    assert factors == [1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.slow
def test_the_networks_learn():
    """Edges are found better than by saying that there are none, and reconstructions come closer to the images."""
    pixels = np.concatenate([pictures(4, side=32), pictures(4, 4, side=32)[:, :, ::-1]]) // 2
    method, normals = built(lr=1e-2), TrainingSet("few", pixels)
    images = normals.select(torch.arange(8))
    labels, targets = canny_edges(images), method.blurred(images)
    share = labels.double().mean()

    def measured():
        with torch.no_grad():
            found = (method.structure(images)[:, 0] == labels).double().mean()
            return found, F.mse_loss(method.reconstruct(images), targets)

    _, before = measured()
    normals.steps = 100
    method.fit(normals)
    found, after = measured()
    assert found > max(share, 1 - share) + 0.02
    assert after < 0.6 * before


def test_wrong_settings():
    for settings in ({"sigma": -1.0}, {"power": 0.0}):
        with pytest.raises(UsageError, match=r"method.sigma=.*, method.power=.*: expected at least 0, and more than 0"):
            PNet(epochs=1, **settings)
    with pytest.raises(UsageError, match=r"method\.width=5: expected an even number of channels, such as 64"):
        PNet(epochs=1, width=5)
    with pytest.raises(UsageError, match="P-Net cannot take images of 40 x 64 pixels"):
        built().build([(3, 40, 64)])
    with pytest.raises(UsageError, match="P-Net cannot take images of 40 x 64 pixels"):
        built().eval().score(torch.zeros(1, 3, 40, 64))
