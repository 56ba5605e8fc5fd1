"""VEVAE, also expVAE: where a variational autoencoder's code attends to in an image.

Wenqian Liu, Runze Li, Meng Zheng, Srikrishna Karanam, Ziyan Wu, Bir Bhanu, Richard Radke, Octavia Camps: Towards
Visually Explaining Variational Autoencoders; CVPR 2020, arXiv 1911.07389.

The sum of the code's means is explained by the outputs of one convolution (Grad-CAM): the gradient's mean over all
positions weighs each channel. The absolute value of the weighted sum is the anomaly map.

The authors published code for MNIST only, from which the loss, the map and the absolute value are. The network is that
of a public reproduction for MVTec AD: ResNet-18 with a first convolution of 3 x 3 and no pooling, and a decoder of
transposed convolutions. The authors divide the gradient by its size over the whole batch; here each image is divided
by its own, so that its map does not depend on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import view
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.components.variational import Heads, Residual, divergence, encoder, sample
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

STRIDE = 64  # pixels between the cells of the decoder's first grid
STAGE = 4  # place in the encoder of ResNet's second stage, whose second block is explained
SMALL = 1e-5  # added to the size of a gradient
TURN = 10.0  # degrees: largest rotation of training views


class VEVAE(nn.Module):
    """A variational autoencoder with a code of one cell, explained at the second stage.

    Args:
        epochs, lr, batch: for training with Adam.
        latent: elements of the code.
        width: channels of the first layer.
    """

    def __init__(self, epochs: int, lr: float = 1e-4, batch: int = 8, latent: int = 32, width: int = 64) -> None:
        super().__init__()
        self.epochs, self.lr, self.batch, self.latent, self.width = epochs, lr, batch, latent, width

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (C, H, W) images.

        Raises:
            UsageError: sides that are not multiples of 64.
        """
        channels, *size = shapes[0]
        check_sides("VEVAE", size, STRIDE)
        layers = list(encoder(channels, self.width, kernel=3, pool=False))
        stage = layers[STAGE]
        assert isinstance(stage, nn.Sequential)
        block = stage[1]
        assert isinstance(block, Residual)
        self.before, self.block = nn.Sequential(*layers[:STAGE], stage[0]), block
        self.after, self.heads = nn.Sequential(*layers[STAGE + 1 :]), Heads(8 * self.width, self.latent)
        self.decoder = decoder(self.latent, channels, (size[0] // STRIDE, size[1] // STRIDE), self.width)

    def fit(self, normals: TrainingSet) -> None:
        """Train on mirrored and rotated views of the images.

        Raises:
            ValueError: the loss is not finite.
        """
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                views = mirrored(view(normals.select(numbers), False, TURN, 0.0))
                means, log_variances = self.code(self.block(self.before(views)))
                logits = self.decoder(sample(means, log_variances))
                epoch.step(losses(logits, views, means, log_variances).mean())
        with torch.no_grad():
            images = normals.select(torch.arange(min(self.batch, len(normals))))
            outputs = self.decoder(self.code(self.block(self.before(images)))[0]).sigmoid()
            loop.spread = output_spread(outputs, images)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is the upsampled attention's absolute value, the image score its maximum.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        # one by one: rounding differs between batch sizes, and a ReLU that flips changes the gradient by far more
        attention = torch.stack([self.attention(image[None]) for image in images])
        maps = F.interpolate(attention, images.shape[2:], mode="bilinear")[:, 0].abs()
        return Scores(maps.amax(dim=(1, 2)), maps)

    def attention(self, images: Tensor) -> Tensor:
        """(B, h, w): the outputs of the explained convolution, weighted by the mean of the normalised gradient."""
        inputs = self.before(images)
        outputs: Tensor = self.block.layers[0](inputs)
        slopes = self.slopes(outputs, inputs)
        slopes = slopes / (slopes.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + SMALL)
        return (slopes.mean(dim=(2, 3), keepdim=True) * outputs).sum(dim=1)

    def slopes(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """The gradient of the sum of the code's means.

        Args:
            outputs: of the explained convolution, (B, C, h, w), with respect to which the gradient is taken.
            inputs: of its block, for the shortcut.
        """
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            maps = F.relu(self.block.layers[1:](outputs) + self.block.shortcut(inputs))
            (slopes,) = torch.autograd.grad(self.code(maps)[0].sum(), outputs)
        return slopes

    def code(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the explained block -> means and logarithms of variances, (B, latent, 1, 1) each."""
        code: tuple[Tensor, Tensor] = self.heads(self.after(maps).mean(dim=(2, 3), keepdim=True))
        return code


def decoder(latent: int, channels: int, grid: tuple[int, int], width: int) -> nn.Sequential:
    """(B, latent, 1, 1) -> logits (B, C, 64 h, 64 w), from a first grid of h x w cells."""
    widest = 16 * width
    layers = [nn.Flatten(), nn.Linear(latent, widest), nn.ReLU(), nn.Linear(widest, widest * grid[0] * grid[1])]
    layers += [nn.ReLU(), nn.Unflatten(1, (widest, *grid))]
    for inputs in (16 * width, 8 * width, 4 * width, 2 * width, width):
        layers.append(nn.ConvTranspose2d(inputs, inputs // 2, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(inputs // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width // 2, channels, 4, stride=2, padding=1))


def losses(logits: Tensor, images: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """(B,) cross-entropies of all pixels plus the divergences, both summed."""
    entropies = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return entropies.sum(dim=(1, 2, 3)) + divergence(means, log_variances)


def mirrored(images: Tensor) -> Tensor:
    """(B, C, H, W), about half of them mirrored, drawn from torch's global generator."""
    chosen = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
    return torch.where(chosen, images.flip(3), images)
