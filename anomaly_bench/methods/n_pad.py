"""N-pad: Neighboring Pixel-based Industrial Anomaly Detection.

JunKyu Jang, Eugene Hwang, Sung-Hyuk Park; 2022, arXiv 2210.08768.

As in PaDiM, a Gaussian belongs to each position of the feature grid; here it is fitted to the embeddings of the
position and its neighbours, and a patch is compared with the Gaussians of its own neighbourhood, which tolerates slight
misalignment. The second part of the score is the Euclidean distance to the nearest centroid of all normal embeddings.

A reconstruction: there is no code, and only the abstract and the tables were at hand. They fix the two distributions,
that neighbours count in training and evaluation, and the two distances; everything else is a choice of ours, named in
the YAML's `about.evidence` and an argument below. With windows of 1 and no weight for the centroids it is PaDiM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anomaly_bench.components import gaussian, upsampling
from anomaly_bench.components.clustering import k_means
from anomaly_bench.components.embedding import draw_dimensions, embed
from anomaly_bench.components.neighbours import nearest, take_row_counts
from anomaly_bench.components.validation import check_count, check_fitted, check_grid
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware.torch_setup import float64_device
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

GATHERED = 32_000_000  # bytes of neighbouring embeddings at a time


class NPad(nn.Module):
    """N-pad.

    Args:
        backbone: a frozen network read at three levels.
        dimensions, eps, sigma: as of PaDiM.
        seed: for drawing the dimensions and the embeddings to cluster, and for k-means.
        fit_window: side of the neighbourhood, in grid cells, whose embeddings a Gaussian is fitted to.
        test_window: side of the neighbourhood whose Gaussians a patch is compared with; the smallest distance counts.
        centroids: as a share of the normal embeddings.
        most_centroids: at most this many.
        cells: embeddings that are clustered, at most.
        rounds: of k-means.
        centroid_weight: of the distance to the nearest centroid; both distances are standardised on the normal images.
        batch: images per step of fitting.
    """

    chosen: Tensor  # (D,) indices of embedding dimensions, ascending
    mean: Tensor  # (h * w, D)
    whitener: Tensor  # (h * w, D, D), W with W W^T = covariance^-1
    centres: Tensor  # (K, D)
    terms: Tensor  # (2, 2) mean and deviation of the two distances on the normal images

    def __init__(
        self,
        backbone: Features,
        dimensions: int,
        seed: int,
        fit_window: int = 3,
        test_window: int = 3,
        centroids: float = 0.01,
        most_centroids: int = 2000,
        cells: int = 200_000,
        rounds: int = 20,
        centroid_weight: float = 1.0,
        eps: float = 0.01,
        sigma: float = 4.0,
        batch: int = 32,
    ) -> None:
        for key, side in (("fit_window", fit_window), ("test_window", test_window)):
            if side < 1 or side % 2 == 0:
                raise UsageError(f"method.{key}={side}: expected an odd number of grid cells, such as 3")
        if not 0 < centroids <= 1 or most_centroids < 1 or cells < 1:
            raise UsageError(
                f"method.centroids={centroids}, most_centroids={most_centroids}, cells={cells}: "
                "expected a share above 0 and at most 1, and numbers of at least 1"
            )
        super().__init__()
        self.backbone, self.dimensions, self.seed = backbone, dimensions, seed
        self.fit_window, self.test_window = fit_window, test_window
        self.centroids, self.most_centroids, self.cells, self.rounds = centroids, most_centroids, cells, rounds
        self.centroid_weight, self.eps, self.sigma, self.batch = centroid_weight, eps, sigma, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate the statistics for these (C, h, w) levels, the largest grid first.

        Raises:
            UsageError: fewer channels than dimensions.
        """
        self.grid = shapes[0][1:]
        positions = self.grid[0] * self.grid[1]
        self.register_buffer("chosen", draw_dimensions(self.dimensions, shapes, self.seed))
        self.register_buffer("mean", torch.empty(positions, self.dimensions))
        self.register_buffer("whitener", torch.empty(positions, self.dimensions, self.dimensions))
        self.register_buffer("centres", torch.empty(0, self.dimensions))
        self.register_buffer("terms", torch.empty(2, 2))

    def fit(self, normals: TrainingSet) -> None:
        """Fit the Gaussians, cluster the embeddings, and standardise both distances on the normal images.

        Raises:
            ValueError: fewer than two images; a covariance that is singular despite `eps`.
        """
        check_count(normals, 2, "N-pad's covariance")
        sample = self.fit_gaussians(normals)
        count = max(1, round(self.centroids * len(normals) * len(self.mean)))
        self.centres = k_means(sample, min(count, self.most_centroids, len(sample)), self.seed, self.rounds)
        found = [
            self.distances(embed(levels, self.chosen)).flatten(1).cpu().double()
            for levels in normals.features(self.backbone, self.batch)
        ]
        deviation, mean = torch.std_mean(torch.cat(found, dim=1), dim=1, correction=0)
        self.terms.copy_(torch.stack([mean, torch.where(deviation > 0, deviation, 1.0)]))

    def fit_gaussians(self, normals: TrainingSet) -> Tensor:
        """Fit the Gaussians, and return the embeddings (n, D) to cluster, drawn from all positions and images."""
        total = len(normals) * len(self.mean)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = torch.randperm(total, generator=generator)[: self.cells].sort().values
        moments, parts = gaussian.Moments(self.mean, self.whitener), []
        for levels in normals.features(self.backbone, self.batch):
            patches = embed(levels, self.chosen)  # (h * w, B, D)
            first, size = moments.count * len(patches), patches.shape[0] * patches.shape[1]
            rows = drawn[(drawn >= first) & (drawn < first + size)] - first
            parts.append(patches.flatten(0, 1)[rows.to(patches.device)])
            moments.add_(patches)
        moments.finish()
        divisor = moments.count - 1.0
        if self.fit_window > 1:
            pool_windows_(self.mean, self.whitener, moments.count, self.grid, self.fit_window)
            divisor = 1.0
        gaussian.whiten_task_(self.whitener, divisor, self.eps, normals.name)
        return torch.cat(parts)

    def score(self, images: Tensor) -> Scores:
        """The weighted sum of both standardised distances, upsampled and blurred; the image score is the maximum.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        levels = self.backbone(images)
        check_grid(levels[0].shape[-2:], self.grid)
        mean, deviation = self.terms[:, :, None, None]
        position, centroid = (self.distances(embed(levels, self.chosen)) - mean) / deviation  # (h * w, B) each
        combined = position + self.centroid_weight * centroid
        maps = upsampling.smooth_upsample(combined.T.view(-1, *self.grid), images.shape[2:], self.sigma)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def distances(self, patches: Tensor) -> Tensor:
        """(h * w, B, D) -> (2, h * w, B): to the Gaussians of the window, and to the nearest centroid."""
        found = nearest(patches.flatten(0, 1), self.centres).distances.sqrt()
        return torch.stack([self.position_distances(patches), found.view(patches.shape[:2])])

    def position_distances(self, patches: Tensor) -> Tensor:
        """(h * w, B, D) -> (h * w, B): the smallest Mahalanobis distance to a Gaussian of the window around a patch.

        Each Gaussian is read once, for all patches of its window.
        """
        around = window_cells(self.grid, self.test_window).to(patches.device)  # (h * w, cells)
        smallest = torch.full_like(patches[..., 0], torch.inf)
        step = len(patches)
        if not torch.compiler.is_compiling():  # a graph has no loops
            step = max(1, GATHERED // (patches[0].nbytes * around.shape[1]))
        for start in range(0, len(patches), step):
            part = slice(start, start + step)
            cells = around[part]
            rows = patches[cells].flatten(1, 2)  # (positions, cells * B, D)
            found = gaussian.mahalanobis(rows, self.mean[part], self.whitener[part]).view(-1, patches.shape[1])
            smallest.scatter_reduce_(0, cells.flatten()[:, None].expand_as(found), found, "amin")
        return smallest

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def window_cells(grid: tuple[int, int], window: int) -> Tensor:
    """(h * w, window^2) the cells around each; beyond the border its own border cells stand again."""
    offsets = torch.arange(window) - window // 2
    rows, columns = ((torch.arange(side)[:, None] + offsets).clamp(0, side - 1) for side in grid)
    return (rows[:, None, :, None] * grid[1] + columns[None, :, None, :]).view(-1, window**2)


def pool_windows_(mean: Tensor, scatter: Tensor, count: int, grid: tuple[int, int], window: int) -> None:
    """Replace means and scatter matrices by the means and covariances of all samples in the window around each cell.

    Windows end at the border. Sums are made in float64, of differences from the mean of all cells.

    Args:
        mean: (h * w, D).
        scatter: (h * w, D, D), about the means.
        count: samples of each cell.
    """
    device = float64_device(scatter.device)
    before = mean.to(device, torch.float64)
    origin = before.mean(dim=0)
    before = before - origin
    samples = count * box_sum(before.new_ones(len(before), 1), grid, window)  # (h * w, 1)
    pooled = count * box_sum(before, grid, window) / samples
    dimensions = mean.shape[1]
    for rows in torch.split(torch.arange(dimensions), max(1, 1000 // dimensions)):  # a few at a time, for memory
        about_origin = scatter[:, rows].to(device, torch.float64) + count * before[:, rows, None] * before[:, None]
        sums = box_sum(about_origin.flatten(1), grid, window).view_as(about_origin)
        sums -= samples[..., None] * pooled[:, rows, None] * pooled[:, None]
        scatter[:, rows] = (sums / (samples[..., None] - 1)).to(scatter)
    mean.copy_(pooled + origin)


def box_sum(values: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """(h * w, K) -> (h * w, K): sums over the window around each cell, as a matrix of zeros and ones on each side."""
    rows, columns = (
        (torch.arange(side)[:, None] - torch.arange(side)).abs().le(window // 2).to(values) for side in grid
    )
    summed = rows @ values.view(grid[0], -1)
    return (columns @ summed.view(*grid, -1)).view_as(values)
