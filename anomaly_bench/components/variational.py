"""Parts of variational autoencoders: their loss, ResNet-18 as the encoder, and its mirror image as the decoder.

Diederik Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Kaiming He et al.: Deep Residual
Learning for Image Recognition, 2015, arXiv 1512.03385. The decoder is ours: nearest pixels are doubled before a
convolution where the encoder has a stride.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 32  # pixels between the cells of ResNet-18's last grid


def divergence(means: Tensor, log_variances: Tensor) -> Tensor:
    """(B,) Kullback-Leibler divergences of N(mean, variance) from N(0, 1), summed over all elements of a code."""
    return 0.5 * (means.square() + log_variances.exp() - log_variances - 1).flatten(1).sum(dim=1)


def sample(means: Tensor, log_variances: Tensor) -> Tensor:
    """Codes drawn from N(mean, variance) with torch's global generator."""
    return means + torch.randn_like(means) * (0.5 * log_variances).exp()


class Heads(nn.Module):
    """Features (B, C, h, w) -> means and logarithms of variances, (B, latent, h, w) each."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Conv2d(channels, latent, 1), nn.Conv2d(channels, latent, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See above."""
        return self.mean(features), self.log_variance(features)


class Residual(nn.Module):
    """Layers beside a shortcut, then a ReLU."""

    def __init__(self, layers: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut = layers, shortcut

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        return F.relu(self.layers(maps) + self.shortcut(maps))


def encoder(channels: int, width: int = 64, kernel: int = 7, pool: bool = True) -> nn.Sequential:
    """ResNet-18 up to its last grid, (B, C, H, W) -> (B, 8 width, h, w), with torchvision's initial weights.

    Args:
        channels: of the images.
        width: channels of the first layer.
        kernel: side of the first convolution, of stride 2.
        pool: whether a maximum pooling of stride 2 follows it.
    """
    first = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=2, padding=1)] if pool else []
    layers.append(nn.Sequential(halving(width, width), halving(width, width)))
    for inputs in (width, 2 * width, 4 * width):
        layers.append(nn.Sequential(halving(inputs, 2 * inputs), halving(2 * inputs, 2 * inputs)))
    network = nn.Sequential(*layers)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def decoder(latent: int, channels: int, width: int = 64) -> nn.Sequential:
    """The mirror image of `encoder`, (B, latent, h, w) -> (B, C, 32 h, 32 w) in [0, 1]."""
    layers: list[nn.Module] = [nn.Conv2d(latent, 8 * width, 1)]
    for inputs in (8 * width, 4 * width, 2 * width):
        layers += [doubling(inputs, inputs), doubling(inputs, inputs // 2)]
    layers += [doubling(width, width), doubling(width, width)]
    layers += [nn.Upsample(scale_factor=2), *convolution(width, width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())


def halving(inputs: int, outputs: int) -> Residual:
    """ResNet's basic block; with more outputs than inputs, on a grid of half the side."""
    stride = 1 if inputs == outputs else 2
    layers = [*convolution(inputs, outputs, 3, stride), nn.ReLU(), *convolution(outputs, outputs, 3)]
    shortcut = nn.Identity() if stride == 1 else nn.Sequential(*convolution(inputs, outputs, 1, stride))
    return Residual(nn.Sequential(*layers), shortcut)


def doubling(inputs: int, outputs: int) -> Residual:
    """The same in reverse; with fewer outputs than inputs, on a grid of twice the side."""
    up: list[nn.Module] = [] if inputs == outputs else [nn.Upsample(scale_factor=2)]
    layers = [*convolution(inputs, inputs, 3), nn.ReLU(), *up, *convolution(inputs, outputs, 3)]
    return Residual(
        nn.Sequential(*layers), nn.Sequential(*up, *convolution(inputs, outputs, 1)) if up else nn.Identity()
    )


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the grid or, of stride 2, halves it; with batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]
