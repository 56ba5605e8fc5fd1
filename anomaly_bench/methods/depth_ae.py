"""Depth AE: an autoencoder of depth images; the map is how far each pixel is from its restoration.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection
and Localization, VISAPP 2022, arXiv 2112.09045. Squared error, 20 turned views of each scan, on depth alone or with
colours where the dataset has them. No code is published, and the paper's layers and settings are not known: the network
is that of AE-L2 without its last activation, and Adam's settings are that method's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import AutoEncoder
from anomaly_bench.components.scans import Views, check_planes, largest_depth, scale_depth, turn_images
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
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

    largest: Tensor  # () metres

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
        self.register_buffer("largest", torch.empty(()))

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to restore turned views of the scans.

        Raises:
            ValueError: no pixel has a depth, or the loss is not finite.
        """
        self.largest.copy_(largest_depth(normals, self.batch))
        views = Views(normals, self.views, turn_images)
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(views), self.batch):
                images = scale_depth(views.select(numbers), self.largest)
                epoch.step(F.mse_loss(self.network(images), images))
        with torch.no_grad():
            some = scale_depth(normals.select(torch.arange(min(self.batch, len(normals)))), self.largest)
            loop.spread = output_spread(self.network(some), some)
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
        maps = (scaled - self.network(scaled)).norm(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)
