"""AnoGAN: its networks counted, its training and search against slow versions, and that images are independent."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.training import Loop
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import anogan
from anomaly_bench.methods.anogan import AnoGAN, critic, generator, uniform
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

IMAGES = to_tensor(pictures(3, 500, side=32))


def built(**settings):
    torch.manual_seed(0)
    method = AnoGAN(**{"epochs": 1, "size": 32, "width": 2, "latent": 5, "batch": 8, "samples": 8, **settings})
    method.build([(3, 32, 32)])
    return method


@pytest.mark.parametrize(
    ("size", "latent", "made", "judged"),
    [(128, 64, 6_437_891, 4_341_121), (64, 100, 5_135_363, 4_316_545)],
)
def test_parameters_of_the_networks(size, latent, made, judged):
    with torch.device("meta"):
        method = AnoGAN(epochs=1, size=size, latent=latent)
        method.build([(3, 256, 256)])
        outputs = method.generator(torch.empty(2, latent))
        assert outputs.shape == (2, 3, size, size)
        assert method.features(outputs).shape == (2, 512, size // 16, size // 16)
        assert method.critic(outputs).shape == (2, 1)
    assert sum(value.numel() for value in method.generator.parameters()) == made
    assert sum(value.numel() for value in method.critic.parameters()) == judged


def test_sizes_that_halving_does_not_lead_to_the_grid():
    for size in (16, 40):
        with pytest.raises(UsageError, match=rf"method.size={size}: expected a multiple of 16 of at least 32"):
            AnoGAN(epochs=1, size=size)


def test_initial_weights():
    made = nn.Sequential(generator(16, 64, 3, 16), critic(3, 64, 16)).apply(anogan.initialise)
    for layer in made.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            assert not layer.bias.any()
            cut = isinstance(layer, nn.Conv2d)
            assert layer.weight.std().item() == pytest.approx(0.0176 if cut else 0.02, rel=0.1)
            assert (layer.weight.abs().max() <= 0.04) == cut


def slow_step(makes, judges, images, optimisers):
    """One step of the discriminator, two of the generator; cross-entropies from probabilities."""
    noise = uniform(len(images), 5).double()
    optimisers[0].zero_grad()
    judged = -judges(images).sigmoid().log().mean() - (1 - judges(makes(noise)).sigmoid()).log().mean()
    judged.backward()
    optimisers[0].step()
    for _ in range(2):
        optimisers[1].zero_grad()
        (-judges(makes(noise)).sigmoid().log().mean()).backward()
        optimisers[1].step()


def test_steps_follow_a_slow_version():
    method = built().double()
    makes, judges = copy.deepcopy(method.generator), copy.deepcopy(method.critic)
    ours, theirs = (
        [torch.optim.Adam(network.parameters(), 0.01, (0.5, 0.999)) for network in pair]
        for pair in ((method.critic, method.generator), (judges, makes))
    )
    epoch = next(iter(Loop(method, ours, TrainingSet("cog", pictures(8, side=32)), 1)))
    for number in range(3):
        images = method.prepared(to_tensor(pictures(4, 10 * number, side=32)).double())
        torch.manual_seed(number)
        method.step(images, epoch)
        torch.manual_seed(number)
        slow_step(makes, judges, images, theirs)
    expected = [*makes.named_parameters(), *judges.named_parameters()]
    found = [*method.generator.parameters(), *method.critic.parameters()]
    for one, (name, other) in zip(found, expected, strict=True):
        if not name.endswith("bias"):  # of a layer before a norm: rounding alone decides where it goes
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8, msg=name)
    assert epoch.steps == 9
    assert epoch.counted == 3, "the learning curve is that of the discriminator"


def padded(images, layer):
    """A convolution as TensorFlow pads it: one pixel before, two after."""
    return F.conv2d(F.pad(images, (1, 2, 1, 2)), layer.weight, layer.bias, stride=2)


def slow_features(network, image):
    """In training mode, with the statistics of this image."""
    image = padded(image, network[1])
    for convolution, norm in ((4, 5), (8, 9), (12, 13)):
        image = padded(F.leaky_relu(image, 0.2), network[convolution])
        affine = network[norm]
        image = F.batch_norm(image, None, None, affine.weight, affine.bias, training=True, eps=1e-5)
    return F.leaky_relu(image, 0.2)


def slow_search(method, image):
    """(1, 3, 32, 32) -> the noise, by Adam's equations."""
    noise, first, second = method.start[None].clone(), 0.0, 0.0
    for number in range(1, method.moves + 1):
        noise.requires_grad_()
        made = method.generator(noise)
        loss = 0.9 * (image - made).abs().sum()
        loss = loss + 0.1 * (slow_features(method.critic, image) - slow_features(method.critic, made)).abs().sum()
        (slope,) = torch.autograd.grad(loss, noise)
        first, second = 0.5 * first + 0.5 * slope, 0.999 * second + 0.001 * slope**2
        change = first / (1 - 0.5**number) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
        noise = noise.detach() - 0.02 * change
    return noise


