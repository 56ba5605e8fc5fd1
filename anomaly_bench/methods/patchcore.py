"""PatchCore: Towards Total Recall in Industrial Anomaly Detection.

Karsten Roth, Latha Pemula, Joaquin Zepeda, Bernhard Schoelkopf, Thomas Brox, Peter Gehler; 2021 (CVPR 2022),
arXiv 2106.08265.

The patch embeddings of all normal images are subsampled to a coreset, the memory bank; the anomaly score of a patch is
its squared distance to the nearest entry. Where the authors' code and the paper differ, this follows the code: squared
distances, and the image score is the largest patch score before upsampling, without the paper's re-weighting
(`reweight`). The coreset is greedy k-centre, exact for distances in a random projection to 128 dimensions, and starts
with a random centre; the code approximates it, starting from the mean distance to ten random points as an upper bound.

anomalib differs from all of these: no pooling to 1024 dimensions (`pooling: mean`), a sparse random projection for the
selection, plain distances, re-weighting over 9 neighbours, a map upsampled by replication.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.coreset import k_centre
from anomaly_bench.components.neighbours import nearest, squared_lengths, take_row_counts
from anomaly_bench.components.validation import check_choice, check_fitted, check_grid, check_positive
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
        projection: dimensions in which the coreset is chosen; None: all of the embedding.
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
        projection: int | None = 128,
        reweight: bool = False,
        sigma: float = 4.0,
        batch: int = 32,
    ) -> None:
        if not 0 < ratio <= 1:
            raise UsageError(f"method.ratio={ratio}: expected a fraction of the patches, above 0 and at most 1")
        check_positive(dimensions=dimensions, projection=projection)
        check_choice("pooling", pooling, POOLINGS)
        super().__init__()
        self.backbone, self.ratio, self.seed = backbone, ratio, seed
        self.pooling, self.dimensions, self.projection = pooling, dimensions, projection
        self.reweight, self.sigma, self.batch = reweight, sigma, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create an empty bank for these (C, h, w) levels, the largest grid first."""
        width = self.dimensions if self.pooling == "authors" else sum(shape[0] for shape in shapes)
        self.grid = shapes[0][1:]
        self.shared_bins = self.pooling == "authors" and self.dimensions % len(shapes) != 0
        self.register_buffer("bank", torch.empty(0, width))
        self.register_buffer("norms", torch.empty(0), persistent=False)
        if self.pooling == "authors":
            for place, kernel in enumerate(pooling_kernels([shape[0] for shape in shapes], self.dimensions)):
                self.register_buffer(f"kernel{place}", kernel, persistent=False)

    def fit(self, normals: TrainingSet) -> None:
        """Embed every patch and keep the coreset.

        Memory holds the embedding, a float32 array (N * h * w, D), plus its projection, one batch's features, the bank,
        and about 16 bytes per patch for `k_centre`.

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
            chosen = k_centre(self.projected(embedding), count, self.seed, advance)
        self.bank = embedding[chosen]
        self.norms = squared_lengths(self.bank)

    def projected(self, embedding: Tensor) -> Tensor:
        """The (N, D) embedding in `projection` random dimensions, by weights like those of a new linear layer."""
        width = embedding.shape[1]
        if self.projection is None or self.projection >= width:
            return embedding
        uniform = torch.rand(width, self.projection, generator=torch.Generator("cpu").manual_seed(self.seed))
        return embedding @ ((2 * uniform - 1) / math.sqrt(width)).to(embedding)

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
            self.fit_bytes(len(normals)),
            self.bank.device,
            f"{normals.name}: the embedding of {rows} patches x {dimensions}, with a bank of {count},",
            "use a smaller input.resize or input.crop, deeper method.levels, or fewer training images",
        )
        return self.bank.new_empty(rows, dimensions), count

    def fit_bytes(self, images: int) -> int:
        """What `fit` takes for the embedding of this many images, its projection and the bank."""
        rows, dimensions = images * self.grid[0] * self.grid[1], self.bank.shape[1]
        return (rows + int(self.ratio * rows)) * 4 * dimensions + rows * (4 * (self.projection or 0) + 16)

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
        distances = found.distances.view(images.shape[0], -1)  # (B, h * w)
        maps = upsampling.smooth_upsample(distances.view(-1, *self.grid), images.shape[2:], self.sigma)
        image = self.reweighted(patches, found, images.shape[0]) if self.reweight else distances.amax(dim=1)
        return Scores(image, maps)

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
        grid = levels[0].shape[-2:]
        if self.pooling == "authors":
            parts = [self.pooled(level, place) for place, level in enumerate(levels)]
        else:
            parts = [F.avg_pool2d(level, 3, stride=1, padding=1) for level in levels]
        parts[1:] = [F.interpolate(part, grid, mode="bilinear", align_corners=False) for part in parts[1:]]
        joined = sum(parts, torch.zeros(())) if self.shared_bins else torch.cat(parts, dim=1)
        return joined.permute(0, 2, 3, 1).reshape(-1, joined.shape[1])

    def pooled(self, level: Tensor, place: int) -> Tensor:
        """(B, C, h, w) -> this level's (B, rows, h, w) of the pooled embedding.

        The authors resize the C x 9 values and then average; both are linear and act on different axes, so averaging
        first is equivalent, with fewer maps to resize.
        """
        kernel = self.get_buffer(f"kernel{place}")
        return F.conv2d(level, kernel, padding=1, groups=level.shape[1] // kernel.shape[1])

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


def pooling_kernels(channels: Sequence[int], dimensions: int) -> list[Tensor]:
    """Both adaptive averages as one grouped 3 x 3 convolution per level, (rows, C / groups, 3, 3) each.

    A bin of the result holds values of neighbouring channels only, so the convolutions fall apart into groups.
    """
    joined, kernels = bins(len(channels) * dimensions, dimensions), []
    apart = dimensions % len(channels) == 0  # else some bins lie in two levels, and the levels' results are added
    rows = dimensions // len(channels) if apart else dimensions
    for place, count in enumerate(channels):
        first = place * rows if apart else 0
        level = joined[first : first + rows, place * dimensions : (place + 1) * dimensions]
        groups = math.gcd(count, rows) if apart else 1
        matrix = (level @ bins(9 * count, dimensions)).view(groups, rows // groups, groups, count // groups, 3, 3)
        diagonal = torch.stack([matrix[group, :, group] for group in range(groups)])
        kernels.append(diagonal.flatten(0, 1).float())
    return kernels


def bins(values: int, count: int) -> Tensor:
    """(count, values) float64: torch's adaptive average pooling of `values` numbers in `count` bins, as a matrix."""
    number, place = torch.arange(count)[:, None], torch.arange(values)
    inside = (place >= number * values // count) & (place < -((number + 1) * -values // count))
    return inside / inside.sum(dim=1, keepdim=True, dtype=torch.float64)
