"""MahalanobisAD: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection.

Oliver Rippel, Patrick Mertens, Dorit Merhof; 2020, arXiv 2005.14140.

One Gaussian is fitted to the pooled features of each level; the image score is the sum over levels of the Mahalanobis
distances sqrt((x - mean)^T covariance^-1 (x - mean)). There is no anomaly map. The authors' code differs: it takes the
mean over levels (same ranking), fits on four fifths of the normal images (average of five folds) instead of all, and
rounds the precision matrix, not its factor, to float32. Their tables use all nine levels of EfficientNet-B4, as here;
the example in their README omits the last.

Their EfficientNet pads every convolution as if its input had the native size of the image (static padding); timm pads
by the input that there is, as TensorFlow does. At 380 pixels B4's deep grids have 47, 23, 23, 11 and 11 positions a
side there, and 48, 24, 24, 12 and 12 here, so pooled features differ a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.gaussian import LEAST, Gaussian
from anomaly_bench.components.validation import check_count, check_fitted
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet


class MahalanobisAD(nn.Module):
    """MahalanobisAD without its optional reduction by PCA.

    Args:
        backbone: a frozen network, read at all its levels.
        batch: images per step of fitting.
    """

    gaussians: nn.ModuleList  # one per level

    def __init__(self, backbone: Features, batch: int = 32) -> None:
        super().__init__()
        self.backbone, self.batch = backbone, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate one Gaussian per (C, h, w) level."""
        self.gaussians = nn.ModuleList(Gaussian(shape[0]) for shape in shapes)

    def fit(self, normals: TrainingSet) -> None:
        """Pool all images' features and fit each level's Gaussian.

        Raises:
            ValueError: fewer than three images, or all images identical.
        """
        check_count(normals, LEAST, "MahalanobisAD")
        batches = [pool_levels(levels) for levels in normals.features(self.backbone, self.batch)]
        levels = [torch.cat(level) for level in zip(*batches, strict=True)]  # (N, C) each
        for gaussian, level in zip(self.gaussians, levels, strict=True):
            assert isinstance(gaussian, Gaussian)
            gaussian.fit(level, normals.name)

    def score(self, images: Tensor) -> Scores:
        """The sum of the levels' Mahalanobis distances; no map.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        distances = [
            gaussian(level) for gaussian, level in zip(self.gaussians, pool_levels(self.backbone(images)), strict=True)
        ]
        return Scores(torch.stack(distances).sum(dim=0), None)


def pool_levels(levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, h, w) levels -> averages over positions, (B, C)."""
    return [level.mean(dim=(2, 3)) for level in levels]
