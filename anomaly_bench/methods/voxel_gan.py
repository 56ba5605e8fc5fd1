"""Voxel GAN: f-AnoGAN on grids of voxels; the map is how far each voxel is from what the generator makes of its code.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection
and Localization, VISAPP 2022, arXiv 2112.09045. Generator and critic, then an encoder, on 20 turned views of each scan,
of 3D data alone or with colours where the dataset has them. No code is published, and the paper's layers and settings
are not known: ours are the networks, the steps and optimisers are those of f-AnoGAN, and the rest is what
`components.voxels` and `components.scans` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.gan import check_phases, optimisers, train_on, wgan
from anomaly_bench.components.scans import check_planes
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.components.voxels import Voxels, check_grid_halves
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class VoxelGAN(nn.Module):
    """Voxel GAN.

    Args:
        epochs, batch: of the whole training, over all views.
        lr: of Adam, for generator and critic.
        encoder_lr: of RMSProp, for the encoder.
        grid: voxels along each side of the grid: 8, 16, 32, 64, ...
        latent: elements of the noise.
        width: channels of the outermost layers.
        adversarial: share of the training for generator and critic; the rest is for the encoder.
        judged: steps of the critic for each step of the generator.
        penalty: weight of the gradient's penalty in the critic's loss.
        weight: of the critic's features in the encoder's loss.
        views: turned views of each training scan, itself included.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        encoder_lr: float = 5e-5,
        batch: int = 16,
        grid: int = 64,
        latent: int = 128,
        width: int = 32,
        adversarial: float = 0.4,
        judged: int = 5,
        penalty: float = 10.0,
        weight: float = 1.0,
        views: int = 20,
    ) -> None:
        check_grid_halves(grid)
        check_phases(adversarial, judged)
        super().__init__()
        self.epochs, self.lr, self.encoder_lr, self.batch, self.grid = epochs, lr, encoder_lr, batch, grid
        self.latent, self.width, self.adversarial, self.judged = latent, width, adversarial, judged
        self.penalty, self.weight, self.views = penalty, weight, views

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the networks for (3, H, W) coordinates, or for (6, H, W) colours and coordinates.

        Raises:
            UsageError: other channels.
        """
        check_planes("Voxel GAN", shapes, (3, 6), "xyz")
        self.voxels = Voxels(self.grid)
        channels = 1 if shapes[0][0] == 3 else 3
        self.generator, self.critic, self.encoder = wgan(3, channels, self.grid, self.width, self.latent)
        self.generator.append(nn.Tanh())

    def fit(self, normals: TrainingSet) -> None:
        """Train generator and critic, then the encoder, on grids of turned views of the scans.

        Raises:
            ValueError: see `Voxels.fit`, or the loss is not finite.
        """
        self.voxels.fit(normals, self.batch)
        views = self.voxels.views(normals, self.views)
        loop = Loop(self, optimisers(self), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(views), self.batch, whole=True):
                train_on(self, views.select(numbers), epoch)
        with torch.no_grad():
            some = self.voxels.fill(normals.select(torch.arange(min(self.batch, len(normals)))))
            loop.spread = output_spread(self.generator(self.encoder(some)), some)
        self.facts = loop.facts

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
        distances = (grids - self.generator(self.encoder(grids))).norm(dim=1)
        maps = self.voxels.project(distances, (images.shape[2], images.shape[3]))
        return Scores(maps.amax(dim=(1, 2)), maps)
