"""KDAD: the published cloners, distances by hand, and the map against autograd through unfolded networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from setups import setup

from anomaly_bench.components.upsampling import smooth_upsample
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import construct
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import kdad
from anomaly_bench.methods.kdad import KDAD, Cloner, Rectifier
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(3, 500))
EQUAL_SIZE = (64, 128, 256, 512, 512)


def fitted(*words, steps=3):
    made = setup("kdad", words=words)
    normals = TrainingSet("waves", pictures(8))
    normals.steps = steps
    return made.fitted(normals)


@pytest.fixture(scope="module")
def plain():
    return fitted("method.guided=false")


def test_parameters_of_the_published_cloners():
    config = compose("config", ["backbone=vgg16", "method=kdad"])
    assert config["method"]["normalise"] is config["method"]["scaled"] is False
    with torch.device("meta"):
        backbone = construct(config["backbone"], "backbone", levels=config["method"]["levels"])
        shapes = backbone.shapes((128, 128))
        assert [channels for channels, _, _ in shapes] == [128, 256, 512, 512]
        for widths, expected in ((config["method"]["widths"], 343_984), (EQUAL_SIZE, 14_715_968)):
            method = KDAD(backbone, epochs=1, widths=widths)
            method.build(shapes)
            assert sum(parameter.numel() for parameter in method.parameters()) == expected
        small = Cloner([128, 256, 512, 512], [16] * 5, guided=True)
        values = [tuple(level.shape[1:]) for level in small(torch.empty(1, 3, 128, 128))]
    assert values == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    assert sum(buffer.numel() for buffer in small.buffers()) == 264
    kinds = [type(layer).__name__ for layer in small.modules()]
    assert [kinds.count(kind) for kind in ("Conv2d", "BatchNorm2d", "Rectifier", "MaxPool2d")] == [13, 8, 13, 5]


def test_losses_of_equal_opposite_and_doubled_values():
    method = KDAD(None, epochs=1, weight=0.25)
    method.scales = torch.ones(4)
    source = [torch.randn(2, 3, 4, 4) for _ in range(4)]
    squares = torch.stack([level.square().mean(dim=(1, 2, 3)) for level in source])
    for factor, expected in ((1, 0 * squares), (-1, 2 + squares), (2, 0.25 * squares)):
        found = method.distances(source, [factor * level for level in source])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def unfolded(method, images):
    """Scores with the source's whole network and plain operations; the images keep their graph."""
    source = method.backbone.trainable_copy(pretrained=True).eval()(images)
    ours, terms = method.cloner((images - method.mean) / method.std), []
    for theirs, mine, scale in zip(source, ours, method.scales, strict=True):
        theirs = F.max_pool2d(theirs, 2) / scale
        a, b = theirs.flatten(1), mine.flatten(1)
        cosine = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
        terms.append(1 - cosine + method.weight * (a - b).square().mean(dim=1))
    return torch.stack(terms)


