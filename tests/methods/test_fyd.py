"""FYD against PaDiM, losses by hand, and transforms with their inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.fyd import Transformer, coarse_loss, fine_loss, in_one_frame, inverse, warp
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, new_images, pictures

SMALL = ("method.dimensions=20",)


def smooth(count=2, side=64):
    """Images without fine detail."""
    low = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(low, size=(side, side), mode="bicubic")


def turning(*values, **bounds):
    """A transformer that does the same to every image."""
    made = Transformer(3, torch.pi / 4, **bounds).eval()
    with torch.no_grad():
        made.network[-1].bias.copy_(torch.tensor(values))
    return made


def built(setup, *biases):
    """A method whose transformers (of the image, levels 1, 2, 3) are not at the identity; none given: they are."""
    torch.manual_seed(0)
    method = setup.new()
    method.build(setup.shapes())
    with torch.no_grad():
        for transformer, bias in zip(method.transformers, biases, strict=False):
            transformer.network[-1].bias.copy_(torch.tensor(bias))
    return method


def test_without_epochs_it_is_padim():
    padim, words = Setup("padim", overrides=SMALL).one, ("method.epochs=0", *SMALL)
    expected = padim.score(new_images())
    for align in ("true", "false"):
        method = Setup("fyd", overrides=(*words, f"method.align={align}")).one
        assert len(method.transformers) == (4 if align == "true" else 0)
        assert torch.equal(method.chosen, padim.chosen)
        torch.testing.assert_close(method.mean, padim.mean, rtol=1e-4, atol=1e-4)
        found = method.score(new_images())
        torch.testing.assert_close(found.map, expected.map, rtol=1e-4, atol=0)
        torch.testing.assert_close(found.image, expected.image, rtol=1e-4, atol=0)


def test_every_transformer_starts_at_the_identity():
    images = smooth()
    for transformer in (Transformer(3, 0.8, shift=0.1), Transformer(3, 0.8, scale=0.1)):
        theta = transformer.eval()(images)
        assert torch.equal(theta, torch.eye(2, 3).expand(2, 2, 3))
        torch.testing.assert_close(warp(images, theta), images, rtol=0, atol=1e-6)


def test_bounds_of_the_transforms():
    shifted = turning(9.0, -9.0, 9.0, shift=0.1)(smooth())[0]
    cosine = 0.5**0.5
    expected = torch.tensor([[cosine, -cosine, -0.2], [cosine, cosine, 0.2]])  # sides are 2 long
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-5)
    scaled = turning(0.0, 9.0, -9.0, scale=0.1)(smooth())[0].detach()
    torch.testing.assert_close(scaled.diagonal().log(), torch.tensor([0.1, -0.1]), rtol=0, atol=1e-5)
    both = turning(0.7, 9.0, -9.0, scale=0.1)(smooth())[0].detach()
    assert float(both[0, 1] / both[1, 0]) == pytest.approx(-float(torch.tensor(0.2).exp()), rel=1e-4)


def test_a_warp_and_its_inverse():
    images = smooth()
    theta = turning(0.3, 0.6, -0.5, shift=0.1)(images).detach()
    other = turning(-0.2, 0.6, -0.5, scale=0.1)(images).detach()
    returned = warp(warp(images, theta), inverse(theta))
    inner = slice(20, 44)
    assert float((warp(images, theta) - images)[..., inner, inner].abs().max()) > 0.05
    torch.testing.assert_close(returned[..., inner, inner], images[..., inner, inner], rtol=0, atol=1e-2)
    last = torch.tensor([0.0, 0.0, 1.0]).expand(2, 1, 3)
    first, second, product = (torch.cat([each, last], dim=1) for each in (theta, other, inverse(theta, other)))
    torch.testing.assert_close(product @ first @ second, torch.eye(3).expand(2, 3, 3), rtol=0, atol=1e-6)


def test_losses_by_hand():
    same = torch.rand(1, 3, 8, 8).repeat(4, 1, 1, 1).requires_grad_()
    loss = coarse_loss(same)
    loss.backward()
    assert loss.item() == 0
    assert same.grad.isfinite().all()
    colours = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.4, 0.0]]).view(2, 3, 1, 1).expand(2, 3, 5, 5)
    assert float(coarse_loss(colours)) == pytest.approx(0.5)

    halves = torch.randn(2, 6, 3, 3).repeat(2, 1, 1, 1)
    assert float(fine_loss(halves, nn.Identity())) == pytest.approx(-1, abs=1e-6)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    pair = torch.stack([first, second, first]).view(3, 2, 1, 1)  # the last of an odd number is left out
    assert float(fine_loss(pair, nn.Identity())) == pytest.approx(-0.6)


def test_no_gradient_reaches_what_is_predicted():
    projected, constant = torch.randn(4, 6, 3, 3, requires_grad=True), torch.randn(4, 6, 3, 3, requires_grad=True)
    fine_loss(projected, lambda levels: constant).backward()
    assert projected.grad is None
    assert constant.grad.abs().min() > 0


def test_levels_are_turned_back_into_the_frame_of_the_first():
    """What is in level 1's frame, then passes the transformers of levels 2 and 3, returns to where it was."""
    seen = smooth()
    second = turning(-0.6, 0.9, -0.9, scale=0.1)(seen).detach()
    third = turning(0.4, -0.5, 0.5, scale=0.1)(seen).detach()
    levels = [seen, warp(seen, second), warp(warp(seen, second), third)]
    inner = slice(20, 44)
    for level in in_one_frame(levels, [second, second, second, third]):
        torch.testing.assert_close(level[..., inner, inner], seen[..., inner, inner], rtol=0, atol=2e-2)
    assert float((levels[2] - seen)[..., inner, inner].abs().max()) > 0.05
    assert in_one_frame(levels, []) == levels


