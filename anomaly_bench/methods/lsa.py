"""LSA: an autoencoder whose codes' density is estimated by an autoregressive network.

Davide Abati, Angelo Porrello, Simone Calderara, Rita Cucchiara; CVPR 2019, arXiv 1807.01653: Latent Space
Autoregression for Novelty Detection.

Each element of a code is quantised, and its class is predicted from the elements before it. The score is the negative
log-likelihood of the code plus the squared reconstruction error, each scaled by its smallest and largest value over
held-out normal images. There is no anomaly map. Network, loss and score follow the authors' code, which has no
training: optimiser, epochs and batch are ours. So are He's initial weights (2015) in the estimator: with torch's
default, hardly any gradient reaches its first layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.small_images import CodeNorm, resized
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

WIDTHS = (32, 64, 128, 256)  # channels of the stages
SLOPE = 0.01  # of the leaky ReLUs
SHRUNK = 8  # side of an image divided by that of the last stage


class LSA(nn.Module):
    """LSA with the network for CIFAR-10.

    Args:
        epochs, lr, batch: for training with Adam.
        weight: of the negative log-likelihood in the loss.
        held_out: share of the training images that choose the epoch and the scales, if the dataset holds out none.
        size: images are resized to this many pixels a side (the paper's images have 32).
        code: elements of a code.
        bins: classes that an element is quantised to.
        width: channels of the estimator's hidden layers, for each element.
        hidden: width of the fully connected layers of encoder and decoder.
        seed: for the split.
    """

    scales: Tensor  # (2, 2) smallest and largest of: negative log-likelihood, reconstruction error

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 64,
        weight: float = 1.0,
        held_out: float = 0.1,
        size: int = 32,
        code: int = 64,
        bins: int = 100,
        width: int = 32,
        hidden: int = 256,
        seed: int = 0,
    ) -> None:
        if size < 2 * SHRUNK or size % SHRUNK:
            raise UsageError(f"method.size={size}: expected a multiple of {SHRUNK} of at least {2 * SHRUNK}")
        super().__init__()
        self.epochs, self.lr, self.batch, self.weight = epochs, lr, batch, weight
        self.held_out, self.seed, self.size = held_out, seed, size
        self.code, self.bins, self.width, self.hidden = code, bins, width, hidden

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create encoder, decoder and estimator for (C, H, W) images."""
        channels, grid, hidden = shapes[0][0], self.size // SHRUNK, self.hidden
        flat, stages = WIDTHS[-1] * grid**2, list(pairwise(WIDTHS))
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, WIDTHS[0], 3, bias=False), nn.LeakyReLU(), Residual(WIDTHS[0], WIDTHS[0], 0)),
            *(Residual(inputs, outputs, -1) for inputs, outputs in stages),
            *(nn.Flatten(), nn.Linear(flat, hidden), CodeNorm(hidden), nn.LeakyReLU()),
            *(nn.Linear(hidden, self.code), nn.Sigmoid()),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(self.code, hidden), CodeNorm(hidden), nn.LeakyReLU()),
            *(nn.Linear(hidden, flat), CodeNorm(flat), nn.LeakyReLU(), nn.Unflatten(1, (WIDTHS[-1], grid, grid))),
            *(Residual(outputs, inputs, 1) for inputs, outputs in reversed(stages)),
            *(Residual(WIDTHS[0], WIDTHS[0], 0), nn.Conv2d(WIDTHS[0], channels, 1, bias=False)),
        )
        widths = (1, self.width, self.width, self.width, self.width, self.bins)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [Masked(self.code, inputs, outputs, own=bool(layers)), nn.LeakyReLU()]
        self.estimator = nn.Sequential(*layers[:-1])
        self.register_buffer("scales", torch.zeros(2, 2))

    def fit(self, normals: TrainingSet) -> None:
        """Train, keep the epoch with the lowest loss on held-out images, and scale by these.

        Raises:
            ValueError: fewer than two images and none held out by the dataset, or the loss is not finite.
        """
        trained, held_out = normals.hold_out(self.held_out, self.seed)
        images, others = self.prepared(trained), self.prepared(held_out)
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(images), self.batch):
                epoch.step(self.weigh(*self.terms(images[numbers.to(images.device)])).mean())
            loop.keep_best(float(self.weigh(*self.held_out_terms(others)).mean()), self)
        loop.load_best(self)
        terms = torch.stack(self.held_out_terms(others))
        self.scales.copy_(torch.stack([terms.amin(dim=1), terms.amax(dim=1)], dim=1))
        with torch.no_grad():
            loop.spread = output_spread(self.decoder(self.encoder(others[: self.batch])), others[: self.batch])
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Sum of negative log-likelihood and reconstruction error, each in units of its range on held-out images.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        terms = torch.stack(self.terms(resized(images, (self.size, self.size))))
        low, high = self.scales[:, :1], self.scales[:, 1:]
        return Scores(((terms - low) / (high - low).clamp(min=1e-6)).sum(dim=0), None)

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihoods (B,) of the codes, and squared reconstruction errors (B,), summed over pixels.

        The quantised codes are targets without gradients, but gradients reach the encoder through the estimator.
        """
        codes = self.encoder(images)
        errors: Tensor = (self.decoder(codes) - images).square().sum(dim=(1, 2, 3))
        targets = (codes.detach() * self.bins).long().clamp(max=self.bins - 1)  # (B, D)
        logits = self.estimator(codes[..., None]).transpose(1, 2)  # (B, bins, D)
        return F.cross_entropy(logits, targets, reduction="none").sum(dim=1), errors

    def weigh(self, surprises: Tensor, errors: Tensor) -> Tensor:
        """(B,) twice -> (B,) losses."""
        return errors + self.weight * surprises

    @torch.no_grad()
    def held_out_terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`terms` of all images, in evaluation mode."""
        training = self.training
        self.eval()
        parts = [self.terms(batch) for batch in torch.split(images, self.batch)]
        self.train(training)
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def prepared(self, normals: TrainingSet) -> Tensor:
        """(N, C, size, size), all images."""
        return torch.cat([resized(images, (self.size, self.size)) for images in normals.images(self.batch)])


