"""CFLOW-AD against a slow version written from its equations, and its learning rate schedule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_bench.components.training import Epoch, Loop
from anomaly_bench.config.instantiate import construct
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.cflow_ad import rate
from anomaly_bench.protocol import FeatureArray, TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures

SMALL = ("method.blocks=3", "method.epochs=2")


@pytest.fixture(scope="module")
def fitted():
    return Setup("cflow_ad", overrides=SMALL).fitted(TrainingSet("cog", pictures(4)))


def numbers(flow):
    """Each block's subnet weights and biases, scale, offset and rotation, in float64."""
    for block in flow:
        first, _, second = block.subnet
        tensors = (first.weight, first.bias, second.weight, second.bias, block.scale, block.offset, block.rotation)
        yield [each.detach().double().numpy() for each in tensors]


def slow_log_p(blocks, vector, x, y):
    """log p per channel of one vector (C,) float64 at column x and row y."""
    frequencies = [10000.0 ** (-2 * i / 64) for i in range(32)]
    code = [f(w * at) for at in (x, y) for w in frequencies for f in (math.sin, math.cos)]
    z, log_det, channels = vector, 0.0, len(vector)
    for weight, bias, weight2, bias2, g, offset, rotation in blocks:
        passive, active = z[: channels - channels // 2], z[channels - channels // 2 :]
        raw = 0.1 * (weight2 @ np.maximum(weight @ np.concatenate([passive, code]) + bias, 0) + bias2)
        log_scale, shift = 1.9 * np.tanh(raw[: len(active)]), raw[len(active) :]
        scale = 0.1 * 2 * np.log(1 + np.exp(g / 2))
        z = rotation @ (np.concatenate([passive, active * np.exp(log_scale) + shift]) * scale + offset)
        log_det += log_scale.sum() + np.log(scale).sum()
    return (channels * math.log(1 / math.sqrt(2 * math.pi)) - 0.5 * (z**2).sum() + log_det) / channels


def slow_log_ps(method, images):
    """(B, h, w) for each level."""
    found = []
    for flow, level in zip(method.flows, method.backbone(images), strict=True):
        blocks, values = list(numbers(flow)), level.double().numpy()
        log_p = np.empty((len(values), *values.shape[2:]))
        for b, y, x in np.ndindex(log_p.shape):
            log_p[b, y, x] = slow_log_p(blocks, values[b, :, y, x], x, y)
        found.append(torch.from_numpy(log_p))
    return found


def test_maps_and_scores_follow_the_equations(fitted):
    train, test = to_tensor(pictures(4)), to_tensor(pictures(2, first=900))
    test[0, :, 20:30, 20:30] = 0
    largest = [each.max() for each in slow_log_ps(fitted, train)]
    torch.testing.assert_close(fitted.largest.double(), torch.stack(largest), rtol=1e-4, atol=1e-4)
    below = [peak - each for each, peak in zip(slow_log_ps(fitted, test), largest, strict=True)]
    large = [F.interpolate(each[:, None], (64, 64), mode="bilinear", align_corners=True)[:, 0] for each in below]
    expected = -torch.log(sum(torch.exp(-each) for each in large) / len(large))
    result = fitted.score(test)
    torch.testing.assert_close(result.map.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.image.double(), expected.amax(dim=(1, 2)), rtol=1e-3, atol=1e-3)


class Recorded(Epoch):
    """An epoch that records losses without stepping."""

    def step(self, loss):
        self.losses = [*getattr(self, "losses", []), float(loss.detach())]


def test_the_loss_follows_the_equations(fitted):
    images = to_tensor(pictures(2))
    fitted.fibres, before = 2 * 64, fitted.fibres  # one step over all vectors of the first level
    epoch = Recorded(None, 0, 0)
    fitted.train_level(0, fitted.backbone(images)[0], epoch)
    fitted.fibres = before
    expected = np.log1p(np.exp(-slow_log_ps(fitted, images)[0].numpy())).mean()  # -log sigmoid
    assert epoch.losses == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize(("fibres", "steps"), [(50, 2), (128, 1), (1000, 1)])
def test_only_full_fibre_batches_unless_there_are_none(fitted, fibres, steps):
    fitted.fibres, before = fibres, fitted.fibres
    epoch = Recorded(None, 0, 0)
    fitted.train_level(0, fitted.backbone(to_tensor(pictures(2)))[0], epoch)
    fitted.fibres = before
    assert len(epoch.losses) == steps


@pytest.mark.parametrize(("batch", "used"), [(10, 20), (12, 24), (32, 24)])
def test_only_full_batches_of_images_unless_there_are_none(batch, used):
    words = ("method.epochs=2", f"method.batch={batch}", "method.levels=[4]", "method.blocks=1", "method.views=1")
    method = Setup("cflow_ad", overrides=words).fitted()
    assert method.facts["training"]["samples"] == 2 * used


def test_step_updates_only_its_own_level():
    method = Setup("cflow_ad", overrides=SMALL).fitted(TrainingSet("cog", pictures(1)))
    before = [copy.deepcopy(flow.state_dict()) for flow in method.flows]
    loop = Loop(method, torch.optim.Adam(method.parameters(), 1e-2), TrainingSet("cog", pictures(1)), 1)
    epoch = Epoch(loop, 0, 0)
    for index in (0, 1):
        level = method.backbone(to_tensor(pictures(2)))[index]
        method.train_level(index, level, epoch)
    moved = [any(not value.equal(old[name]) for name, value in flow.state_dict().items())
             for flow, old in zip(method.flows, before, strict=True)]  # fmt: skip
    assert moved == [True, True, False]


def test_learning_rate_warms_up_and_falls_in_25_steps():
    cosine = [2e-7 + (2e-4 - 2e-7) * (1 + math.cos(math.pi * part / 25)) / 2 for part in range(25)]
    assert rate(2e-4, 0) == pytest.approx(2e-5)
    assert rate(2e-4, 1 / 25) == pytest.approx((2e-5 + cosine[2]) / 2)
    for part in range(2, 25):
        for within in (0.001, 0.5, 0.999):
            assert rate(2e-4, (part + within) / 25) == pytest.approx(cosine[part])


def test_views_are_slightly_rotated_and_used_in_turn():
    method = Setup("cflow_ad", overrides=(*SMALL, "method.views=3")).new()
    seen = []
    method.backbone = lambda images: seen.append(images) or [images]
    torch.manual_seed(0)
    images = torch.ones(2, 3, 64, 64)
    kept = FeatureArray([(2, 3, 64, 64)] * 3, "cpu")
    for whole, level in zip(kept.levels, method.versions(images), strict=True):
        whole.copy_(level)
    assert len(seen) == 3
    assert len({float(each.sum()) for each in seen}) == 3, "different angles"
    for each in seen:  # black corners from at most five degrees: tan(5 degrees) * 32 pixels
        assert 0 < float((each == 0).float().mean()) < 0.05
        assert (each[:, :, 4:-4, 4:-4] == 1).all()
    method.flows = [None]
    for number in range(7):
        (level,) = method.version(kept, torch.tensor([1]), Epoch(None, number, 0))
        assert level.equal(seen[number % 3][1:])


def test_without_views_each_epoch_draws_new_rotations():
    setup = Setup("cflow_ad", overrides=(*SMALL, "method.views=0"))
    passed = []
    method = setup.new()
    method.backbone = lambda images: passed.append(images) or setup.network(images)
    setup.fit(method, TrainingSet("cog", pictures(4)))
    first, second, _ = passed  # the last pass finds the largest likelihoods
    assert not first.sort(dim=0).values.equal(second.sort(dim=0).values)


def test_strong_anomalies_stay_finite_and_ordered(fitted):
    images, backbone, scores = to_tensor(pictures(1)), fitted.backbone, []
    for factor in (1, 10, 100, 1e4, 1e8):
        fitted.backbone = lambda batch, factor=factor: [factor * level for level in backbone(batch)]
        scores.append(float(fitted.score(images).image[0]))
    fitted.backbone = backbone
    assert scores == sorted(set(scores))
    assert math.isfinite(scores[-1])


def test_extra_parameters_on_wrn50():
    """81.65 M, as in the authors' code; rotations (without their inverses) count as stored statistics."""
    config = Setup("cflow_ad", "wrn50", ("backbone.weights=random", "protocol=paper")).config
    with torch.device("meta"):
        network = construct(config["backbone"], "backbone", levels=config["method"]["levels"])
        method = construct(config["method"], "method", backbone=network)
        method.build(network.shapes((256, 256)))
    assert sum(value.numel() for value in method.parameters()) == 81_647_616
    assert sum(value.numel() for value in method.buffers()) == 8 * (512**2 + 1024**2 + 2048**2) + 3


@pytest.mark.parametrize(("key", "message"), [("views=-1", r"views=-1: expected 0"), ("code=6", "multiple of 4")])
def test_invalid_settings(key, message):
    with pytest.raises(UsageError, match=message):
        Setup("cflow_ad", overrides=(f"method.{key}",)).new()


def test_oracle_normalises_by_test_image_likelihoods(tree, tmp_path, command, monkeypatch):
    """From the command line: a separate, marked record with different maps; the training maxima are replaced."""
    from anomaly_bench import records
    from anomaly_bench.methods.cflow_ad import CFlowAD

    maxima, find = [], CFlowAD.oracle
    monkeypatch.setattr(CFlowAD, "oracle", lambda self, images: [find(self, images), maxima.append(self.largest)])
    words = ["method=cflow_ad", "dataset=folder", f"data_root={tree}", "category=cog", "input.resize=64", "gallery=0"]
    words += [f"method.{key}" for key in ("epochs=1", "views=1", "blocks=1")] + ["speed=false", f"results={tmp_path}"]
    found = {}
    for oracle in ("false", "true"):
        status, out, _ = command(*words, f"oracle={oracle}")
        assert status == 0
        assert ("oracle (settings chosen on the test images)" in out) == (oracle == "true")
        (path,) = set(tmp_path.glob("records/*/cflow_ad-lite0/*.json")) - set(found)
        found[path] = records.load(path)
    assert [record.oracle for record in found.values()] == [False, True]
    assert len(maxima) == 3, "of the training images, twice, and of the test images"
    assert maxima[0].equal(maxima[1])
    assert not maxima[1].equal(maxima[2])
    scores = [[image["score"] for image in record.images] for record in found.values()]
    assert scores[0] != scores[1]
