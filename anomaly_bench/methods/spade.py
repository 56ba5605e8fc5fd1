"""SPADE: Sub-Image Anomaly Detection with Deep Pyramid Correspondences.

Niv Cohen, Yedid Hoshen; 2020, arXiv 2005.02357.

An image's score is its mean squared distance to the K nearest training images in pooled deep features; a patch's score
is its squared distance to the nearest patch, at any position, of those K images, in the concatenated features of
several levels. The authors released no code; the paper does not say how deeper levels are brought to the finest grid,
here by replication.

The common re-implementation differs: K = 5 instead of 50, distances that are not squared, one search per level and the
mean of the levels' maps (`pyramid: mean` here, but squared), and a gallery split into chunks of 100 patches, with the
remainder ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.cell_search import grouped, lower_, positions_of_cells
from anomaly_bench.components.neighbours import nearest, take_row_counts
from anomaly_bench.components.validation import check_choice, check_fitted, check_grid, check_positive
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

logger = logging.getLogger(__name__)
PYRAMIDS = ("joined", "mean")


class SPADE(nn.Module):
    """SPADE as in sections 3.1 to 3.3, with one nearest patch (kappa = 1).

    Args:
        backbone: a frozen network; its last level, pooled, describes the image, the levels before it make the map.
        neighbours: K, the number of nearest training images.
        pyramid: "joined": levels are concatenated; "mean": levels are searched separately and their maps averaged.
        sigma: of the map's Gaussian blur, in pixels.
        batch: images per step of fitting.

    Attributes:
        facts: {"neighbours": K as used}, at most the number of training images; stored in the record.
    """

    pooled: Tensor  # (N, C)

    def __init__(
        self, backbone: Features, neighbours: int, pyramid: str = "joined", sigma: float = 4.0, batch: int = 32
    ) -> None:
        check_positive(neighbours=neighbours)
        check_choice("pyramid", pyramid, PYRAMIDS)
        super().__init__()
        self.backbone, self.neighbours, self.pyramid = backbone, neighbours, pyramid
        self.sigma, self.batch = sigma, batch
        self.facts: dict[str, int] = {}

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create an empty gallery for these (C, h, w) levels, the largest grid first.

        Raises:
            UsageError: fewer than three levels.
        """
        if len(shapes) < 3:
            raise UsageError(
                f"method.levels: {len(shapes)} levels; SPADE needs at least two for the map, plus a last one, pooled"
            )
        *pyramid, deepest = shapes
        self.grid, self.depth = pyramid[0][1:], len(pyramid)
        self.register_buffer("pooled", torch.empty(0, deepest[0]))
        for index, (channels, height, width) in enumerate(pyramid):
            self.register_buffer(f"gallery_{index}", torch.empty(0, height, width, channels))
        for index, (fine, coarse) in enumerate(pairwise(shape[1:] for shape in pyramid)):
            self.register_buffer(f"parts_{index}", positions_of_cells(fine, coarse), persistent=False)

    @property
    def parts(self) -> list[Tensor]:
        """(cells, m) of each level but the first: positions of the level before that lie in each cell."""
        return [getattr(self, f"parts_{index}") for index in range(self.depth - 1)]

    @property
    def gallery(self) -> list[Tensor]:
        """(N, h, w, C) of each level of the map."""
        return [getattr(self, f"gallery_{index}") for index in range(self.depth)]

    def fit(self, normals: TrainingSet) -> None:
        """Store the features of every image, in float32; extra memory: one batch's features.

        Raises:
            TooLarge: the gallery does not fit in memory.
        """
        self.reserve(normals)
        start = 0
        for levels in normals.features(self.backbone, self.batch):
            rows = slice(start, start + len(levels[0]))
            for gallery, level in zip(self.gallery, levels[:-1], strict=True):
                gallery[rows] = level.permute(0, 2, 3, 1)
            self.pooled[rows] = levels[-1].mean(dim=(2, 3))
            start = rows.stop
        self.facts = {"neighbours": min(self.neighbours, len(normals))}
        if len(normals) < self.neighbours:
            logger.warning(
                "%s: method.neighbours=%d reduced to %d, the number of training images",
                *(normals.name, self.neighbours, len(normals)),
            )

    def reserve(self, normals: TrainingSet) -> None:
        """Resize the empty gallery to one row per image."""
        buffers = {name: buffer for name, buffer in self.named_buffers() if name in self.state_dict()}
        shapes = {name: (len(normals), *buffer.shape[1:]) for name, buffer in buffers.items()}
        floats = sum(torch.Size(shape).numel() for shape in shapes.values())
        memory.require(
            4 * floats,
            self.pooled.device,
            f"{normals.name}: the gallery of {len(normals)} images",
            "use a smaller input.resize or input.crop, fewer or deeper method.levels, or fewer training images",
        )
        for name, shape in shapes.items():
            setattr(self, name, self.pooled.new_empty(shape))

    def score(self, images: Tensor) -> Scores:
        """Image scores (equation 1) and maps (equation 2), upsampled and blurred.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        *pyramid, deepest = self.backbone(images)
        check_grid(pyramid[0].shape[-2:], self.grid)
        found = nearest(deepest.mean(dim=(2, 3)), self.pooled, min(self.neighbours, len(self.pooled)))
        search = self.search_joined if self.pyramid == "joined" else self.search_each
        per_image = [search([level[[i]] for level in pyramid], row) for i, row in enumerate(found.indices.tolist())]
        smooth = [
            upsampling.smooth_upsample(torch.stack(maps), images.shape[2:], self.sigma)
            for maps in zip(*per_image, strict=True)
        ]
        return Scores(found.distances.mean(dim=1), torch.stack(smooth).mean(dim=0))

    def search_each(self, levels: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """One (h, w) map per level of one image: squared distances to the nearest patch of the chosen images."""
        maps = []
        for level, gallery in zip(levels, self.gallery, strict=True):
            patches = level[0].permute(1, 2, 0).flatten(0, 1)  # (h * w, C)
            found = [nearest(patches, gallery[index].flatten(0, 1)).distances[:, 0] for index in chosen]
            maps.append(torch.stack(found).amin(dim=0).view(level.shape[-2:]))
        return maps

    def search_joined(self, levels: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """The (h, w) map of one image, in a list: squared distances to the nearest patch, summed over levels."""
        ours = grouped([level[0].permute(1, 2, 0) for level in levels], self.parts)
        best = ours[0].new_full((self.grid[0] * self.grid[1],), torch.inf)
        for index in chosen:
            lower_(best, ours, grouped([level[index] for level in self.gallery], self.parts), self.parts)
        return [best.view(self.grid)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
