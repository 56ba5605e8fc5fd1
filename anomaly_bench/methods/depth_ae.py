"""Depth AE: an autoencoder of depth images; the map is how far each pixel is from its restoration.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection
and Localization, VISAPP 2022, arXiv 2112.09045. Squared error, 20 turned views of each scan, on depth alone or with
colours where the dataset has them. No code is published, and the paper's layers and settings are not known: the network
is that of AE-L2 without its last activation, and Adam's settings are that method's. It restores differences from the
mean scan: it then need not learn the slope of the background, which takes the longest at the image's border, where the
kernels of the decoder reach less of their input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import AutoEncoder
from anomaly_bench.components.moments import mean_and_deviation
from anomaly_bench.components.scans import Views, check_planes, largest_depth, turn_images
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_grid
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class DepthAE(nn.Module):
    """Depth AE.

    Args:
        epochs, lr, batch: for training with Adam, over all views.
        latent: size of the code.
        views: turned views of each training scan, itself included.
    """

    mean: Tensor  # (1 or 4, H, W)
    deviation: Tensor  # (1 or 4, 1, 1)

    def __init__(self, epochs: int, lr: float = 2e-4, batch: int = 64, latent: int = 128, views: int = 20) -> None:
        super().__init__()
        self.epochs, self.lr, self.batch, self.latent, self.views = epochs, lr, batch, latent, views

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (1, H, W) depths, or for (4, H, W) colours and depths.

        Raises:
            UsageError: other channels, images that are not square, or an unsupported side.
        """
        check_planes("Depth AE", shapes, (1, 4), "depth")
        channels, height, width = shapes[0]
        if height != width:
            raise UsageError(f"Depth AE cannot take images of {height} x {width} pixels; expected square ones")
        network = AutoEncoder(channels, height, self.latent)
        network.decode = network.decode[:-1]  # without the sigmoid
        self.network = network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.empty(shapes[0]))
        self.register_buffer("deviation", torch.empty(channels, 1, 1))

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to restore turned views of the scans.

        Raises:
            ValueError: no pixel has a depth, or the loss is not finite.
        """
        largest_depth(normals, self.batch)
        mean, deviation, _ = mean_and_deviation(normals.images(self.batch))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6))
        views = Views(normals, self.views, turn_images)
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(views), self.batch):
                images = self.deviations(views.select(numbers))
                epoch.step(F.mse_loss(self.network(images), images))
        with torch.no_grad():
            some = self.deviations(normals.select(torch.arange(min(self.batch, len(normals)))))
            loop.spread = output_spread(self.network(some), some)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Distances of pixels from their restorations; the image score is the map's maximum.

        Args:
            images: (B, 1 or 4, H, W), of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        check_grid(images.shape[2:], self.mean.shape[1:])
        scaled = self.deviations(images)
        maps = (scaled - self.network(scaled)).norm(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def deviations(self, images: Tensor) -> Tensor:
        """(B, C, H, W): differences from the mean scan, of root mean square 1 in each channel of the training scans."""
        return (images - self.mean) / self.deviation
