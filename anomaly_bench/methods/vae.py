"""VAE: a variational autoencoder whose squared reconstruction error is the anomaly map.

As the baseline of Thomas Defard, Aleksandr Setkov, Angelique Loesch, Romaric Audigier: PaDiM, 2020, arXiv 2011.08785.

Its code was not published. From the paper are the ResNet-18 encoder, a convolutional latent code, the training views
(rotated by up to 2 degrees, cropped at random from 282 of 292 pixels), the optimiser and the map. Ours are the decoder,
which mirrors the encoder, random initial weights, the size of the code, and the loss: the negative evidence lower bound
of a Gaussian likelihood with variance 1/2.

With images of 32 pixels (CIFAR-10) the code has a single cell. Such a VAE has no anomaly map to speak of; the loss of
the image is then the usual score (`image_score: elbo`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import view
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_choice, check_fitted, check_sides
from anomaly_bench.components.variational import STRIDE, Heads, decoder, divergence, encoder, sample
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

TURN, SHIFT = 2.0, 5 / 292  # largest rotation (degrees) and shift (fraction of the side) of training views


class VAE(nn.Module):
    """A variational autoencoder on whole images.

    Args:
        epochs, lr, batch: for training with Adam.
        samples: random views of the training images per epoch.
        latent: channels of the code.
        beta: weight of the divergence in the loss.
        width: channels of the first layer.
        image_score: "max" of the map, or "elbo": the loss of the image.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 32,
        samples: int = 10000,
        latent: int = 64,
        beta: float = 1.0,
        width: int = 64,
        image_score: str = "max",
    ) -> None:
        check_choice("image_score", image_score, ("max", "elbo"))
        super().__init__()
        self.epochs, self.lr, self.batch, self.samples = epochs, lr, batch, samples
        self.latent, self.beta, self.width, self.image_score = latent, beta, width, image_score

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (C, H, W) images.

        Raises:
            UsageError: sides that are not multiples of 32.
        """
        channels, *size = shapes[0]
        check_sides("VAE", size, STRIDE)
        self.encoder, self.heads = encoder(channels, self.width), Heads(8 * self.width, self.latent)
        self.decoder = decoder(self.latent, channels, self.width)
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train on `samples` random views of the images per epoch.

        Raises:
            ValueError: the loss is not finite.
        """
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.samples):
                views = view(normals.select(numbers), False, TURN, SHIFT)
                means, log_variances = self.code(views)
                outputs = self.decoder(sample(means, log_variances))
                epoch.step(self.losses(views, outputs, means, log_variances).mean())
        with torch.no_grad():
            images = normals.select(torch.arange(min(self.batch, len(normals))))
            loop.spread = output_spread(self.decoder(self.code(images)[0]), images)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The squared error at every pixel, summed over the channels; the code is the mean, nothing is drawn.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        means, log_variances = self.code(images)
        outputs = self.decoder(means)
        maps = (outputs - images).square().sum(dim=1)
        if self.image_score == "max":
            return Scores(maps.amax(dim=(1, 2)), maps)
        return Scores(self.losses(images, outputs, means, log_variances), maps)

    def code(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> means and logarithms of variances, (B, latent, H / 32, W / 32) each."""
        code: tuple[Tensor, Tensor] = self.heads(self.encoder(images))
        return code

    def losses(self, images: Tensor, outputs: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
        """(B,) squared errors and weighted divergences, both summed over all elements."""
        errors = (outputs - images).square().sum(dim=(1, 2, 3))
        return errors + self.beta * divergence(means, log_variances)