def test_search_follows_a_slow_version():
    """And the map is the norm of what remains, the image score its maximum."""
    method = built(moves=8).double().eval()
    scores = method.score(IMAGES.double())
    for number in range(3):
        image = 2 * IMAGES[number : number + 1].double() - 1
        noise = slow_search(method, image)
        assert (noise - method.start).abs().max() > 0.05
        torch.testing.assert_close(method.search(image), noise, rtol=1e-6, atol=1e-9)
        expected = ((image - method.generator(noise)) ** 2).sum(dim=1).sqrt()[0].detach()
        torch.testing.assert_close(scores.map[number], expected, rtol=1e-6, atol=1e-9)
        assert scores.image[number] == scores.map[number].max()


def test_an_image_that_the_generator_makes():
    """The search starts from its noise: no loss, no move, no difference."""
    method = built(moves=5).eval()
    with torch.no_grad():
        image = method.generator(method.start[None])
        assert not method.losses(image, method.features(image), image).any()
    assert method.search(image).equal(method.start[None])
    assert method.score((image + 1) / 2).map.max() < 1e-6


def search_losses(method, images, noise):
    with torch.no_grad():
        return method.losses(images, method.features(images), method.generator(noise))


def test_each_image_is_searched_for_by_itself():
    method = built(moves=120, width=4).eval()
    images = method.prepared(IMAGES)
    found = method.search(images)
    before, after = search_losses(method, images, method.start.repeat(3, 1)), search_losses(method, images, found)
    assert (after < before).all()
    scores = method.score(IMAGES)
    for number in range(3):
        alone = method.score(IMAGES[number : number + 1])
        torch.testing.assert_close(alone.map[0], scores.map[number], rtol=0, atol=1e-4 * scores.map.max().item())


def test_textures_are_cut_into_patches():
    """Of 128 pixels side by side."""
    method, normals = built(moves=2), TrainingSet("mat", pictures(4, side=160), group="textures")
    method.build([(3, 160, 160)])
    method.fit(normals)
    assert method.facts["patches"]
    wide = torch.rand(1, 3, 128, 256)
    maps = method.eval().score(wide).map
    torch.testing.assert_close(maps[:, :, :128], method.differences(wide[..., :128]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[:, :, 128:], method.differences(wide[..., 128:]), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="images of 32 x 32 pixels; expected at least 128 x 128"):
        built().fit(TrainingSet("mat", pictures(2, side=32), group="textures"))


@pytest.mark.slow
def test_the_generator_learns():
    """What it makes is closer to new images than what it made before."""
    method, normals = built(width=8, lr=2e-3, samples=160, moves=30), TrainingSet("cog", pictures(16, side=32))
    images = method.prepared(IMAGES)
    method.eval()
    before = search_losses(method, images, method.search(images))
    method.fit(normals)
    assert (search_losses(method, images, method.search(images)) < 0.8 * before).all()
    assert method.facts["training"]["spread"] > 0.01