def test_the_map_is_the_gradient(plain):
    """Image by image, through networks without folded norms, and by differences for the brightness of one pixel."""
    found = plain.score(TEST)
    for number in range(len(TEST)):
        image = TEST[[number]].clone().requires_grad_()
        score = unfolded(plain, image)[1:].sum()
        (gradient,) = torch.autograd.grad(score, image)
        expected = smooth_upsample(gradient.abs().sum(dim=1), (64, 64), 4.0)[0]
        torch.testing.assert_close(found.map[number], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
        assert float(found.image[number]) == pytest.approx(float(score.detach()), rel=1e-4)


def test_gradients_reach_the_image_through_both_networks(plain):
    """A difference of the score along the gradient is the gradient's squared length."""
    image = TEST[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(unfolded(plain, image)[1:].sum(), image)
    step = 1e-2 * gradient / gradient.norm()
    ahead, behind = (float(plain.score(image.detach() + sign * step).image) for sign in (1, -1))
    assert ahead - behind == pytest.approx(2e-2 * float(gradient.norm()), rel=0.05)


def test_guided_gradients_by_hand():
    inputs = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    upstream = torch.tensor([5.0, -4.0, 6.0])
    for guided, training, expected in ((True, False, [0, 0, 6]), (True, True, [0, -4, 6]), (False, False, [0, -4, 6])):
        (gradient,) = torch.autograd.grad(Rectifier(guided).train(training)(inputs), inputs, upstream)
        assert gradient.tolist() == expected


class Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.clamp(min=0)

    @staticmethod
    def backward(ctx, upstream):
        (inputs,) = ctx.saved_tensors
        return upstream * (inputs > 0) * (upstream > 0)


def test_guided_maps_are_those_of_a_guided_function(plain, monkeypatch):
    guided = fitted()
    guided.load_state_dict(plain.state_dict())
    found = guided.score(TEST)
    assert (found.map - plain.score(TEST).map).abs().max() > 1e-3 * found.map.max()
    assert torch.equal(found.image, plain.score(TEST).image)
    monkeypatch.setattr(Rectifier, "forward", lambda self, inputs: Guided.apply(inputs))
    torch.testing.assert_close(found.map, guided.score(TEST).map, rtol=1e-4, atol=1e-6 * float(found.map.max()))


def test_the_score_leaves_out_the_first_depth(plain):
    terms = unfolded(plain, TEST).detach()
    source = kdad.pooled(plain.backbone(TEST))
    loss = plain.distances(source, plain.cloned(TEST)).mean(dim=1).sum()
    torch.testing.assert_close(loss, terms.mean(dim=1).sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss - plain.score(TEST).image.mean(), terms[0].mean(), rtol=1e-3, atol=1e-4)


def scaled(method, shown):
    levels = kdad.pooled(method.backbone.differentiable(shown))
    return [level / scale for level, scale in zip(levels, method.scales, strict=True)]


def test_a_perfect_cloner_scores_zero(plain, monkeypatch):
    monkeypatch.setattr(plain, "cloned", lambda shown: scaled(plain, shown))
    found = plain.score(TEST)
    assert found.image.abs().max() < 1e-5
    assert found.map.abs().max() < 1e-5


def test_maps_are_not_scaled_image_by_image(plain):
    assert len({round(float(each.max()), 6) for each in plain.score(TEST).map}) == len(TEST)


def test_stages_end_as_the_levels_do(plain):
    assert plain.resolved == {"ends": ["relu", "linear", "linear", "linear"]}
    values = plain.cloner(torch.randn(2, 3, 64, 64))
    assert [bool((level < 0).any()) for level in values] == [False, True, True, True]


def test_levels_are_scaled_by_their_size_on_training_images(plain):
    levels = scaled(plain, to_tensor(pictures(8)))
    torch.testing.assert_close(torch.stack([level.square().mean() for level in levels]), torch.ones(4))


def test_without_normalisation_both_networks_see_the_pixels():
    made = setup("kdad", words=("method.normalise=false",))
    method, seen = made.new(), []
    method.build(made.shapes())
    method.cloner.register_forward_pre_hook(lambda cloner, inputs: seen.append(inputs[0]))
    shown = method.shown(TEST)
    method.cloned(shown)
    torch.testing.assert_close(seen[0], TEST)
    source = method.backbone.trainable_copy(pretrained=True, normalise=False).eval()(TEST)
    for found, expected in zip(method.backbone(shown), source, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-3)


def test_images_of_cifar_10s_size():
    made = setup("kdad", words=("method.batch=4",))
    method = made.fitted(TrainingSet("small", pictures(6, side=32)))
    assert method.score(TEST[:, :, :32, :32]).map.shape == (3, 32, 32)


def test_wrong_settings():
    for settings, message in (
        ({"widths": [16]}, r"method.widths=\[16\]: expected five numbers"),
        ({"ends": ["rely"] * 4}, "method.ends=rely: no such choice; did you mean relu"),
    ):
        with pytest.raises(UsageError, match=message):
            KDAD(None, epochs=1, **settings)
    made = setup("kdad")
    with pytest.raises(UsageError, match="KDAD cannot take images of 48 x 64 pixels"):
        made.new().build(made.shapes((48, 64)))
    with pytest.raises(UsageError, match=r"expected four levels of one network, .* such as \[stem,1,2,3\]"):
        made.new().build(made.shapes()[1:])
    with pytest.raises(UsageError, match=r"method.ends=\['relu'\]: expected 4"):
        made.new(ends=["relu"]).build(made.shapes())
