"""SMAI: what is hidden never changes its restoration, superpixels are a partition, and maps by a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from setups import setup

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.smai import Inpainting, superpixels
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(2, 500))


def built(**settings):
    method = setup("smai").new(**settings)
    torch.manual_seed(0)
    method.build(setup("smai").shapes())
    return method


def test_hidden_pixels_never_change_their_restoration():
    method = built()
    masks = method.draw(method.divided(TEST)).float()
    for training in (True, False):
        method.train(training)
        expected = method.restore(TEST, masks)
        changed = torch.where(masks > 0, torch.rand_like(TEST), TEST)
        assert torch.equal(method.restore(changed, masks), expected)
        assert not torch.equal(method.restore((TEST + 0.1 * (1 - masks)), masks), expected)
    whole = torch.ones_like(masks)
    assert torch.equal(method.restore(TEST, whole), method.restore(1 - TEST, whole))


def test_superpixels_are_a_partition():
    image = TEST[0].permute(1, 2, 0).numpy()
    for count in (16, 8):
        found = superpixels(image, count)
        assert torch.equal(found, superpixels(image.copy(), count))
        numbers = found.unique()
        assert torch.equal(numbers, torch.arange(len(numbers), dtype=torch.int16))
        assert count / 2 <= len(numbers) <= 2 * count
    method = built(segments=[16, 8])
    assert torch.equal(method.divided(TEST)[0, 1], superpixels(image, 8))


def test_scores_follow_a_slow_version():
    method = built(segments=[8, 4]).eval()
    found = method.score(TEST)
    for number, image in enumerate(TEST):
        maps = []
        for count in (8, 4):
            labels = superpixels(image.permute(1, 2, 0).numpy(), count)
            errors = torch.full((64, 64), torch.nan)
            for each in labels.unique():
                mask = (labels == each)[None, None].float()
                with torch.no_grad():
                    restored = method.network(torch.cat([image[None] * (1 - mask), mask], dim=1))[0]
                errors[labels == each] = (restored - image).abs().mean(dim=0)[labels == each]
            maps.append(errors)
        mean = torch.stack(maps).mean(dim=0)
        padded = F.pad(mean, (3, 3, 3, 3), value=torch.nan)
        expected = padded.unfold(0, 7, 1).unfold(1, 7, 1).flatten(2).nanmean(dim=2)
        torch.testing.assert_close(found.map[number], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.image, found.map.amax(dim=(1, 2)))


def test_losses_by_hand(monkeypatch):
    method, masks = built(), torch.zeros(2, 1, 64, 64)
    masks[:, :, :32] = 1
    monkeypatch.setattr(method.network, "forward", lambda inputs: TEST + 0.2 * masks - 0.3 * (1 - masks))
    assert float(method.loss(TEST, masks)) == pytest.approx(0.2 + 0.1 * 0.3, rel=1e-5)
    method.anchor = 0.0
    assert float(method.loss(TEST, masks)) == pytest.approx(0.2, rel=1e-5)
    assert float(method.loss(TEST, torch.ones_like(masks))) == pytest.approx(0.25, rel=1e-5)
    monkeypatch.setattr(method.network, "forward", lambda inputs: TEST[:1].expand(len(inputs), -1, -1, -1))
    assert float(method.loss(TEST[:1], masks[:1])) == 0
    assert not method.eval().score(TEST[:1]).map.any()


def test_at_most_a_quarter_of_the_superpixels_is_hidden():
    method = built(segments=[16])
    labels = torch.arange(16, dtype=torch.int16).repeat_interleave(16).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    masks = method.draw(labels)
    assert masks.shape == (200, 1, 16, 16)
    assert set(masks.sum(dim=(1, 2, 3)).tolist()) == {16, 32, 48, 64}
    assert masks.flatten(1).any(dim=0).all()
    single = method.draw(torch.zeros(1, 1, 16, 16, dtype=torch.int16))
    assert single.all()


@pytest.mark.slow
def test_the_network_learns_to_restore():
    """After training it restores hidden superpixels of new images better than their mean colour."""
    method = built(epochs=24)
    method.fit(TrainingSet("few", pictures(24)))
    method.eval()
    torch.manual_seed(1)
    masks = method.draw(method.divided(TEST)).float()
    with torch.no_grad():
        errors = ((method.restore(TEST, masks) - TEST).abs() * masks).sum()
    flat = ((TEST.mean(dim=(2, 3), keepdim=True) - TEST).abs() * masks).sum()
    assert errors < 0.8 * flat
    assert method.facts["training"]["spread"] > 0.1


def test_parameters():
    with torch.device("meta"):
        counts = [sum(each.numel() for each in Inpainting(width).parameters()) for width in (16, 32)]
    assert counts == [1_226_483, 4_899_811]


def test_wrong_settings():
    for settings, message in (
        ({"segments": []}, r"method.segments=\[\]: expected numbers of at least 1"),
        ({"share": 0.0}, "method.share=0.0: expected a share above 0"),
        ({"window": 4}, "method.window=4: expected an odd number of pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            built(**settings)
    with pytest.raises(UsageError, match="SMAI cannot take images of 40 x 64 pixels"):
        built().build([(3, 40, 64)])
    with pytest.raises(UsageError, match="SMAI cannot take images of 40 x 64 pixels"):
        built().eval().score(torch.zeros(1, 3, 40, 64))
    assert np.isfinite(superpixels(np.zeros((32, 32, 3), np.float32), 4).numpy()).all()
