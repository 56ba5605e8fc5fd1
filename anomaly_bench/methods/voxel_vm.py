"""Voxel VM: each voxel of a scan compared with the mean and standard deviation of that voxel in normal scans.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly
Detection and Localization, VISAPP 2022, arXiv 2112.09045: the variation model on voxels, without alignment, on 20
turned views of each scan. On 3D data alone, or with colours where the dataset has them. No code is published; ours
are the least deviation, the norm over colours, and what `components.voxels` and `components.scans` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.moments import mean_and_deviation
from anomaly_bench.components.scans import check_planes
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.components.voxels import Voxels
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class VoxelVM(nn.Module):
    """Voxel VM.

    Args:
        grid: voxels along each side of the grid.
        views: turned views of each training scan, itself included.
        batch: scans per step of fitting.
    """

    mean: Tensor  # (1 or 3, grid, grid, grid)
    deviation: Tensor  # the same shape

    def __init__(self, grid: int = 64, views: int = 20, batch: int = 16) -> None:
        super().__init__()
        self.grid, self.views, self.batch = grid, views, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate the statistics for (3, H, W) coordinates, or for (6, H, W) colours and coordinates.

        Raises:
            UsageError: other channels.
        """
        check_planes("Voxel VM", shapes, (3, 6), "xyz")
        self.voxels = Voxels(self.grid)
        size = (shapes[0][0] // 3 * 2 - 1, self.grid, self.grid, self.grid)
        self.register_buffer("mean", torch.empty(size))
        self.register_buffer("deviation", torch.empty(size))

    @torch.no_grad()
    def fit(self, normals: TrainingSet) -> None:
        """Take each voxel's mean and deviation, at least 1 / sqrt(n) of n grids."""
        self.voxels.fit(normals, self.batch)
        views = self.voxels.views(normals, self.views)
        mean, deviation, count = mean_and_deviation(views.batches(self.batch))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=count**-0.5))

    def score(self, images: Tensor) -> Scores:
        """Distances in deviations, projected to the pixels; the image score is the map's maximum.

        Args:
            images: (B, 3 or 6, H, W).

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        distances = ((self.voxels.fill(images) - self.mean) / self.deviation).norm(dim=1)
        maps = self.voxels.project(distances, (images.shape[2], images.shape[3]))
        return Scores(maps.amax(dim=(1, 2)), maps)
