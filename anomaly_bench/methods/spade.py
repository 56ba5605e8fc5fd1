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

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.neighbours import cache_bytes, nearest, squared_lengths, take_row_counts
from anomaly_bench.components.validation import check_choice, check_fitted, check_grid, check_positive
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

logger = logging.getLogger(__name__)
PYRAMIDS = ("joined", "mean")
FEW = 32  # above one pair of cells in 32, a matrix product is faster than looking up pairs


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
    parts: Tensor  # (cells of the second level, m) positions of the first level in each cell, some repeated

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
        self.register_buffer("parts", positions_of_cells(pyramid[0][1:], pyramid[1][1:]), persistent=False)

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
        """The (h, w) map of one image, in a list: squared distances to the nearest patch, summed over levels.

        Deeper levels are the same for all patches in a cell of the second level's grid. So distances are computed
        between cells by a matrix product, one gallery image at a time; only pairs of cells closer than the best patches
        so far are compared in the first level too. This is exact and takes about a tenth of the work of a product
        between patches.

        Memory: one block of distances between cells, and as much again for the patches compared.
        """
        first, *deeper = self.gallery
        patches, coarse = (
            upsampling.align(levels[:1])[self.parts, 0],
            upsampling.align(levels[1:])[:, 0],
        )  # (cells, m, C), (cells, D)
        best = patches.new_full(self.parts.shape, torch.inf)  # without the constant |q|^2 of a cell q
        step = max(1, cache_bytes(coarse.device) // (4 * len(coarse)))
        for index in chosen:
            known = upsampling.align([level[[index]].permute(0, 3, 1, 2) for level in deeper])[:, 0]
            theirs, norms = first[index].flatten(0, 1)[self.parts], squared_lengths(known)
            for start in range(0, len(coarse), step):
                rows = slice(start, start + step)
                distances = torch.addmm(norms, coarse[rows], known.T, alpha=-2)
                lower_(best[rows], distances, patches[rows], theirs)
        flat = best.new_empty(self.grid).flatten()
        flat[self.parts] = best.add_(squared_lengths(coarse)[:, None]).clamp_(min=0)
        return [flat.view(self.grid)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def lower_(best: Tensor, distances: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Lower the best distances of patches using the patches of another image.

    Args:
        best: (q, m) best distances of the m patches in each of q cells, updated in place.
        distances: (q, cells) between cells, in the deeper levels.
        ours, theirs: (q, m, C) and (cells, m, C) first-level features of the patches in each cell.
    """
    near = (distances.amin(dim=1) < best.amax(dim=1)).nonzero()[:, 0]
    rows = distances[near]
    if best.isinf().any():  # for the first image, all pairs would be close enough
        by_pairs_(best, near, rows.argmin(dim=1), distances, ours, theirs)
    enough = rows < best[near].amax(dim=1, keepdim=True)
    if enough.count_nonzero() * FEW < enough.numel():
        row, other = enough.nonzero().unbind(dim=1)
        by_pairs_(best, near[row], other, distances, ours, theirs)
    else:
        by_product_(best, near, rows, ours, theirs)


def by_pairs_(best: Tensor, row: Tensor, other: Tensor, distances: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """`lower_` for the given pairs of cells, (n,) and (n,)."""
    step = max(1, cache_bytes(best.device) // (8 * ours[0].numel()))
    for cell, match in zip(torch.split(row, step), torch.split(other, step), strict=True):
        pairs = torch.cdist(ours[cell], theirs[match], compute_mode="donot_use_mm_for_euclid_dist").square_()
        lowest = pairs.amin(dim=2) + distances[cell, match, None]  # (n, m)
        best.scatter_reduce_(0, cell[:, None].expand_as(lowest), lowest, "amin")


def by_product_(best: Tensor, near: Tensor, rows: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """`lower_` for all pairs with the cells `near` (n,), whose distances are `rows` (n, cells)."""
    count, parts = theirs.shape[:2]
    norms = squared_lengths(theirs.flatten(0, 1)).view(count, parts)
    step = max(1, cache_bytes(best.device) // (4 * parts * count))
    for cell, deeper in zip(torch.split(near, step), torch.split(rows, step), strict=True):
        patches = ours[cell].flatten(0, 1)  # (n * m, C)
        products = (torch.addmm(norms[:, part], patches, theirs[:, part].T, alpha=-2) for part in range(parts))
        pairs = functools.reduce(lambda a, b: torch.minimum(a, b, out=a), products).view(len(cell), parts, count)
        lowest = pairs.add_(deeper[:, None]).amin(dim=2) + squared_lengths(patches).view(-1, parts)
        best[cell] = torch.minimum(best[cell], lowest)


def positions_of_cells(fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """(cells, m): the positions of a fine grid that `upsampling.align` fills from each position of a coarse one.

    If cells differ in size, the last positions of smaller ones are repeated.
    """

    def along(axis: int) -> Tensor:
        sources = [position * coarse[axis] // fine[axis] for position in range(fine[axis])]
        first = [sources.index(cell) for cell in range(coarse[axis])] + [fine[axis]]
        longest = max(first[cell + 1] - first[cell] for cell in range(coarse[axis]))
        return torch.tensor(
            [[min(first[cell] + step, first[cell + 1] - 1) for step in range(longest)] for cell in range(coarse[axis])],
            device="cpu",
        )

    rows, columns = along(0)[:, None, :, None], along(1)[None, :, None, :]
    return (rows * fine[1] + columns).flatten(2).flatten(0, 1)
