"""ADTR+'s losses by hand and against their equations; where its anomalies come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from setups import setup

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.adtr_plus import image_loss, log1mexp, pixel_loss, pseudo_huber
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures


def built(**settings):
    method = setup("adtr_plus").new(**settings)
    torch.manual_seed(0)
    method.build(setup("adtr_plus").shapes())
    return method


def test_losses_by_hand():
    errors = torch.tensor([[[0.0, 0.0], [1.0, -1.0], [-3.0, 3.0]]])
    assert pseudo_huber(errors)[0].tolist() == pytest.approx([0, 2**0.5 - 1, 10**0.5 - 1])
    assert float(log1mexp(torch.tensor(math.log(2)))) == pytest.approx(-math.log(2))
    assert float(log1mexp(torch.tensor(1e-6))) == pytest.approx(math.log(1e-6), rel=1e-5)
    values = torch.rand(3, 10)
    nothing, all_of_it = torch.zeros(3, 10, dtype=torch.bool), torch.ones(3, 10, dtype=torch.bool)
    torch.testing.assert_close(pixel_loss(values, nothing, 0.003), values.mean())
    torch.testing.assert_close(pixel_loss(values, all_of_it, 0.003), -0.003 * log1mexp(values.mean(dim=1)).mean())
    torch.testing.assert_close(image_loss(values, nothing[:, 0], 0.003, 10), values.mean())
    largest = values.max(dim=1).values
    torch.testing.assert_close(image_loss(values, all_of_it[:, 0], 0.5, 1), -0.5 * log1mexp(largest).mean())
    assert torch.equal(image_loss(values, nothing[:, 0], 0.003, 20), image_loss(values, nothing[:, 0], 0.003, 10))


def test_losses_follow_their_equations():
    torch.manual_seed(0)
    values, masks = torch.rand(6, 16), torch.rand(6, 16) < 0.3
    masks[4] = False
    total = 0.0
    for value, mask in zip(values.tolist(), masks.tolist(), strict=True):
        total += sum(v for v, y in zip(value, mask, strict=True) if not y) / 16
        if any(mask):
            far = sum(v for v, y in zip(value, mask, strict=True) if y) / 16
            total -= 0.003 * math.log(1 - math.exp(-far))
    assert float(pixel_loss(values, masks, 0.003)) == pytest.approx(total / 6, rel=1e-5)
    total = 0.0
    for value, anomalous in zip(values.tolist(), masks.any(dim=1).tolist(), strict=True):
        q = sum(sorted(value)[-5:]) / 5
        total += -0.003 * math.log(1 - math.exp(-q)) if anomalous else q
    assert float(image_loss(values, masks.any(dim=1), 0.003, 5)) == pytest.approx(total / 6, rel=1e-5)


def test_gradients_are_finite_where_nothing_is_wrong():
    errors = torch.zeros(2, 16, 4, requires_grad=True)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, 3] = True
    loss = pixel_loss(pseudo_huber(errors), masks, 0.003) + image_loss(pseudo_huber(errors), masks[:, 3], 0.003, 5)
    loss.backward()
    assert errors.grad.isfinite().all()


def test_cells_with_an_anomalous_pixel_are_anomalous(monkeypatch):
    def with_a_spot(image):
        changed = image.clone()
        changed[:, 15:17, 40] = 1 - changed[:, 15:17, 40]
        return changed

    monkeypatch.setattr("anomaly_bench.methods.adtr_plus.spoiled", with_a_spot)
    method = built()
    features, masks = method.anomalies(TrainingSet("few", pictures(10)))
    assert masks.shape == (10, 16)
    assert masks[7].view(4, 4).nonzero().tolist() == [[0, 2], [1, 2]]
    spotted = torch.stack([with_a_spot(image) for image in to_tensor(pictures(10))])
    torch.testing.assert_close(features[torch.arange(10)][0], method.features(spotted)[0], rtol=1e-4, atol=1e-4)


def test_half_of_the_images_are_anomalies(monkeypatch):
    method, seen = built(), []
    loss = method.loss

    def watched(errors, masks):
        seen.append(masks.any(dim=1))
        return loss(errors, masks)

    monkeypatch.setattr(method, "loss", watched)
    method.epochs = 10
    method.fit(TrainingSet("few", pictures(24)))
    assert float(torch.cat(seen).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_photographs_are_labelled_as_a_whole(tmp_path):
    for number in range(2):
        Image.fromarray(np.full((20, 30, 3), 100 * number, np.uint8)).save(tmp_path / f"{number}.png")
    method = built(anomaly_source=str(tmp_path), epochs=1)
    _, masks = method.anomalies(TrainingSet("few", pictures(4)))
    assert masks.all()
    anomaly = method.anomaly(to_tensor(pictures(1))[0])
    assert anomaly.shape == (3, 64, 64)
    assert float(anomaly.max()) == float(anomaly.min()) == pytest.approx(0, abs=0.4)
    errors, known = torch.rand(4, 16, 8), torch.tensor([True, True, False, False])
    expected = image_loss(pseudo_huber(errors), known, 0.003, 20)
    assert torch.equal(method.loss(errors, known[:, None].expand(4, 16)), expected)
    method.fit(TrainingSet("few", pictures(4)))
    assert method.eval().score(to_tensor(pictures(1))).image.isfinite().all()
    with pytest.raises(UsageError, match=r"method.anomaly_source=.*nowhere: no images there"):
        built(anomaly_source=str(tmp_path / "nowhere"))


def test_wrong_settings():
    for key in ("grid", "largest"):
        with pytest.raises(UsageError, match=f"method.{key}=0: expected at least 1"):
            built(**{key: 0})
