"""Depth GAN: f-AnoGAN on depth images; the map is how far each pixel is from what the generator makes of its code.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection
and Localization, VISAPP 2022, arXiv 2112.09045. Generator and critic, then an encoder, on 20 turned views of each scan,
of depth alone or with colours where the dataset has them. No code is published, and the paper's layers and settings are
not known: ours are the networks, and the steps and optimisers are those of f-AnoGAN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.gan import check_phases, optimisers, train_on, wgan
from anomaly_bench.components.scans import Views, check_planes, largest_depth, scale_depth, turn_images
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class DepthGAN(nn.Module):
    """Depth GAN.

    Args:
        epochs, batch: of the whole training, over all views.
        lr: of Adam, for generator and critic.
        encoder_lr: of RMSProp, for the encoder.
        latent: elements of the noise.
        width: channels of the outermost layers.
        adversarial: share of the training for generator and critic; the rest is for the encoder.
        judged: steps of the critic for each step of the generator.
        penalty: weight of the gradient's penalty in the critic's loss.
        weight: of the critic's features in the encoder's loss.
        views: turned views of each training scan, itself included.
    """

    largest: Tensor  # () metres

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        encoder_lr: float = 5e-5,
        batch: int = 64,
        latent: int = 128,
        width: int = 32,
        adversarial: float = 0.143,
        judged: int = 5,
        penalty: float = 10.0,
        weight: float = 1.0,
        views: int = 20,
    ) -> None:
        check_phases(adversarial, judged)
        super().__init__()
        self.epochs, self.lr, self.encoder_lr, self.batch = epochs, lr, encoder_lr, batch
        self.latent, self.width, self.adversarial, self.judged = latent, width, adversarial, judged
        self.penalty, self.weight, self.views = penalty, weight, views

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the networks for (1, H, W) depths, or for (4, H, W) colours and depths.

        Raises:
            UsageError: other channels, images that are not square, or an unsupported side.
        """
        check_planes("Depth GAN", shapes, (1, 4), "depth")
        channels, height, width = shapes[0]
        if height != width or height < 8 or height & (height - 1):
            raise UsageError(
                f"Depth GAN cannot take images of {height} x {width} pixels; expected square ones whose side is a "
                "power of two of at least 8: set input.resize=256"
            )
        self.generator, self.critic, self.encoder = wgan(2, channels, height, self.width, self.latent)
        self.to(memory_format=torch.channels_last)
        self.register_buffer("largest", torch.empty(()))

    def fit(self, normals: TrainingSet) -> None:
        """Train generator and critic, then the encoder, on turned views of the scans.

        Raises:
            ValueError: no pixel has a depth, or the loss is not finite.
        """
        self.largest.copy_(largest_depth(normals, self.batch))
        views = Views(normals, self.views, turn_images)
        loop = Loop(self, optimisers(self), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(views), self.batch, whole=True):
                train_on(self, scale_depth(views.select(numbers), self.largest), epoch)
        with torch.no_grad():
            some = scale_depth(normals.select(torch.arange(min(self.batch, len(normals)))), self.largest)
            loop.spread = output_spread(self.generator(self.encoder(some)), some)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Distances of pixels from their restorations; the image score is the map's maximum.

        Args:
            images: (B, 1 or 4, H, W).

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        scaled = scale_depth(images, self.largest)
        maps = (scaled - self.generator(self.encoder(scaled))).norm(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)
