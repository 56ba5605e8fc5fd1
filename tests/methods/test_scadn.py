"""SCADN: parameters, complementary masks, losses by hand, and scores by a loop over pixels' masks."""

from __future__ import annotations

import math

import pytest
import torch
from setups import setup

from anomaly_bench.components.gan import PatchCritic
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.scadn import SCADN, errors_of, generator, judgement, stripes
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

IMAGES = to_tensor(pictures(3, 500))


def built(**settings):
    torch.manual_seed(0)
    method = setup("scadn").new(**settings)
    method.build([(3, 64, 64)])
    return method


def test_parameters_of_the_published_networks():
    with torch.device("meta"):
        made, critic, images = generator(64), PatchCritic(norms=False), torch.empty(1, 3, 512, 512)
        assert made(images).shape == (1, 3, 512, 512)
        assert critic(images)[-1].shape == (1, 1, 62, 62)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (made, critic)]
    assert counts == [42_077_955, 2_763_776]
    assert not list(made.buffers())


def test_outputs_lie_between_black_and_white():
    network = built().generator
    with torch.no_grad():
        outputs = network(IMAGES)
        assert 0 < outputs.min() < outputs.max() < 1
        torch.nn.init.zeros_(network[-2].weight)
        assert (network(IMAGES) == 0.5).all()


def test_masks_are_complementary_halves():
    masks = stripes((512, 512), (2, 4, 8))[:, 0]
    assert masks.shape == (12, 512, 512)
    assert (masks.mean(dim=(1, 2)) == 0.5).all()
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for first, second, third, fourth in masks.view(3, 4, 512, 512):
        assert (first + second == 1).all()
        assert (third + fourth == 1).all()
        assert torch.equal(third, first.T)
    finest = masks[8]
    assert (finest[:, :32] == 1).all()
    assert (finest[:, 32:64] == 0).all()
    assert [int((mask[0].diff() != 0).sum()) + 1 for mask in masks[::4]] == [4, 8, 16]
    small = stripes((32, 64), (8,))[:, 0]
    assert (small[0][:, :4] == 1).all()
    assert (small[0][:, 4:8] == 0).all()
    assert (small[2][:2] == 1).all()
    assert (small[2][2:4] == 0).all()


def test_losses_by_hand():
    masks = stripes((64, 64), (2, 8))[[0, 3, 4]]
    assert errors_of(IMAGES, IMAGES, masks) == 0
    assert errors_of(IMAGES + 0.1, IMAGES, masks).item() == pytest.approx(5 * 0.1**2, rel=1e-4)
    hidden = errors_of(IMAGES + 0.1 * masks, IMAGES, masks)
    assert hidden.item() == pytest.approx(4 * 0.1**2, rel=1e-4)
    half = torch.zeros(3, 1, 6, 6)  # logits
    assert judgement(half, half).item() == pytest.approx(math.log(2), rel=1e-6)
    assert judgement(half + 20, half - 20).item() == pytest.approx(0, abs=1e-6)


def test_scores_follow_a_slow_version():
    method = built().eval()
    method.norms.copy_(torch.tensor([0.02, 0.0, 0.03]))
    found = method.score(IMAGES)
    for number, image in enumerate(IMAGES):
        maps = []
        for scale in (2, 4, 8):
            errors = []
            for mask in stripes((64, 64), (scale,))[:, 0]:
                painted = image.clone()
                painted[:, mask == 1] = 1.0
                with torch.no_grad():
                    restored = method.generator(painted[None])[0]
                errors.append(((restored - image) ** 2).mean(dim=0) * mask)
            maps.append(torch.maximum(errors[0] + errors[1], errors[2] + errors[3]))
        chosen = max(range(3), key=lambda index: maps[index].mean() - method.norms[index])
        torch.testing.assert_close(found.map[number], maps[chosen], rtol=1e-3, atol=1e-6)
        assert found.image[number].item() == pytest.approx(maps[chosen].mean().item(), rel=1e-3)
    method.norms += 0.5
    assert torch.equal(method.score(IMAGES).map, found.map)


def test_a_generator_that_restores_nothing():
    """Each pixel is hidden once in each direction, so its error is that of white, at every scale."""
    method = built().eval()
    method.generator = torch.nn.Identity()
    expected = (1 - IMAGES).square().mean(dim=1)
    for index in range(3):
        torch.testing.assert_close(method.maps(IMAGES, 2)[:, index], expected)


def test_norms_are_mean_errors_of_the_training_images():
    method, normals = built(batch=2), TrainingSet("few", pictures(5))
    normals.steps = 2
    method.fit(normals)
    maps = torch.cat([method.maps(images, 2).detach() for images in normals.images(1)])
    torch.testing.assert_close(method.norms, maps.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-6)


def test_wrong_settings():
    for scales in ([], [3]):
        with pytest.raises(UsageError, match=r"method\.scales=.*: expected some of \[1,2,4,8\]"):
            SCADN(epochs=1, scales=scales)
    with pytest.raises(UsageError, match="SCADN cannot take images of 40 x 64 pixels"):
        built().build([(3, 40, 64)])
