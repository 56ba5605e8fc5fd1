from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture, save
from scipy.ndimage import uniform_filter
from torch import nn

from anomaly_bench.components.losses import focal_loss, ssim_map
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.draem import DRAEM
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.runs.runner import Runner


def small(**keys):
    return DRAEM(**{"epochs": 1, "width": 4, "discriminative_width": 4, **keys})


def test_parameters_of_the_published_networks():
    method = DRAEM(epochs=1)
    with torch.device("meta"):
        method.build([(3, 256, 256)])
    parts = [sum(p.numel() for p in part.parameters()) for part in (method.reconstruct, method.discriminate)]
    assert parts == [pytest.approx(69.05e6, rel=1e-3), pytest.approx(28.37e6, rel=1e-3)]
    assert sum(parts) == pytest.approx(97.42e6, rel=1e-4)


class Reply(nn.Module):
    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def forward(self, images):
        self.seen = images
        return self.reply


def test_scores_follow_the_equations():
    logits = torch.randn(2, 2, 40, 32, generator=torch.Generator().manual_seed(0))
    images, repaired = torch.rand(2, 3, 40, 32), torch.rand(2, 3, 40, 32)
    method = small()
    method.reconstruct, method.discriminate = Reply(repaired), Reply(logits)
    result = method.eval().score(images)
    assert torch.equal(method.discriminate.seen, torch.cat([repaired, images], dim=1))
    probability = logits.double().softmax(dim=1)[:, 1].numpy()
    order = np.argsort(probability.ravel())
    assert (np.diff(result.map.numpy().ravel()[order]) >= 0).all(), "the map ranks like the probability"
    for index in range(2):
        smooth = uniform_filter(probability[index], 21, mode="constant")
        assert float(result.image[index]) == pytest.approx(smooth.max(), abs=1e-6)


def test_extreme_pixels_keep_their_rank():
    logits = torch.zeros(1, 2, 32, 32)
    logits[0, 1, 0, :3] = torch.tensor([100.0, 200.0, 300.0])
    method = small()
    method.reconstruct, method.discriminate = Reply(torch.zeros(1, 3, 32, 32)), Reply(logits)
    first = method.eval().score(torch.zeros(1, 3, 32, 32)).map[0, 0, :3]
    assert first[0] < first[1] < first[2]


def test_the_loss_is_the_sum_of_three():
    torch.manual_seed(0)
    method = small()
    method.build([(3, 32, 32)])
    clean, dirty = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mask = torch.rand(2, 32, 32) > 0.5
    repaired, logits = torch.rand(2, 3, 32, 32), torch.randn(2, 2, 32, 32)
    method.reconstruct, method.discriminate = Reply(repaired), Reply(logits)
    expected = F.mse_loss(repaired, clean) + (1 - ssim_map(repaired, clean, zeros=True).mean())
    expected = expected + focal_loss(logits, mask.long())
    torch.testing.assert_close(method.loss(clean, dirty, mask), expected)


def gradients(accumulate):
    torch.manual_seed(3)
    method = small(accumulate=accumulate)
    method.build([(3, 32, 32)])
    method.double().eval()  # without batch normalisation the parts add up to the whole
    torch.manual_seed(4)
    for loss in method.losses(torch.rand(5, 3, 32, 32, dtype=torch.float64)):
        loss.backward()
    return [parameter.grad for parameter in method.parameters()]


def test_accumulated_gradients_match_the_whole_batch_without_batch_norm():
    torch.testing.assert_close(gradients(1), gradients(3))


def test_too_many_parts():
    with pytest.raises(UsageError, match=r"method.accumulate=9: expected 1 to method.batch=8"):
        small(accumulate=9)


def test_sides_that_are_not_divisible():
    with pytest.raises(UsageError, match=r"cannot take images of 100 x 64 pixels; .* such as 96 or 128"):
        small().build([(3, 100, 64)])


def plain(count, side=32):
    random = np.random.default_rng(0)
    wave = 128 + 50 * np.sin(np.mgrid[:side, :side].sum(axis=0) / 5)
    return (wave[None, ..., None] + random.normal(0, 4, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
def test_the_loss_falls():
    method = small(epochs=8, lr=5e-3, batch=4)
    fit_method(method, [(3, 32, 32)], TrainingSet("waves", plain(8)), seed=0)
    losses = method.facts["training"]["curve"]["loss"]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:2])
    assert method.facts["anomaly_source"] == "generated"


def test_learning_rate_drops_at_80_and_90_percent(monkeypatch):
    rates = []
    from anomaly_bench.components import training

    original = training.Epoch.step

    def step(self, losses):
        rates.append(self.loop.optimisers[0].param_groups[0]["lr"])
        original(self, losses)

    monkeypatch.setattr(training.Epoch, "step", step)
    fit_method(small(epochs=10, lr=1.0, batch=8), [(3, 32, 32)], TrainingSet("waves", plain(2)), seed=0)
    assert rates == pytest.approx([1.0] * 8 + [0.2, 0.04])


def test_texture_folder_is_identified_by_content_not_path(tree, tmp_path):
    def fingerprint(folder):
        words = ["method=draem", "dataset=folder", f"data_root={tree}", f"method.anomaly_source={folder}"]
        return Runner(compose("config", words), Reporter()).job("cog").first.fingerprint

    for number in range(2):
        save(picture(number), tmp_path / "here" / "dots" / f"{number}.png")
    for name in ("there", "changed"):
        shutil.copytree(tmp_path / "here", tmp_path / name)
    save(picture(9), tmp_path / "changed" / "dots" / "1.png")
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there") != fingerprint(tmp_path / "changed")
