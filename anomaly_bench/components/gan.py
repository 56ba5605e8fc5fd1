"""Parts of generative adversarial networks.

Alec Radford, Luke Metz, Soumith Chintala: DCGAN, 2015, arXiv 1511.06434; layers as in GANomaly's code. The
discriminator of patches is that of P-Net's and SCADN's code.

Ishaan Gulrajani et al.: Improved Training of Wasserstein GANs (WGAN-GP), 2017, arXiv 1704.00028; Thomas Schlegl et al.:
f-AnoGAN, Medical Image Analysis 2019, which trains an encoder after it. Losses, optimisers and the order of the steps
are those of f-AnoGAN's code. RMSProp starts from a second moment of one, as TensorFlow's; its 1e-10 inside the root is
1e-5 outside.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Optimizer

from anomaly_bench.components.validation import check_sides
from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.components.training import Epoch

BETAS = 0.0, 0.9  # of Adam, for WGAN-GP
SLOPE = 0.2  # of the leaky ReLUs
NARROWING, GROWING = (1, 2, 4, 8, 8, 16), (1, 1, 2, 4, 8, 8)  # channels from the outermost layer inwards, over `width`


def shrinking(channels: int, side: int, outputs: int, width: int = 64) -> nn.Sequential:
    """Convolutions (B, C, side, side) -> (B, outputs, 1, 1), without biases: a discriminator or an encoder.

    Args:
        width: channels of the first layer; each further one halves the side and doubles them.

    Raises:
        UsageError: a side that halving does not lead to 4.
    """
    check_sides("the discriminator", (side, side), 8)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, padding=1, bias=False), nn.LeakyReLU(0.2)]
    side //= 2
    while side > 4:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, padding=1, bias=False), nn.BatchNorm2d(2 * width)]
        layers.append(nn.LeakyReLU(0.2))
        side, width = side // 2, 2 * width
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, side, bias=False)).apply(initialise)


class PatchCritic(nn.Module):
    """A discriminator of the patches of RGB images, with spectral norms: the layers' outputs, of which the last logits.

    Args:
        norms: whether the hidden layers have batch norms as well, as in P-Net; SCADN's have none.
        width: channels of the first layer.
    """

    def __init__(self, norms: bool, width: int = 64) -> None:
        super().__init__()
        self.layers, inputs = nn.ModuleList(), 3
        for outputs, stride in ((width, 2), (2 * width, 2), (4 * width, 2), (8 * width, 1), (1, 1)):
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=False)]
            if outputs > 1:
                layers += [*([nn.BatchNorm2d(outputs)] if norms else []), nn.LeakyReLU(0.2)]
            layer = nn.Sequential(*layers).apply(initialise)
            spectral_norm(layer[0])
            self.layers.append(layer)
            inputs = outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the outputs of five layers (B, C, h, w); the last one has a single channel."""
        outputs = [images]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]