def test_a_defect_stays_in_its_place_on_the_map():
    turns = ([0.3, 0.4, -0.4], [0.1, 0.3, 0.3], [-0.2, 0.5, -0.5], [0.2, -0.5, 0.5])
    setup = Setup("fyd", overrides=("method.epochs=0", *SMALL))
    fitted = built(setup, *turns)
    fitted.fit(setup.normals())
    for top, left in ((12, 40), (40, 16)):
        images = new_images()
        images[:, :, top : top + 10, left : left + 10] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        for heat in fitted.score(images).map:
            row, column = divmod(int(heat.argmax()), 64)
            assert abs(row - top - 5) <= 8, (row, column)
            assert abs(column - left - 5) <= 8, (row, column)


@pytest.mark.parametrize(("name", "group"), [("screw", None), ("cog", "textures")])
def test_what_cannot_be_aligned_is_not(name, group):
    setup = Setup("fyd", overrides=("method.epochs=1", "method.batch=4", *SMALL))
    method = setup.fitted(TrainingSet(name, pictures(8), group=group))
    assert method.resolved == {"align": False}
    assert method(new_images())[1] == []
    loaded = setup.new(**method.resolved)
    loaded.build(setup.shapes())
    loaded.load_state_dict(method.state_dict())
    assert torch.equal(loaded.eval().score(new_images()).map, method.score(new_images()).map)


@pytest.mark.slow
def test_projections_do_not_collapse():
    """The deviation of normalised projections is about 1 / sqrt(C) per channel, and 0 where they collapse."""
    method = Setup("fyd", overrides=("method.lr=0.01", "method.batch=8", "method.epochs=5", *SMALL)).one
    images = torch.cat([new_images(), 1 - new_images()])
    with torch.no_grad():
        (_, *levels), _ = method(images)
        for level, project in zip(levels, method.projectors, strict=True):
            directions = nn.functional.normalize(project(level), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
            assert float(directions.std(dim=0).mean()) > 0.2 / directions.shape[1] ** 0.5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.batch=1", "method.batch=1: expected at least 2"),
        ("method.dimensions=500", r"method.dimensions=500.*176 channels"),
        ("method.levels=[1,2]", "2 levels; FYD needs three"),
    ],
)
def test_wrong_settings(word, message):
    with pytest.raises(UsageError, match=message):
        Setup("fyd", overrides=(word,)).fitted()


def test_one_training_image_is_too_few():
    with pytest.raises(ValueError, match=r"1 training image.*at least 2"):
        Setup("fyd").fitted(TrainingSet("single", pictures(1)))


def test_frozen_norms_and_what_is_trained():
    setup = Setup("fyd", overrides=("method.lr=0.01", "method.batch=8", *SMALL))
    before, method = built(setup), setup.one
    statistics = dict(before.stages.named_buffers())
    assert all(torch.equal(statistics[name], value) for name, value in method.stages.named_buffers())
    moved = dict(before.stages.named_parameters())
    assert all(not torch.equal(moved[name], value) for name, value in method.stages.named_parameters())
    alone = method.score(to_tensor(pictures(1, 900)))
    batch = method.score(to_tensor(pictures(3, 900)))
    torch.testing.assert_close(alone.map[0], batch.map[0], rtol=1e-4, atol=1e-4)


def discs(numbers, off_centre=4.0, shift=(0, 0), side=64):
    """(N, 64, 64, 3): discs with three sectors, each up to `off_centre` pixels from the centre; and where (N, 2)."""
    rows, columns = np.mgrid[:side, :side]
    images, places = [], []
    for number in numbers:
        random = np.random.default_rng(number)
        down, across = random.uniform(-off_centre, off_centre, 2) + shift
        y, x = rows - side / 2 - down, columns - side / 2 - across
        sectors = np.stack([200 + 0 * x, 120 + 60 * np.sin(3 * np.arctan2(y, x)), 90 + 0 * x], axis=-1)
        inside = 1 / (1 + np.exp(np.hypot(y, x) - 0.28 * side))[..., None]
        images.append(40 + (sectors - 40) * inside + random.normal(0, 4, (side, side, 3)))
        places.append((across, down))
    return np.stack(images).clip(0, 255).astype(np.uint8), np.array(places)


@pytest.mark.slow
def test_a_shift_that_was_learned_costs_less_than_under_padim():
    """In the training images the object is up to a patch off; a centred one is then shifted by a patch (4 pixels)."""
    learned = ("method.epochs=130", "method.lr=0.02", "method.weight=10", "method.align=true")
    rises = {}
    for name, words in (("padim", ()), ("fyd", learned)):
        setup = Setup(name, overrides=(*SMALL, *words))
        method = setup.fit(setup.new(), TrainingSet("discs", discs(range(48))[0])).eval()
        centred, *shifted = (
            float(method.score(to_tensor(discs(range(1000, 1016), 0, shift)[0])).image.mean())
            for shift in ((0, 0), (0, 4), (4, 0), (0, -4), (-4, 0))
        )
        rises[name] = np.mean(shifted) / centred - 1
    images, places = discs(range(1000, 1032))
    found = method.transformers[0](to_tensor(images))[:, :, 2].detach().numpy() * 32  # pixels
    for axis in (0, 1):
        assert np.polyfit(places[:, axis], found[:, axis], 1)[0] == pytest.approx(1, abs=0.1)
    assert rises["fyd"] < rises["padim"]
