"""CAVGA-Ru: its attention in closed form and by finite differences, its losses by hand, and what each step changes."""

from __future__ import annotations

import math

import pytest
import torch
from setups import setup

from anomaly_bench.components.gan import agree, shrinking
from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.cavga_ru import CAVGARu, Code
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures

IMAGES = to_tensor(pictures(2, 500))


def built(*words):
    torch.manual_seed(0)
    made = setup("cavga_ru", words=words)
    method = made.new()
    method.build(made.shapes())
    return method


def test_attention_of_the_linear_head_in_closed_form():
    """Each feature has the same gradient everywhere: the mean of its weights; alone as in a batch."""
    method = built().eval()
    with torch.no_grad():
        features = method.stages[-1](IMAGES)
        weights = method.heads.mean.weight[:, :, 0, 0].mean(dim=0)
        expected = torch.einsum("c,bchw->bhw", weights, features).sigmoid()
        found = 1 - method.code(IMAGES).lack
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(1 - method.code(IMAGES[:1]).lack, expected[:1])
    assert 0.05 < expected.min() < expected.max() < 0.95


def test_a_head_of_zeros_pays_half_the_attention():
    method = built().eval()
    torch.nn.init.zeros_(method.heads.mean.weight)
    assert method.score(IMAGES).map.equal(torch.full((2, 64, 64), 0.5))


@pytest.mark.parametrize("levels", ["[4]", "[3,4]"])
def test_double_backward_through_a_level(levels):
    """The gradient of the attention's loss with respect to the first weights, by finite differences."""
    method = built(f"method.levels={levels}").double().train()
    images = IMAGES.double()
    first = next(method.stages.parameters())

    def lack():
        return method.code(images).lack.mean()

    (slopes,) = torch.autograd.grad(lack(), first)
    assert slopes.abs().max() > 1e-5
    for place in (slopes.abs() > 0.8 * slopes.abs().max()).nonzero().tolist()[:2]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                first[tuple(place)] += sign * 1e-8
            values.append(lack().item())
            with torch.no_grad():
                first[tuple(place)] -= sign * 1e-8
        assert slopes[tuple(place)].item() == pytest.approx((values[0] - values[1]) / 2e-8, rel=1e-3)


def test_attention_of_an_earlier_level_is_that_of_a_slow_version():
    method = built("method.levels=[3,4]").eval()
    found = 1 - method.code(IMAGES).lack
    assert found.shape == (2, 4, 4)
    for number in range(2):
        explained = method.stages[0](IMAGES[number : number + 1])
        explained.retain_grad()
        method.heads.mean(method.stages[1](explained)).mean(dim=1).sum().backward()
        weights = explained.grad[0].mean(dim=(1, 2))
        total = sum(weight * feature for weight, feature in zip(weights, explained[0], strict=True))
        torch.testing.assert_close(found[number], total.sigmoid(), rtol=1e-3, atol=1e-5)


def test_losses_by_hand():
    method = built()
    method.adversarial = 1.0
    images, zeros = torch.rand(2, 3, 64, 64), torch.zeros(2, 1)
    code = Code(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), torch.full((2, 2, 2), 0.5))
    assert agree(zeros, 1) + agree(zeros, 0) == pytest.approx(2 * math.log(2))
    assert method.loss(images, images, code, zeros).item() == pytest.approx(math.log(2) + 0.01 * 0.5)
    assert method.loss(images, images + 0.1, code, zeros).item() == pytest.approx(0.01 + math.log(2) + 0.005, rel=1e-4)
    wide = code._replace(means=torch.ones(2, 4, 2, 2), lack=torch.zeros(2, 2, 2))
    expected = 0.5 * 16 / (3 * 64 * 64) + math.log(2)
    assert method.loss(images, images, wide, zeros).item() == pytest.approx(expected, rel=1e-5)


def test_parameters_of_the_networks():
    critic = shrinking(3, 64, 1)
    assert sum(value.numel() for value in critic.parameters()) == 2_765_568
    assert critic(torch.rand(2, 3, 64, 64)).shape == (2, 1, 1, 1)
    made = Setup("cavga_ru", "r18", ("backbone.weights=random",))
    with torch.device("meta"):
        method = made.new()
        method.build([(512, 8, 8)])
    assert sum(value.numel() for value in method.parameters()) == 22_479_363


def test_each_step_leaves_the_other_network(monkeypatch):
    changes, step = [], Epoch.step

    def watched(self, loss, optimiser):
        networks = [
            [value for group in each.param_groups for value in group["params"]] for each in self.loop.optimisers
        ]
        before = [[value.detach().clone() for value in network] for network in networks]
        step(self, loss, optimiser)
        pairs = zip(networks, before, strict=True)
        changes.append([any(not a.equal(b) for a, b in zip(now, then, strict=True)) for now, then in pairs])

    monkeypatch.setattr(Epoch, "step", watched)
    method, normals = built(), TrainingSet("cog", pictures(4))
    normals.steps = 2
    method.fit(normals)
    assert changes == [[True, False], [False, True]]


def test_levels_that_do_not_fit():
    with pytest.raises(UsageError, match="CAVGA-Ru: 3 levels; expected one or two, such as"):
        built("method.levels=[2,3,4]")
    method = built("method.levels=[3]")
    with pytest.raises(UsageError, match="decoder makes 128 x 128 pixels of the last level, the images have 64 x 64"):
        method.fit(TrainingSet("cog", pictures(1)))
    assert isinstance(method, CAVGARu)