def agree(logits: Tensor, label: int) -> Tensor:
    """() binary cross-entropy of logits with one label for all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


@contextlib.contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """No gradients for the weights of these networks: an opponent's step does not need them."""
    weights = [weight for network in networks for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def initialise(layer: nn.Module) -> None:
    """Normal initial weights of deviation 0.02, around 1 for norms."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
        nn.init.normal_(layer.weight, float(isinstance(layer, nn.BatchNorm2d)), 0.02)
        if layer.bias is not None:
            nn.init.normal_(layer.bias, 0, 0.02) if isinstance(layer, nn.Linear) else nn.init.zeros_(layer.bias)


class WGAN(Protocol):
    """What the functions below read of a method: a generator, a critic, and an encoder of images as noise.

    Attributes:
        critic: all but its last layer are its features.
        latent: elements of the noise.
        adversarial: share of the training for generator and critic; the rest is for the encoder.
        judged: steps of the critic for each step of the generator.
        penalty: weight of the gradient's penalty in the critic's loss.
        weight: of the features in the errors.
    """

    generator: nn.Sequential
    critic: nn.Sequential
    encoder: nn.Sequential
    lr: float
    encoder_lr: float
    latent: int
    adversarial: float
    judged: int
    penalty: float
    weight: float


def check_phases(adversarial: float, judged: int) -> None:
    """Raise UsageError unless there are steps for all networks."""
    if not 0 < adversarial < 1:
        raise UsageError(f"method.adversarial={adversarial}: expected a share between 0 and 1, such as 0.24")
    if judged < 1:
        raise UsageError(f"method.judged={judged}: expected at least 1 step of the critic for each of the generator")


def optimisers(gan: WGAN) -> list[Optimizer]:
    """Adam for the critic and for the generator, RMSProp for the encoder."""
    judges, generates = (
        torch.optim.Adam(network.parameters(), gan.lr, BETAS, fused=True) for network in (gan.critic, gan.generator)
    )
    return [judges, generates, rms_prop(gan.encoder, gan.encoder_lr)]


def rms_prop(network: nn.Module, lr: float) -> torch.optim.RMSprop:
    """RMSProp as TensorFlow starts it."""
    optimiser = torch.optim.RMSprop(network.parameters(), lr, alpha=0.9, eps=1e-5)
    for weight in network.parameters():
        optimiser.state[weight] = {"step": torch.zeros(()), "square_avg": torch.ones_like(weight)}
    return optimiser


def train_on(gan: WGAN, images: Tensor, epoch: Epoch) -> None:
    """The steps with one batch (B, C, ...), by the phase of the training; the loop has the three `optimisers`."""
    step = compete if epoch.progress < gan.adversarial else encode
    step(gan, images, epoch)


def compete(gan: WGAN, images: Tensor, epoch: Epoch) -> None:
    """One step of the critic; with five `judged`, before the sixth, the eleventh, and so on, one of the generator."""
    judges, generates, _ = epoch.loop.optimisers
    gan.generator.train()
    number = epoch.number * epoch.planned + epoch.drawn
    if number and number % gan.judged == 0:
        with frozen(gan.critic):
            epoch.step(-gan.critic(gan.generator(noise(gan, images))).mean(), generates, curve=False)
    with torch.no_grad(), kept_statistics(gan.generator):
        made = gan.generator(noise(gan, images))
    epoch.step(critic_loss(gan, images, made), judges)


def critic_loss(gan: WGAN, images: Tensor, made: Tensor) -> Tensor:
    """() of WGAN-GP: what is made is to be rated low, images high, with gradients of norm 1 in between."""
    share = torch.rand(len(images), *[1] * (images.dim() - 1)).to(images)
    between = (images + share * (made - images)).requires_grad_()
    (slopes,) = torch.autograd.grad(gan.critic(between).sum(), between, create_graph=True)
    penalty = (slopes.flatten(1).norm(dim=1) - 1).square().mean()
    loss: Tensor = gan.critic(made).mean() - gan.critic(images).mean() + gan.penalty * penalty
    return loss


def encode(gan: WGAN, images: Tensor, epoch: Epoch) -> None:
    """One step of the encoder; generator and critic stay as they are."""
    with frozen(gan.generator.eval(), gan.critic):
        epoch.step(errors(gan, images, gan.generator(gan.encoder(images))).mean(), epoch.loop.optimisers[2])


def errors(gan: WGAN, images: Tensor, made: Tensor) -> Tensor:
    """(B,) mean squared differences of all values, and, weighted, those of the critic's features."""
    features: Tensor = gan.critic[:-1](images) - gan.critic[:-1](made)
    values = (images - made).square().mean(dim=tuple(range(1, images.dim())))
    return values + gan.weight * features.square().mean(dim=1)


def noise(gan: WGAN, images: Tensor) -> Tensor:
    """(B, latent) from the normal distribution, drawn on the CPU, so that all devices train alike."""
    return torch.randn(len(images), gan.latent).to(images)


@contextlib.contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms that leave their running statistics as they are."""
    norms = [layer for layer in network.modules() if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def wgan(axes: int, channels: int, side: int, width: int, latent: int) -> tuple[nn.Sequential, ...]:
    """Generator, critic and encoder of images (B, channels, side, side), or with three sides, which all lead to 4.

    As in f-AnoGAN, generator and encoder have batch norms, and the critic layer norms. The generator's values have any
    range. The critic starts as a constant; its last layer needs no bias, which would cancel out of all losses.

    Args:
        axes: 2 or 3 sides.
        side: a power of two of at least 8.
        width: channels of the outermost layers.
        latent: elements of the noise.
    """
    conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if axes == 2 else nn.Conv3d
    norm: type[nn.BatchNorm2d | nn.BatchNorm3d] = nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
    stages = range((side // 4).bit_length() - 1)
    narrowing, growing = ([width * known[min(stage, 5)] for stage in stages] for known in (NARROWING, GROWING))
    start = (narrowing[-1], *[4] * axes)
    features = math.prod(start)
    made: list[nn.Module] = [nn.Linear(latent, features), nn.Unflatten(1, start)]
    for inputs, outputs in pairwise([narrowing[-1], *reversed(growing)]):
        made += [nn.Upsample(scale_factor=2), conv(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU()]
    generator = nn.Sequential(*made, conv(width, channels, 3, padding=1))
    judging: list[nn.Module] = []
    encoding: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *narrowing]):
        for layers, normed in ((judging, nn.GroupNorm(1, outputs)), (encoding, norm(outputs))):
            layers += [conv(inputs, outputs, 4, 2, padding=1, bias=False), normed, nn.LeakyReLU(SLOPE)]
    critic = nn.Sequential(*judging, nn.Flatten(), nn.Linear(features, 1, bias=False))
    encoder = nn.Sequential(*encoding, nn.Flatten(), nn.Linear(features, latent), nn.Tanh())
    for layer in (*generator, *critic, *encoder):
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, 1.0 if isinstance(layer, nn.Linear) else SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.zeros_(critic[-1].get_parameter("weight"))
    return generator, critic, encoder
