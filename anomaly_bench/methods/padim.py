"""PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization.

Thomas Defard, Aleksandr Setkov, Angelique Loesch, Romaric Audigier; 2020, arXiv 2011.08785.

A Gaussian is fitted to the normal images' patch embeddings at each position of the feature grid; the anomaly score of a
patch is its Mahalanobis distance. The authors released no code. Differences from common re-implementations: dimensions
are selected by a seeded permutation (others use Python's `random.sample`), eps is added once (anomalib adds another
1e-5), and the blur reflects at borders, as in scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components import gaussian, upsampling
from anomaly_bench.components.embedding import draw_dimensions, embed
from anomaly_bench.components.validation import check_count, check_fitted, check_grid
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet


class PaDiM(nn.Module):
    """PaDiM as in sections III.A to III.C.

    Args:
        backbone: a frozen network read at three levels.
        dimensions: of the embedding, drawn at random (section III.A): 100 for R18, 550 for WR50.
        seed: for the draw, which is the same for all positions, categories and images.
        eps: added to the diagonal of each covariance (section III.B).
        sigma: of the map's Gaussian blur, in pixels.
        batch: images per step of fitting.
    """

    chosen: Tensor  # (D,) indices of embedding dimensions, ascending
    mean: Tensor  # (h * w, D)
    whitener: Tensor  # (h * w, D, D), W with W W^T = covariance^-1

    def __init__(
        self,
        backbone: Features,
        dimensions: int,
        seed: int,
        eps: float = 0.01,
        sigma: float = 4.0,
        batch: int = 32,
    ) -> None:
        super().__init__()
        self.backbone, self.dimensions, self.seed = backbone, dimensions, seed
        self.eps, self.sigma, self.batch = eps, sigma, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate the statistics for these (C, h, w) levels, the largest grid first.

        Raises:
            UsageError: fewer channels than dimensions.
        """
        positions = shapes[0][1] * shapes[0][2]
        self.grid = shapes[0][1:]
        self.register_buffer("chosen", draw_dimensions(self.dimensions, shapes, self.seed))
        self.register_buffer("mean", torch.empty(positions, self.dimensions))
        self.register_buffer("whitener", torch.empty(positions, self.dimensions, self.dimensions))

    def fit(self, normals: TrainingSet) -> None:
        """Accumulate means and covariances (equation 1) and factorise the covariances.

        Raises:
            ValueError: fewer than two images; a covariance that is singular despite `eps`.
        """
        check_count(normals, 2, "PaDiM's covariance")
        moments = gaussian.Moments(self.mean, self.whitener)
        for levels in normals.features(self.backbone, self.batch):
            moments.add_(embed(levels, self.chosen))
        moments.finish()
        gaussian.whiten_task_(moments.scatter, moments.count - 1, self.eps, normals.name)

    def score(self, images: Tensor) -> Scores:
        """Mahalanobis distances (equation 2), upsampled and blurred; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        levels = self.backbone(images)
        check_grid(levels[0].shape[-2:], self.grid)
        distances = gaussian.mahalanobis(embed(levels, self.chosen), self.mean, self.whitener)  # (h * w, B)
        maps = upsampling.smooth_upsample(distances.T.view(-1, *self.grid), images.shape[2:], self.sigma)
        return Scores(maps.amax(dim=(1, 2)), maps)
