"""PatchCore: Towards Total Recall in Industrial Anomaly Detection.

Karsten Roth, Latha Pemula, Joaquin Zepeda, Bernhard Schoelkopf, Thomas Brox, Peter Gehler; 2021 (CVPR 2022),
arXiv 2106.08265.

The patch embeddings of all normal images are subsampled to a coreset, the memory bank; the anomaly score of a patch is
its squared distance to the nearest entry. Where the authors' code and the paper differ, this follows the code: squared
distances, and the image score is the largest patch score before upsampling, without the paper's re-weighting
(`reweight`). The coreset selection differs from both: exact greedy k-centre on the embeddings themselves, with a random
first centre; the code measures distances in a random projection to 128 dimensions, starting from the mean distance to
ten random points as an upper bound.

anomalib differs from all of these: no pooling to 1024 dimensions (`pooling: mean`), a sparse random projection for the
selection, plain distances, re-weighting over 9 neighbours, a map upsampled by replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.coreset import k_centre
from anomaly_bench.components.neighbours import nearest, squared_lengths, take_row_counts
from anomaly_bench.components.validation import check_choice, check_fitted, check_grid
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.components.neighbours import Neighbours
    from anomaly_bench.protocol import Features, TrainingSet

POOLINGS = ("authors", "mean")
AROUND = 9  # bank entries near the nearest one used for re-weighting; the paper states no number


class PatchCore(nn.Module):
    """PatchCore as in section 3, with one nearest neighbour.

    Args:
        backbone: a frozen network; the paper reads levels 2 and 3.
        ratio: fraction of the training patches kept.
        seed: for drawing the first of them.
        pooling: "authors": to `dimensions` values, whatever the number of channels; "mean": one for each channel.
        dimensions: of the embedding with pooling "authors".
        reweight: image scores as in equation 7 instead of the code's maximum.
        sigma: of the map's Gaussian blur, in pixels.
        batch: images per step of fitting.
    """

    bank: Tensor  # (M, D)
    norms: Tensor  # (M,) squared lengths of the bank's rows

    def __init__(
        self,
        backbone: Features,
        ratio: float,
        seed: int,
        pooling: str = "authors",
        dimensions: int = 1024,
        reweight: bool = False,
        sigma: float = 4.0,
        batch: int = 32,
    ) -> None:
        if not 0 < ratio <= 1:
            raise UsageError(f"method.ratio={ratio}: expected a fraction of the patches, above 0 and at most 1")
        if dimensions < 1:
            raise UsageError(f"method.dimensions={dimensions}: expected at least 1")
        check_choice("pooling", pooling, POOLINGS)
        super().__init__()
        self.backbone, self.ratio, self.seed = backbone, ratio, seed
        self.pooling, self.dimensions = pooling, dimensions
        self.reweight, self.sigma, self.batch = reweight, sigma, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create an empty bank for these (C, h, w) levels, the largest grid first."""
        width = self.dimensions if self.pooling == "authors" else sum(shape[0] for shape in shapes)
        self.grid = shapes[0][1:]
        self.register_buffer("bank", torch.empty(0, width))
        self.register_buffer("norms", torch.empty(0), persistent=False)

    def fit(self, normals: TrainingSet) -> None:
        """Embed every patch and keep the coreset.

        Memory holds the embedding, a float32 array (N * h * w, D), plus one batch's features, the bank, and about 16
        bytes per patch for `k_centre`.

        Raises:
            TooLarge: the embedding does not fit in memory.
            ValueError: the coreset has no patch, or fewer than two with `reweight`.
        """
        embedding, count = self.reserve(normals)
        start = 0
        for levels in normals.features(self.backbone, self.batch):
            patches = self.embed(levels)
            embedding[start : start + len(patches)] = patches
            start += len(patches)
        with normals.stage(f"{normals.name}: coreset", count) as advance:
            chosen = k_centre(embedding, count, self.seed, advance)
        self.bank = embedding[chosen]
        self.norms = squared_lengths(self.bank)

    def reserve(self, normals: TrainingSet) -> tuple[Tensor, int]:
        """An empty array for the embeddings of all images, and the number of embeddings to keep."""
        rows, dimensions = len(normals) * self.grid[0] * self.grid[1], self.bank.shape[1]
        count, least = int(self.ratio * rows), 2 if self.reweight else 1
        if count < least:
            raise ValueError(
                f"{normals.name}: method.ratio={self.ratio} of {rows} patches is {count}; expected at least {least}, "
                f"a ratio of {least / rows:.2g}"
            )
        memory.require(
            (rows + count) * 4 * dimensions + 16 * rows,
            self.bank.device,
            f"{normals.name}: the embedding of {rows} patches x {dimensions}, with a bank of {count},",
            "use a smaller input.resize or input.crop, deeper method.levels, or fewer training images",
        )
        return self.bank.new_empty(rows, dimensions), count

    def score(self, images: Tensor) -> Scores:
        """Squared distances to the bank, upsampled and blurred; the image score is the largest before that.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        levels = self.backbone(images)
        check_grid(levels[0].shape[-2:], self.grid)
        patches = self.embed(levels)  # (B * h * w, D)
        found = nearest(patches, self.bank, norms=self.norms)
        distances = found.distances.view(len(images), -1)  # (B, h * w)
        maps = upsampling.smooth_upsample(distances.view(-1, *self.grid), images.shape[2:], self.sigma)
        return Scores(self.reweighted(patches, found, len(images)) if self.reweight else distances.amax(dim=1), maps)

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        """Locally aware patch embeddings (B * h * w, D), section 3.1.

        A patch is described with its eight neighbours (zeros beyond the border), deeper levels are resized bilinearly
        to the first level's grid, and the levels are concatenated.

        Pooling "authors" takes their adaptive averages: over a level's C x 9 values, in channel-major order, in
        `dimensions` bins, then over the concatenated levels in `dimensions` bins again; half of the result describes
        each of two levels. Bins overlap where they do not divide the values, as with the 512 channels of WR50's level
        2, and repeat them where there are fewer, as with lite0's 40 and 112 channels. "mean" averages over the nine
        positions only.
        """
        if self.pooling == "authors":
            levels = [adaptive(level, self.dimensions) for level in levels]
        else:
            levels = [F.avg_pool2d(level, 3, stride=1, padding=1) for level in levels]
        grid = levels[0].shape[-2:]
        deeper = [F.interpolate(level, grid, mode="bilinear", align_corners=False) for level in levels[1:]]
        joined = torch.cat([levels[0], *deeper], dim=1)
        if self.pooling == "authors":
            joined = shrink(joined, self.dimensions)
        return joined.permute(0, 2, 3, 1).reshape(-1, joined.shape[1])

    def reweighted(self, patches: Tensor, found: Neighbours, batch: int) -> Tensor:
        """Image scores (B,) of equations 6 and 7, in plain (not squared) distances.

        The largest patch distance s* is multiplied by 1 minus its softmax weight among the distances of that patch to
        the AROUND entries nearest to its own nearest entry, which is one of them.
        """
        distances, images = found.distances.view(batch, -1), torch.arange(batch, device=patches.device)
        place = images * distances.shape[1] + distances.argmax(dim=1)  # of the farthest patch of each image
        star = found.distances[place, 0].sqrt()
        around = nearest(
            self.bank[found.indices[place, 0]], self.bank, min(AROUND, len(self.bank)), self.norms
        ).indices  # (B, AROUND)
        distances_around = (self.bank[around] - patches[place][:, None]).norm(dim=2)
        return (1 - torch.exp(star - distances_around.logsumexp(dim=1))) * star

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.norms = squared_lengths(self.bank)


def adaptive(level: Tensor, dimensions: int) -> Tensor:
    """(B, C, h, w) -> (B, dimensions, h, w): the C x 9 values of each 3 x 3 patch averaged in bins.

    The authors resize the C x 9 values and then average; both are linear and act on different axes, so averaging first
    is equivalent, with fewer maps to resize. Done image by image, as 9 copies of a level are large.
    """
    shape = (1, -1, *level.shape[2:])
    return torch.cat([shrink(F.unfold(one, 3, padding=1).view(shape), dimensions) for one in torch.split(level, 1)])


def shrink(maps: Tensor, channels: int) -> Tensor:
    """(B, C, h, w) -> (B, channels, h, w): torch's adaptive average pooling along the channels."""
    patches = maps.flatten(2).transpose(1, 2)  # (B, h * w, C)
    pooled = F.adaptive_avg_pool1d(patches, channels)
    return pooled.transpose(1, 2).view(len(maps), channels, *maps.shape[2:])
