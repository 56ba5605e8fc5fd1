"""My method: TITLE OF THE PAPER.

AUTHORS; YEAR, arXiv NUMBER.

Say in a few sentences how it works. Where the paper and known code differ, say what is followed here, and what else
is different. This example scores a position by its distance from the mean normal feature there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_bench.components.validation import check_fitted, check_grid
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet


class MyMethod(nn.Module):
    """Distance from the mean normal feature of each position (section NUMBER of the paper).

    Args:
        backbone: a frozen network, read at one level.
        batch: images per step of fitting.
    """

    mean: Tensor  # (C, h, w)

    def __init__(self, backbone: Features, batch: int = 32) -> None:
        super().__init__()
        self.backbone, self.batch = backbone, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make parameters and buffers from the (C, h, w) of each level; called anew before every fit."""
        self.register_buffer("mean", torch.zeros(shapes[0]))

    def fit(self, normals: TrainingSet) -> None:
        """Average the features of all normal images (equation NUMBER)."""
        total = torch.zeros_like(self.mean)
        for (level,) in normals.features(self.backbone, self.batch):
            total += level.sum(dim=0)
        self.mean.copy_(total / len(normals))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Distances (equation NUMBER), upsampled; the image score is the map's maximum.

        Args:
            images: (B, C, H, W), of the size that was fitted.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of another size.
        """
        check_fitted(self)
        (level,) = self.backbone(images)
        check_grid(level.shape[-2:], self.mean.shape[-2:])
        distances = (level - self.mean).norm(dim=1, keepdim=True)  # (B, 1, h, w)
        maps = F.interpolate(distances, size=images.shape[2:], mode="bilinear")[:, 0]
        return Scores(maps.amax(dim=(1, 2)), maps)
