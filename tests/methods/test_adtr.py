"""ADTR's steps and scores against an independent version of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from setups import setup

from anomaly_bench.components.training import Epoch
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

WORDS = ("method.epochs=5", "method.dropout=0")


def slow_features(levels):
    """(B, 16, C)."""
    parts = [
        F.avg_pool2d(level, level.shape[-1] // 4)
        if level.shape[-1] >= 4
        else F.interpolate(level, (4, 4), mode="bilinear", align_corners=False)
        for level in levels
    ]
    return torch.stack([torch.cat(parts, dim=1)[:, :, cell // 4, cell % 4] for cell in range(16)], dim=1)


def test_steps_maps_and_scores_follow_a_slow_version(monkeypatch):
    drawn, batches = [], Epoch.batches

    def recorded(self, *words):
        for numbers in batches(self, *words):
            drawn.append(numbers)
            yield numbers

    monkeypatch.setattr(Epoch, "batches", recorded)
    made, train, test = setup("adtr", words=WORDS), pictures(10), to_tensor(pictures(2, 900))
    torch.manual_seed(0)
    method = made.new()
    method.build(made.shapes())
    slow = copy.deepcopy(method.network)
    method.fit(TrainingSet("few", train))

    targets = slow_features(made.network(to_tensor(train)))
    optimiser = torch.optim.AdamW(slow.parameters(), 0.003, weight_decay=1e-4)
    for step, numbers in enumerate(drawn):
        optimiser.param_groups[0]["lr"] = 0.003 if step < 8 else 0.0003
        loss = ((slow(targets[numbers]) - targets[numbers]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.1) > 0.1
        optimiser.step()
    assert [len(numbers) for numbers in drawn] == [8, 2] * 5
    with torch.no_grad():
        tested = slow_features(made.network(test))
        norms = (slow(tested) - tested).square().sum(dim=2).sqrt().view(2, 1, 4, 4)
    maps = F.interpolate(norms, (64, 64), mode="bilinear", align_corners=False)
    found = method.eval().score(test)
    torch.testing.assert_close(found.map, maps[:, 0], rtol=1e-3, atol=1e-4 * float(maps.max()))
    means = maps.unfold(2, 4, 1).unfold(3, 4, 1).mean(dim=(1, 4, 5))  # windows of 64 / 16 pixels
    torch.testing.assert_close(found.image, means.amax(dim=(1, 2)), rtol=1e-3, atol=0)


def test_a_perfect_reconstruction_scores_zero(monkeypatch):
    made = setup("adtr", words=WORDS)
    method = made.new()
    method.build(made.shapes())
    monkeypatch.setattr(method.network, "forward", lambda features: features)
    found = method.eval().score(to_tensor(pictures(2)))
    assert not found.map.any()
    assert not found.image.any()


def test_the_published_levels_of_efficientnet_b4():
    from anomaly_bench.config.compose import compose

    for method in ("adtr", "adtr_plus"):
        config = compose("config", [f"method={method}", "backbone=effb4"])
        assert config["method"]["levels"] == [0, 1, 2, 3, 4]


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"method.grid=0: expected at least 1"):
        setup("adtr").new(grid=0)
