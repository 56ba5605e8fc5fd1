"""KDE: a Gaussian kernel density of the pixels of whole images, the classical baseline of one-class classification.

Emanuel Parzen 1962; as in the authors' code of Deep SVDD: Lukas Ruff, Robert Vandermeulen, Nico Goernitz, Lucas Deecke,
Shoaib Ahmed Siddiqui, Alexander Binder, Emmanuel Mueller, Marius Kloft; ICML 2018 (section 4.1).

Images are normalised in contrast, reduced by PCA, and scored by their negative log density. The bandwidth is the one
with the highest likelihood of held-out training images. The code's grid of bandwidths goes down to 2^-4.5; the paper's,
which gives the published numbers, is the default. There is no anomaly map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_bench.components.small_images import contrast_normalised, resized
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class KDE(nn.Module):
    """The density of training images as points of PCA's space.

    Args:
        size: larger images are resized to this many pixels a side (ours; the paper's images have 32).
        variance: the share of the training images' variance that PCA keeps.
        bandwidths: first and last exponent of 2, and the number of bandwidths to choose from, evenly spaced in between.
        folds: of the cross-validation that chooses the bandwidth.
        batch: images per step of fitting.
    """

    low: Tensor  # () smallest and
    span: Tensor  # () largest minus smallest value of the normalised training images
    mean: Tensor  # (D,)
    components: Tensor  # (K, D) orthonormal
    points: Tensor  # (N, K) training images
    bandwidth: Tensor  # ()

    def __init__(self, size: int, variance: float, bandwidths: Sequence[float], folds: int, batch: int = 256) -> None:
        if not 0 < variance <= 1:
            raise UsageError(f"method.variance={variance}: expected a share above 0 and at most 1")
        if len(bandwidths) != 3 or bandwidths[2] != int(bandwidths[2]) or bandwidths[2] < 1:
            raise UsageError(f"method.bandwidths={list(bandwidths)}: expected [first exponent, last exponent, number]")
        if folds < 2:
            raise UsageError(f"method.folds={folds}: expected at least 2")
        super().__init__()
        self.size, self.variance, self.folds, self.batch = size, variance, folds, batch
        first, last, count = bandwidths
        self.bandwidths = [float(2**exponent) for exponent in np.linspace(first, last, int(count))]

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create empty statistics for (C, H, W) images."""
        channels, height, width = shapes[0]
        dimensions = channels * min(height, self.size) * min(width, self.size)
        shapes_of = {"low": (), "span": (), "mean": (dimensions,), "bandwidth": ()}
        for name, shape in {**shapes_of, "components": (0, dimensions), "points": (0, 0)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, normals: TrainingSet) -> None:
        """Find the axes of PCA and the bandwidth.

        Raises:
            ValueError: fewer images than folds.
        """
        from sklearn.decomposition import PCA  # slow to import

        if len(normals) < self.folds:
            raise ValueError(
                f"{normals.name}: {len(normals)} training images; expected at least method.folds={self.folds}"
            )
        vectors = torch.cat([self.contrast(images) for images in normals.images(self.batch)])
        self.low.copy_(vectors.min())
        self.span.copy_((vectors.max() - vectors.min()).clamp(min=1e-12))
        vectors = (vectors - self.low) / self.span
        solver = "covariance_eigh" if len(vectors) > vectors.shape[1] else "full"
        pca = PCA(self.variance if self.variance < 1 else None, svd_solver=solver).fit(vectors.cpu().numpy())
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.components = torch.from_numpy(pca.components_).to(self.mean)
        points = self.project(vectors)
        self.points = points.float()
        self.bandwidth.fill_(self.best_bandwidth(points))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Negative log densities.

        Args:
            images: (B, C, H, W), of the size that was fitted.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of another size.
        """
        check_fitted(self)
        vectors = self.contrast(images)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(f"images of {vectors.shape[1]} values; expected {len(self.mean)}, as in fit")
        projected = self.project((vectors - self.low) / self.span)
        points = self.points.to(projected)
        if torch.compiler.is_compiling():  # a graph: how cdist computes depends on the number of images
            squared = (projected[:, None] - points).square().sum(dim=2)
        else:
            squared = torch.cdist(projected, points).square()
        return Scores(-log_density(squared, self.bandwidth, points.shape[1]).float(), None)

    def contrast(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) float64 (on MPS float32): minus the image's mean, divided by the absolute sum."""
        height, width = images.shape[2:]
        vectors = resized(images, (min(height, self.size), min(width, self.size))).flatten(1)
        return contrast_normalised(vectors.to(torch.float32 if images.device.type == "mps" else torch.float64))

    def project(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, K) coordinates in PCA's space."""
        return (vectors - self.mean) @ self.components.T.to(vectors)

    def best_bandwidth(self, points: Tensor) -> float:
        """The bandwidth with the highest log likelihood of held-out points, over consecutive folds.

        All bandwidths share one matrix of distances.
        """
        squared = torch.cdist(points, points).square()
        parts = torch.arange(len(squared), device=squared.device).tensor_split(self.folds)
        totals = [0.0 for _ in self.bandwidths]
        for part in parts:
            rest = torch.cat([other for other in parts if other is not part])
            distances = squared[part][:, rest]
            for number, bandwidth in enumerate(self.bandwidths):
                totals[number] += float(log_density(distances, bandwidth, points.shape[1]).sum()) / self.folds
        return self.bandwidths[totals.index(max(totals))]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """The numbers of points and components are those of the file."""
        for name in ("components", "points"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, self.mean.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def log_density(squared: Tensor, bandwidth: float | Tensor, dimensions: int) -> Tensor:
    """(B, N) squared distances to N points -> (B,) log of the mean Gaussian kernel around them."""
    count = squared.shape[1]
    width: Any
    logarithm: Any
    if torch.compiler.is_compiling():  # a graph reads no number from a tensor
        width = torch.as_tensor(bandwidth).to(squared)
        logarithm = width.log()
    else:
        width = float(bandwidth)
        logarithm = math.log(width)
    normalisation = math.log(count) + dimensions * (0.5 * math.log(2 * math.pi) + logarithm)
    result: Tensor = torch.logsumexp(squared / (-2 * width**2), dim=1) - normalisation
    return result
