"""Depth VM: each pixel of a depth image compared with the mean and standard deviation of that pixel in normal scans.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly
Detection and Localization, VISAPP 2022, arXiv 2112.09045: the variation model on depth images, without alignment, on
20 turned views of each scan. On depth alone, or with colours where the dataset has them. No code is published; ours
are the least deviations, the norm over channels, the input's size, and how views are turned (`components.scans`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.moments import mean_and_deviation
from anomaly_bench.components.scans import Views, check_planes, largest_depth, scale_depth, turn_images
from anomaly_bench.components.validation import check_fitted, check_grid
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

FLOOR_DEPTH, FLOOR_COLOUR = 1e-3, 1 / 255  # least deviations: of the largest depth, and of colours in [0, 1]


class DepthVM(nn.Module):
    """Depth VM.

    Args:
        views: turned views of each training scan, itself included.
        batch: scans per step of fitting.
    """

    largest: Tensor  # () metres
    mean: Tensor  # (1 or 4, H, W)
    deviation: Tensor  # the same shape

    def __init__(self, views: int = 20, batch: int = 16) -> None:
        super().__init__()
        self.views, self.batch = views, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate the statistics for (1, H, W) depths, or for (4, H, W) colours and depths.

        Raises:
            UsageError: other channels.
        """
        check_planes("Depth VM", shapes, (1, 4), "depth")
        self.register_buffer("largest", torch.empty(()))
        self.register_buffer("mean", torch.empty(shapes[0]))
        self.register_buffer("deviation", torch.empty(shapes[0]))

    @torch.no_grad()
    def fit(self, normals: TrainingSet) -> None:
        """Take each pixel's mean and deviation; a depth of 0, where there is no value, counts as one.

        Raises:
            ValueError: no pixel has a depth.
        """
        self.largest.copy_(largest_depth(normals, self.batch))
        views = Views(normals, self.views, turn_images).batches(self.batch)
        mean, deviation, _ = mean_and_deviation(scale_depth(images, self.largest) for images in views)
        floors = torch.full((len(mean), 1, 1), FLOOR_COLOUR)
        floors[-1] = FLOOR_DEPTH
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.maximum(floors.to(deviation)))

    def score(self, images: Tensor) -> Scores:
        """Distances in deviations; the image score is the map's maximum.

        Args:
            images: (B, 1 or 4, H, W), of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        check_grid(images.shape[2:], self.mean.shape[1:])
        maps = ((scale_depth(images, self.largest) - self.mean) / self.deviation).norm(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)
