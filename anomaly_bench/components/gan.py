"""Parts of generative adversarial networks.

Alec Radford, Luke Metz, Soumith Chintala: DCGAN, 2015, arXiv 1511.06434; layers as in GANomaly's code. The
discriminator of patches is that of P-Net's and SCADN's code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anomaly_bench.components.validation import check_sides


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
