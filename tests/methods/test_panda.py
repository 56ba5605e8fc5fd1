"""PANDA against DN2, values by hand, and an independent training in float64."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.panda import PANDA
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import READS_ALL, Setup, new_images, pictures


def pooled(levels, pixels):
    """Features (N, C, h, w) of lite0's level 3, and the pooled ones of level 4, of the frozen network."""
    network = Setup(READS_ALL, overrides=(f"method.levels={levels}",)).network
    return network(to_tensor(pixels))


def test_without_epochs_it_is_dn2():
    train, test = pictures(9), pictures(3, first=900)
    test[0, 20:30, 20:30] = 0
    bank, tested = (pooled("[4]", pixels)[0].mean(dim=(2, 3)).double() for pixels in (train, test))
    expected = torch.cdist(tested, bank).square().topk(2, largest=False).values.sum(dim=1).float()
    setup = Setup("panda", overrides=("method.epochs=0",))
    for order, seed in ((slice(None), 0), (slice(None, None, -1), 5)):
        torch.manual_seed(seed)
        method = setup.fitted(TrainingSet("few", train[order].copy()))
        torch.testing.assert_close(method.score(to_tensor(test)).image, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(method.centre, bank.mean(dim=0).float(), rtol=1e-4, atol=1e-5)


def test_the_map_is_the_distance_to_the_nearest_patch():
    train, test = pictures(5), pictures(2, first=900)
    method = Setup("panda", overrides=("method.epochs=0",)).fitted(TrainingSet("few", train))
    bank, tested = (pooled("[3]", pixels)[0].double().permute(0, 2, 3, 1).flatten(0, 2) for pixels in (train, test))
    distances = torch.cdist(tested, bank).amin(dim=1).square().view(2, 1, 4, 4)
    large = nn.functional.interpolate(distances, size=(64, 64), mode="bilinear")[:, 0].numpy()
    found = method.score(to_tensor(test)).map
    for ours, theirs in zip(found, large, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(gaussian_filter(theirs, 4)).float(), rtol=1e-3, atol=1e-3)


class Layer(nn.Conv2d):
    """A stage without a network."""

    def shape(self, inputs):
        return (self.out_channels, *inputs[1:])


def tiny(**settings):
    """On images themselves, with two convolutions; default dtype float64 (see the fixture)."""
    torch.manual_seed(0)
    method = PANDA(lambda images: [images], [3, 4], **{"epochs": 15, **settings})
    method.stages = nn.ModuleList([Layer(3, 4, 1), Layer(4, 5, 1)])
    method.middle = (4, 8, 8)
    method.centre, method.bank = torch.zeros(5), torch.zeros(0, 5)
    return method


def unlike(count):
    """Small images of different brightness, whose gradients are clipped."""
    return (pictures(count, side=8) * np.linspace(0.2, 1.5, count)[:, None, None, None]).clip(0, 255).astype(np.uint8)


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_loss_scores_and_penalty_by_hand():
    method = tiny()
    method.centre = torch.tensor([2.0, 4.0])
    features = torch.tensor([[1.0, 3.0], [3.0, 5.0]], requires_grad=True)
    assert method.compactness(features).item() == 1.0
    same = method.centre.expand(2, 2).clone().requires_grad_()
    loss = method.compactness(same)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(same.grad, torch.zeros(2, 2))

    method.stages = nn.ModuleList([nn.Identity(), nn.Identity()])
    method.bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    method.patches = torch.tensor([[3.0, 0.0]])
    image = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    found = method.eval().score(image)
    assert float(found.image) == 25
    assert float(found.map.abs().max()) == 0

    method = tiny(penalty=1e4)
    before = [parameter.detach().clone() for parameter in method.parameters()]
    fisher = [2 * torch.ones_like(each) for each in before]
    assert float(method.change(before, fisher).detach()) == 0
    with torch.no_grad():
        method.stages[0].bias[0] += 0.1
    assert float(method.penalty / 2 * method.change(before, fisher).detach()) == pytest.approx(100, rel=1e-5)


@pytest.mark.usefixtures("doubles")
def test_the_first_step_has_the_length_of_the_clipped_gradient():
    method = tiny(batch=4)
    before = torch.cat([parameter.detach().flatten() for parameter in method.parameters()])
    normals = TrainingSet("points", unlike(4))
    normals.steps = 1
    method.fit(normals)
    after = torch.cat([parameter.detach().flatten() for parameter in method.parameters()])
    length = float((after - before + 1e-2 * 5e-5 * before).norm())
    assert length == pytest.approx(1e-2 * 1e-3, rel=1e-2)  # torch adds 1e-6 to the norm
    assert float((after - before).norm()) != pytest.approx(length, rel=1e-6)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("penalty", [0.0, 1e4])
def test_steps_follow_a_slow_version(penalty, monkeypatch):
    """Clipped, then decayed, then with momentum; the penalty's gradient is clipped too."""
    drawn, batches = [], Epoch.batches

    def recorded(self, *words):
        for numbers in batches(self, *words):
            drawn.append(numbers)
            yield numbers

    monkeypatch.setattr(Epoch, "batches", recorded)
    method, pixels = tiny(epochs=4, batch=4, penalty=penalty), unlike(9)
    start = [parameter.detach().clone() for parameter in method.parameters()]
    method.fit(TrainingSet("points", pixels))

    images = to_tensor(pixels).double()
    weights = [each.clone().requires_grad_() for each in start]

    def features(images):
        middle = torch.einsum("oc,bchw->bohw", weights[0][:, :, 0, 0], images) + weights[1].view(-1, 1, 1)
        return (torch.einsum("oc,bchw->bohw", weights[2][:, :, 0, 0], middle) + weights[3].view(-1, 1, 1)).mean((2, 3))

    centre = features(images).detach().mean(dim=0)
    torch.testing.assert_close(method.centre, centre)
    fisher = [torch.zeros_like(each) for each in start]
    for number in range(len(images)):
        loss = ((features(images[number : number + 1]) - centre) ** 2).mean()
        for total, gradient in zip(fisher, torch.autograd.grad(loss, weights), strict=True):
            total += gradient**2 / len(images)
    assert [len(numbers) for numbers in drawn] == [4, 4, 1] * 4
    speeds = [torch.zeros_like(each) for each in start]
    for numbers in drawn:
        loss = ((features(images[numbers]) - centre) ** 2).sum() / len(numbers) / 5
        for now, then, weight in zip(weights, start, fisher, strict=True):
            loss = loss + penalty * (weight * (now - then) ** 2).sum() / 2
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 1e-3
        with torch.no_grad():
            for weight, gradient, speed in zip(weights, gradients, speeds, strict=True):
                speed.mul_(0.9).add_(gradient * min(1, 1e-3 / (norm + 1e-6)) + 5e-5 * weight)
                weight -= 0.01 * speed
    for ours, theirs, then in zip(method.parameters(), weights, start, strict=True):
        torch.testing.assert_close(ours - then, theirs - then, rtol=1e-6, atol=1e-12)
    assert method.bank.shape == (9, 5)
    torch.testing.assert_close(method.bank, features(images).detach())


@pytest.mark.usefixtures("doubles")
def test_bottle_takes_105_steps():
    method = tiny()
    method.fit(TrainingSet("bottle", pictures(209, side=4)))
    assert method.facts["training"] | {"curve": None} == {
        **{"epochs": 15, "steps": 105, "samples": 15 * 209, "curve": None},
        "last_tenth": method.facts["training"]["last_tenth"],
    }


def test_what_is_frozen_stays_and_all_else_moves():
    setup = Setup("panda")
    before, untouched = setup.new(), {name: value.clone() for name, value in setup.network.network.state_dict().items()}
    before.build(setup.shapes())
    method = setup.one
    assert all(torch.equal(untouched[name], value) for name, value in setup.network.network.state_dict().items())
    statistics = dict(before.stages.named_buffers())
    assert any("running_var" in name for name in statistics)
    assert all(torch.equal(statistics[name], value) for name, value in method.stages.named_buffers())
    parameters = dict(before.stages.named_parameters())
    assert all(not torch.equal(parameters[name], value) for name, value in method.stages.named_parameters())


@pytest.mark.parametrize(
    ("name", "network", "tensors", "trained", "total"),
    [
        ("r152", "resnet152", 357, 55_578_624, 58_143_808),
        ("wrn50", "wide_resnet50_2", 87, 62_707_712, 66_834_240),
        ("r18", "resnet18", 30, 10_493_440, 11_176_512),
    ],
)
def test_parameters_of_the_published_networks(name, network, tensors, trained, total):
    with torch.device("meta"):
        setup = Setup("panda", name, ("backbone.weights=random",))
        method = setup.new()
        method.build(setup.shapes((224, 224)))
        whole = timm.create_model(network, num_classes=0)
    found = [parameter.numel() for parameter in method.parameters()]
    assert (len(found), sum(found)) == (tensors, trained)
    assert sum(parameter.numel() for parameter in whole.parameters()) == total
    assert method.centre.shape == (512 if name == "r18" else 2048,)


def test_more_neighbours_than_images(caplog):
    setup = Setup("panda", overrides=("method.neighbours=5", "method.epochs=0"))
    with caplog.at_level(logging.WARNING):
        method = setup.fitted(TrainingSet("few", pictures(3)))
    assert "few: method.neighbours=5 reduced to 3" in caplog.text
    assert method.facts == {"neighbours": 3}
    assert method.score(new_images()).image.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method.trained_levels=[4]",), r"method.trained_levels=\[4\]: expected two"),
        (("method.neighbours=0",), r"method.neighbours=0.*at least 1"),
        (("method.levels=[1,2]",), "PANDA: 2 levels before the trained part"),
        (("method.trained_levels=[3,7]",), "no level 7"),
    ],
)
def test_wrong_settings(words, message):
    with pytest.raises(UsageError, match=message):
        Setup("panda", overrides=words).fitted()
