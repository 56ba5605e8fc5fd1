"""Voxel AE: an autoencoder of grids of voxels; the map is how far each voxel is from its restoration.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection
and Localization, VISAPP 2022, arXiv 2112.09045. Squared error, weighted by the share of empty voxels in training; 20
turned views of each scan; on 3D data alone, or with colours where the dataset has them. No code is published, and the
paper's layers and settings are not known: ours are the network, Adam's settings, the exact weights, and what
`components.voxels` and `components.scans` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.scans import Views, check_planes
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.components.voxels import EMPTY, Voxels, check_grid_halves
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

SLOPE = 0.2  # of the leaky ReLUs


class VoxelAE(nn.Module):
    """Voxel AE.

    Args:
        epochs, lr, batch: for training with Adam, over all views.
        grid: voxels along each side of the grid: 8, 16, 32, 64, ...
        width: channels of the first layer; each further one halves the side and doubles them.
        latent: size of the code.
        views: turned views of each training scan, itself included.
    """

    filled: Tensor  # () share of voxels with points, in the training scans

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        batch: int = 16,
        grid: int = 64,
        width: int = 32,
        latent: int = 256,
        views: int = 20,
    ) -> None:
        check_grid_halves(grid)
        super().__init__()
        self.epochs, self.lr, self.batch, self.grid = epochs, lr, batch, grid
        self.width, self.latent, self.views = width, latent, views

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (3, H, W) coordinates, or for (6, H, W) colours and coordinates.

        Raises:
            UsageError: other channels.
        """
        check_planes("Voxel AE", shapes, (3, 6), "xyz")
        self.voxels = Voxels(self.grid)
        self.register_buffer("filled", torch.empty(()))
        self.network = autoencoder(1 if shapes[0][0] == 3 else 3, self.grid, self.width, self.latent)

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to restore grids of turned views of the scans.

        Raises:
            ValueError: see `Voxels.fit`, or the loss is not finite.
        """
        self.voxels.fit(normals, self.batch)
        views = self.voxels.views(normals, self.views)
        self.filled.copy_(share_filled(views, self.batch))
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(views), self.batch):
                grids = views.select(numbers)
                epoch.step((self.weights(grids) * (self.network(grids) - grids).square()).mean())
        with torch.no_grad():
            some = self.voxels.fill(normals.select(torch.arange(min(self.batch, len(normals)))))
            loop.spread = output_spread(self.network(some), some)
        self.facts = loop.facts

    def weights(self, grids: Tensor) -> Tensor:
        """(B, 1, grid, grid, grid): over the training scans, filled and empty voxels have the same sum, and mean 1."""
        empty = (grids == EMPTY).all(dim=1, keepdim=True)
        return torch.where(empty, 0.5 / (1 - self.filled), 0.5 / self.filled)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Distances of voxels from their restorations, projected to pixels; the image score is the map's maximum.

        Args:
            images: (B, 3 or 6, H, W).

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        grids = self.voxels.fill(images)
        maps = self.voxels.project((grids - self.network(grids)).norm(dim=1), (images.shape[2], images.shape[3]))
        return Scores(maps.amax(dim=(1, 2)), maps)


def share_filled(views: Views, batch: int) -> Tensor:
    """() of the voxels of the unturned scans."""
    scans = torch.arange(0, len(views), views.count)
    shares = [
        (views.select(part) != EMPTY).any(dim=1).float().mean(dim=(1, 2, 3)) for part in torch.split(scans, batch)
    ]
    return torch.cat(shares).mean()


def autoencoder(channels: int, side: int, width: int, latent: int) -> nn.Sequential:
    """(B, channels, side, side, side) -> the same shape, in (-1, 1); convolutions lead to 4^3, then to a code."""
    stages = (side // 4).bit_length() - 1
    widths = [channels, *(width * 2**stage for stage in range(stages))]
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        down += [nn.Conv3d(inputs, outputs, 4, 2, padding=1), nn.LeakyReLU(SLOPE)]
    for inputs, outputs in reversed([*pairwise(widths)]):
        up += [nn.LeakyReLU(SLOPE), nn.ConvTranspose3d(outputs, inputs, 4, 2, padding=1)]
    code = [nn.Conv3d(widths[-1], latent, 4), nn.ConvTranspose3d(latent, widths[-1], 4)]
    network = nn.Sequential(*down, *code, *up, nn.Tanh())
    for layer in network:
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.get_parameter("bias"))
    return network
