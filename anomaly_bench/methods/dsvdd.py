"""Deep SVDD: a network whose outputs for normal images lie close to a fixed centre.

Lukas Ruff, Robert Vandermeulen, Nico Goernitz, Lucas Deecke, Shoaib Ahmed Siddiqui, Alexander Binder, Emmanuel Mueller,
Marius Kloft; ICML 2018: Deep One-Class Classification. Here the one-class objective (equation 4).

As in the authors' PyTorch code, images are normalised in contrast and scaled by the smallest and largest training
value. The network is pretrained as the encoder of an autoencoder, whose decoder is then dropped; the centre is the mean
output. The network has no biases and no learnt scales, with which it could map all images to the centre. The script of
their older Theano code pretrains nothing on CIFAR-10. The score is the squared distance to the centre; there is no map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.small_images import CodeNorm, contrast_normalised, resized
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

WIDTHS = (32, 64, 128)  # channels of the convolutions
SHRUNK = 2 ** len(WIDTHS)  # side of an image divided by that of the last grid
SLOPE = 0.01  # of the leaky ReLUs
EPS = 1e-4  # of the norms


class DSVDD(nn.Module):
    """Deep SVDD with the network for CIFAR-10.

    Args:
        epochs: in total, of which the share `pretraining` trains the autoencoder.
        drops: shares of the training after which the learning rate is a tenth until the end of that part.
        lr, weight_decay, batch: for training with Adam.
        size: images are resized to this many pixels a side (the paper's images have 32).
        outputs: dimensions of the output.
        least: absolute value below which no entry of the centre lies, as such entries are easily matched.
    """

    low: Tensor  # () smallest and
    span: Tensor  # () largest minus smallest value of the normalised training images
    centre: Tensor  # (D,)

    def __init__(
        self,
        epochs: int,
        pretraining: float = 0.7,
        drops: Sequence[float] = (0.5, 0.8),
        lr: float = 1e-4,
        weight_decay: float = 5e-7,
        batch: int = 200,
        size: int = 32,
        outputs: int = 128,
        least: float = 0.1,
    ) -> None:
        grid = size // SHRUNK
        if size < SHRUNK or size % SHRUNK or outputs % grid**2:
            raise UsageError(
                f"method.size={size}, method.outputs={outputs}: expected a size that is a multiple of {SHRUNK}, and "
                f"outputs a multiple of (size / {SHRUNK})^2"
            )
        if not 0 <= pretraining < 1:
            raise UsageError(f"method.pretraining={pretraining}: expected a share of at least 0 and below 1")
        super().__init__()
        self.epochs, self.pretraining, self.drops = epochs, pretraining, drops
        self.lr, self.weight_decay, self.batch = lr, weight_decay, batch
        self.size, self.outputs, self.least = size, outputs, least

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (C, H, W) images."""
        self.channels = shapes[0][0]
        layers: list[nn.Module] = []
        for inputs, outputs in zip((self.channels, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
            initialise(convolution)
            norm = nn.BatchNorm2d(outputs, EPS, affine=False)
            layers += [convolution, norm, nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)]
        flat = WIDTHS[-1] * (self.size // SHRUNK) ** 2
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.outputs, bias=False))
        for name, shape in {"low": (), "span": (), "centre": (self.outputs,)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, normals: TrainingSet) -> None:
        """Pretrain the autoencoder, set the centre, and train the network.

        Raises:
            ValueError: the loss is not finite.
        """
        images = self.prepared(normals)
        decoder = Decoder(self.outputs, self.size // SHRUNK, self.channels).to(self.centre)
        reconstruct = self.adam([*self.network.parameters(), *decoder.parameters()])
        contract = self.adam(self.network.parameters())
        loop = Loop(nn.ModuleList([self, decoder]), [reconstruct, contract], normals, self.epochs)
        loop.memo["centred"] = False
        for epoch in loop:
            for numbers in epoch.batches(len(images), self.batch):
                batch = images[numbers.to(images.device)]
                if epoch.progress < self.pretraining:
                    self.set_rate(reconstruct, epoch.progress >= self.drops[0])
                    errors = (decoder(self.network(batch)) - batch).square()
                    epoch.step(errors.sum(dim=(1, 2, 3)).mean(), reconstruct)
                    continue
                if not loop.memo["centred"]:
                    self.set_centre(images)
                    loop.memo["centred"] = True
                self.set_rate(contract, epoch.progress >= self.drops[1])
                epoch.step(self.distances(batch).mean(), contract)
        if not loop.memo["centred"]:  # a budget that ends with the pretraining
            self.set_centre(images)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Squared distances to the centre.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        return Scores(self.distances(self.scaled(self.contrast(images))), None)

    def distances(self, images: Tensor) -> Tensor:
        """(B, C, size, size) normalised images -> (B,) squared distances of their outputs to the centre."""
        outputs: Tensor = self.network(images)
        return (outputs - self.centre).square().sum(dim=1)

    def prepared(self, normals: TrainingSet) -> Tensor:
        """(N, C, size, size) normalised training images; sets their smallest and largest value."""
        images = torch.cat([self.contrast(batch) for batch in normals.images(self.batch)])
        self.low.copy_(images.min())
        self.span.copy_((images.max() - images.min()).clamp(min=1e-12))
        return self.scaled(images)

    def contrast(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size), normalised in contrast, each image by itself."""
        images = resized(images, (self.size, self.size)).to(self.low.dtype)
        return contrast_normalised(images.flatten(1)).view_as(images)

    def scaled(self, images: Tensor) -> Tensor:
        """Training images to [0, 1]."""
        return (images - self.low) / self.span

    @torch.no_grad()
    def set_centre(self, images: Tensor) -> None:
        """The mean output of the network in evaluation mode, with no entry close to zero."""
        self.network.eval()
        outputs = [self.network(batch) for batch in torch.split(images, self.batch)]
        centre = torch.cat(outputs).mean(dim=0)
        self.network.train()
        self.centre.copy_(torch.where(centre.abs() < self.least, self.least * centre.sign(), centre))

    def adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay, fused=True)

    def set_rate(self, optimiser: torch.optim.Adam, late: bool) -> None:
        optimiser.param_groups[0]["lr"] = self.lr * (0.1 if late else 1)


class Decoder(nn.Module):
    """(B, outputs) -> (B, C, side, side) in [0, 1]: mirrors the network, with norms without learnt scales."""

    def __init__(self, outputs: int, grid: int, channels: int) -> None:
        super().__init__()
        first = outputs // grid**2
        self.norm, self.start = CodeNorm(outputs, EPS, affine=False), nn.Unflatten(1, (first, grid, grid))
        layers: list[nn.Module] = []
        for inputs, width in zip((first, *WIDTHS[::-1]), (*WIDTHS[::-1], channels), strict=True):
            layers.append(nn.ConvTranspose2d(inputs, width, 5, padding=2, bias=False))
            initialise(layers[-1])
            layers += [nn.BatchNorm2d(width, EPS, affine=False), nn.LeakyReLU(SLOPE), nn.Upsample(scale_factor=2)]
        self.layers = nn.Sequential(*layers[:-3], nn.Sigmoid())

    def forward(self, codes: Tensor) -> Tensor:
        """(B, outputs) -> (B, C, side, side)."""
        images: Tensor = self.layers(F.leaky_relu(self.start(self.norm(codes)), SLOPE))
        return images


def initialise(layer: nn.Module) -> None:
    """Glorot's uniform initial weights, as in the authors' code."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain("leaky_relu", SLOPE))