class Masked(nn.Module):
    """A linear layer over a sequence, whose outputs see only earlier elements (equation 6).

    Args:
        length: elements of the sequence.
        inputs, outputs: channels per element.
        own: whether an output sees its own element too (the authors' mask B), as it may after the first layer.
    """

    mask: Tensor  # (length * outputs, length * inputs)

    def __init__(self, length: int, inputs: int, outputs: int, own: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.linear = nn.Linear(length * inputs, length * outputs)
        nn.init.kaiming_normal_(self.linear.weight, SLOPE)
        nn.init.zeros_(self.linear.bias)
        sees = torch.ones(length, length).tril(0 if own else -1)
        mask = sees.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, elements: Tensor) -> Tensor:
        """(B, length, inputs) -> (B, length, outputs)."""
        found = F.linear(elements.flatten(1), self.linear.weight * self.mask, self.linear.bias)
        return found.view(found.shape[0], -1, self.outputs)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, with batch normalisation.

    Args:
        inputs, outputs: channels.
        change: -1 halves the sides (rounding up), 1 doubles them, 0 keeps them and the input as the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, change: int) -> None:
        super().__init__()
        first: nn.Module = nn.Conv2d(inputs, outputs, 3, 2 if change else 1, padding=1, bias=False)
        across: list[nn.Module] = []
        if change < 0:
            across = [nn.Conv2d(inputs, outputs, 1, 2, bias=False)]
        if change > 0:
            first = nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1, bias=False)
            across = [nn.ConvTranspose2d(inputs, outputs, 1, 2, output_padding=1, bias=False)]
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.branch = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.LeakyReLU(), second, nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(*across, nn.BatchNorm2d(outputs)) if across else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        return F.leaky_relu(self.branch(images) + self.shortcut(images))
