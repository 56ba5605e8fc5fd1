"""MahalanobisAD: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection.

Oliver Rippel, Patrick Mertens, Dorit Merhof; 2020, arXiv 2005.14140.

Every level of the network has one Gaussian of its pooled features; an image's score is the sum over levels of its
Mahalanobis distances sqrt((x - mean)^T covariance^-1 (x - mean)). There is no anomaly map. Where the authors' code
differs: it takes the mean over levels (the same ranking), fits on four fifths of the normal images (five folds,
averaged) instead of all, and rounds the precision matrix, not its factor, to float32. Their tables read all nine
levels of EfficientNet-B4, as here; their README's example drops the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.gaussian import mahalanobis, whiten_
from anomaly_bench.components.validation import check_count, check_fitted
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

LEAST = 3  # images: around their mean, two are each other's mirror image and leave nothing to estimate a shrinkage from


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
        """Make room for the Gaussians of feature levels of these (C, h, w) shapes."""
        self.gaussians = nn.ModuleList(Gaussian(shape[0]) for shape in shapes)

    def fit(self, normals: TrainingSet) -> None:
        """Pool all images' features and fit each level's Gaussian.

        Raises:
            ValueError: fewer than three images, or images that are all alike.
        """
        check_count(normals, LEAST, "MahalanobisAD")
        batches = [pool_levels(levels) for levels in normals.features(self.backbone, self.batch)]
        levels = [torch.cat(level) for level in zip(*batches, strict=True)]  # (N, C) each
        for gaussian, level in zip(self.gaussians, levels, strict=True):
            if torch.equal(level, level[:1].expand_as(level)):
                raise ValueError(
                    f"{normals.name}: all {len(normals)} training images are the same to the backbone; add others"
                )
            gaussian.load_state_dict(estimate(level))

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


class Gaussian(nn.Module):
    """What is kept of a level of D channels."""

    mean: Tensor  # (1, D)
    whitener: Tensor  # (1, D, D), W with W W^T = covariance^-1

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(1, dimensions))
        self.register_buffer("whitener", torch.empty(1, dimensions, dimensions))

    def forward(self, features: Tensor) -> Tensor:
        """Mahalanobis distances (B,) of (B, D) features."""
        return mahalanobis(features[None], self.mean, self.whitener)[0]


def estimate(features: Tensor) -> dict[str, Tensor]:
    """The state of a Gaussian of (N, D) features, in float64.

    The covariance is shrunk as Ledoit and Wolf do, which makes it regular for fewer images than dimensions too.
    """
    from sklearn.covariance import LedoitWolf  # its import takes a second

    found = LedoitWolf(store_precision=False).fit(features.cpu().double().numpy())
    whitener = torch.from_numpy(found.covariance_)[None]
    whiten_(whitener, divisor=1, eps=0)
    return {"mean": torch.from_numpy(found.location_)[None], "whitener": whitener}


def pool_levels(levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, h, w) levels -> their averages over positions, (B, C)."""
    return [level.mean(dim=(2, 3)) for level in levels]
