"""f-AnoGAN: the difference between an image and what a generator of normal images makes of its code.

Thomas Schlegl, Philipp Seeböck, Sebastian M. Waldstein, Georg Langs, Ursula Schmidt-Erfurth: f-AnoGAN: Fast
Unsupervised Anomaly Detection with Generative Adversarial Networks; Medical Image Analysis 2019.

A generator and a critic of residual blocks are trained first (WGAN-GP), then an encoder that maps images to the
generator's noise, so that nothing has to be searched for. The score adds the errors of pixels and of critic features.

Networks, initial weights, losses and optimisers (`components.gan`) follow the authors' code. There, one of twelve
encoders was picked by hand; here the last one counts. Training views and whole images of 64 pixels are ours: the code
is for patches of retinal scans. The code makes no maps; ours are absolute differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import view
from anomaly_bench.components.gan import check_phases, errors, optimisers, train_on
from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

STRIDE = 16  # of the networks
Norm = Callable[[int], nn.Module]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class FAnoGAN(nn.Module):
    """f-AnoGAN on whole images of `size` pixels.

    Args:
        epochs, batch: of the whole training.
        lr: of Adam, for generator and critic.
        encoder_lr: of RMSProp, for the encoder.
        samples: random views of the training images per epoch.
        size: of the networks' square images, in pixels, to which images are resized.
        latent: elements of the noise.
        width: channels of the outermost layers.
        adversarial: share of the training for generator and critic; the rest is for the encoder.
        judged: steps of the critic for each step of the generator.
        penalty: weight of the gradient's penalty in the critic's loss.
        weight: of the features, in the encoder's loss and in the score.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        encoder_lr: float = 5e-5,
        batch: int = 64,
        samples: int = 10000,
        size: int = 64,
        latent: int = 128,
        width: int = 64,
        adversarial: float = 0.24,
        judged: int = 5,
        penalty: float = 10.0,
        weight: float = 1.0,
    ) -> None:
        if size < 2 * STRIDE or size % STRIDE:
            raise UsageError(f"method.size={size}: expected a multiple of {STRIDE} of at least {2 * STRIDE}")
        check_phases(adversarial, judged)
        super().__init__()
        self.epochs, self.lr, self.encoder_lr, self.batch, self.samples = epochs, lr, encoder_lr, batch, samples
        self.size, self.latent, self.width, self.adversarial = size, latent, width, adversarial
        self.judged, self.penalty, self.weight = judged, penalty, weight

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create generator, critic and encoder for images of C channels."""
        channels = shapes[0][0]
        self.generator = generator(self.latent, self.size, channels, self.width)
        self.critic = trunk(channels, self.size, self.width, layer_norm, 1)
        self.encoder = trunk(channels, self.size, self.width, batch_norm, self.latent).append(nn.Tanh())
        for name in ("4.second.bias", "4.shortcut.bias", "6.bias"):  # cancel out of all losses
            self.critic.get_parameter(name).requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train generator and critic, then the encoder, on `samples` random views of the images per epoch.

        Raises:
            ValueError: the loss is not finite.
        """
        loop = Loop(self, optimisers(self), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.samples, whole=True):
                train_on(self, self.prepared(view(normals.select(numbers), False)), epoch)
        with torch.no_grad():
            images = self.prepared(normals.select(torch.arange(min(self.batch, len(normals)))))
            loop.spread = output_spread(self.generator(self.encoder(images)), images)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The errors of pixels and features; the map is the mean absolute difference of the channels.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        shown = self.prepared(images)
        made = self.generator(self.encoder(shown))
        maps = (shown - made).abs().mean(dim=1, keepdim=True)
        return Scores(errors(self, shown, made), F.interpolate(maps, images.shape[2:], mode="bilinear")[:, 0])

    def prepared(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, size, size) in [-1, 1]."""
        return 2 * resized(images, (self.size, self.size)) - 1


class Residual(nn.Module):
    """A block with norms before its convolutions, (B, inputs, h, w) -> (B, outputs, 2h, 2w) or (B, outputs, h/2, w/2).

    Args:
        norm: makes a norm for a number of channels.
        grows: nearest pixels are doubled before the first convolution; else 2 x 2 are averaged after the second.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm, grows: bool) -> None:
        super().__init__()
        middle = outputs if grows else inputs
        self.grows, self.first_norm, self.second_norm = grows, norm(inputs), norm(middle)
        self.first = started(nn.Conv2d(inputs, middle, 3, padding=1, bias=False), math.sqrt(2))
        self.second = started(nn.Conv2d(middle, outputs, 3, padding=1), math.sqrt(2))
        self.shortcut = started(nn.Conv2d(inputs, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(images))
        if self.grows:
            inner, images = F.interpolate(inner, scale_factor=2), F.interpolate(images, scale_factor=2)
        inner = self.second(F.relu(self.second_norm(self.first(inner))))
        if not self.grows:
            inner, images = F.avg_pool2d(inner, 2), F.avg_pool2d(images, 2)
        shortcut: Tensor = self.shortcut(images)
        return inner + shortcut


def generator(latent: int, side: int, channels: int, width: int) -> nn.Sequential:
    """(B, latent) -> (B, channels, side, side) in [-1, 1]."""
    grid, widest = side // STRIDE, 8 * width
    layers: list[nn.Module] = [started(nn.Linear(latent, widest * grid**2)), nn.Unflatten(1, (widest, grid, grid))]
    for inputs, outputs in ((8, 8), (8, 4), (4, 2), (2, 1)):
        layers.append(Residual(inputs * width, outputs * width, batch_norm, grows=True))
    last = started(nn.Conv2d(width, channels, 3, padding=1), math.sqrt(2))
    return nn.Sequential(*layers, batch_norm(width), nn.ReLU(), last, nn.Tanh())


def trunk(channels: int, side: int, width: int, norm: Norm, outputs: int) -> nn.Sequential:
    """(B, channels, side, side) -> (B, outputs): a critic, or an encoder; all but the last layer are its features."""
    layers: list[nn.Module] = [started(nn.Conv2d(channels, width, 3, padding=1))]
    for inputs, wider in ((1, 2), (2, 4), (4, 8), (8, 8)):
        layers.append(Residual(inputs * width, wider * width, norm, grows=False))
    return nn.Sequential(*layers, nn.Flatten(), started(nn.Linear(8 * width * (side // STRIDE) ** 2, outputs)))


def started(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer with Glorot's uniform weights times `gain`, and biases of zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def layer_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)  # over all values of an image
