"""Means, covariances and Mahalanobis distances."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from anomaly_bench.hardware.torch_setup import float64_device

LEAST = 3  # vectors for a `Gaussian`: two are symmetric about their mean, so the shrinkage cannot be estimated


class Moments:
    """Means and scatter matrices of many positions, accumulated batch by batch, in place.

    The sums are of differences from the first batch's mean: it is close to the true mean, so no digits are lost.

    Args:
        mean: (P, D) float32, overwritten.
        scatter: (P, D, D) float32, overwritten; this large array is never copied.
    """

    def __init__(self, mean: Tensor, scatter: Tensor) -> None:
        self.mean, self.scatter, self.count = mean.zero_(), scatter, 0

    def add_(self, patches: Tensor) -> None:
        """Add (P, B, D) patches, which are overwritten."""
        if self.count == 0:
            self.origin = patches.mean(dim=1, keepdim=True)
        patches -= self.origin
        self.mean += patches.sum(dim=1)
        if self.count == 0:
            torch.bmm(patches.transpose(1, 2), patches, out=self.scatter)
        else:
            self.scatter.baddbmm_(patches.transpose(1, 2), patches)
        self.count += patches.shape[1]

    def finish(self) -> None:
        """Turn the sums into the mean and the scatter about it."""
        self.scatter.baddbmm_(self.mean[:, :, None], self.mean[:, None], alpha=-1 / self.count)
        self.mean.div_(self.count).add_(self.origin[:, 0])


def whiten_(scatter: Tensor, divisor: float, eps: float, block_bytes: int | None = None) -> None:
    """Replace scatter matrices S (P, D, D) by W with W W^T = (S / divisor + eps I)^-1, in place.

    With the Cholesky factor L of the covariance, W = L^-T, so the squared Mahalanobis distance of a row x is the
    squared length of (x - mean) W. Positions are factorised in blocks, in float64.

    Args:
        block_bytes: size of a block; None: what fits in a core's cache, or 100 times that on a GPU.

    Raises:
        torch.linalg.LinAlgError: a covariance is not positive definite.
    """
    dimensions = scatter.shape[-1]
    device = float64_device(scatter.device)
    unit = torch.eye(dimensions, dtype=torch.float64, device=device)
    on_cpu = device.type == "cpu"
    block_bytes = block_bytes or (2_000_000 if on_cpu else 200_000_000)

    def factorise_(block: Tensor) -> None:
        factor = torch.linalg.cholesky(block.to(device, torch.float64).div_(divisor).add_(unit, alpha=eps))
        block.copy_(torch.linalg.solve_triangular(factor.mT, unit.expand_as(factor), upper=True))

    blocks = torch.split(scatter, max(1, block_bytes // (8 * dimensions**2)))
    with ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1) as pool:  # LAPACK does them one at a time
        list(pool.map(factorise_, blocks))


def whiten_task_(scatter: Tensor, divisor: float, eps: float, name: str) -> None:
    """`whiten_` for a method with a setting `eps`.

    Args:
        name: of the task.

    Raises:
        ValueError: a covariance is singular despite `eps`.
    """
    try:
        whiten_(scatter, divisor, eps)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined] # torch's stubs lack it
        raise ValueError(f"{name}: a covariance is singular; set method.eps above {eps}") from error


def mahalanobis(patches: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """Distances (P, B) of (P, B, D) patches from their position's Gaussian; `whitener` comes from `whiten_`."""
    return torch.bmm(patches - mean[:, None], whitener).square_().sum(dim=-1).sqrt_()


class Gaussian(nn.Module):
    """One Gaussian of D dimensions.

    Ledoit-Wolf shrinkage makes its covariance invertible even with fewer vectors than dimensions.
    """

    mean: Tensor  # (1, D)
    whitener: Tensor  # (1, D, D), W with W W^T = covariance^-1

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(1, dimensions))
        self.register_buffer("whitener", torch.empty(1, dimensions, dimensions))

    def forward(self, features: Tensor) -> Tensor:
        """Mahalanobis distances (B,) of (B, D) features."""
        return mahalanobis(features[None], self.mean, self.whitener)[0]

    def fit(self, features: Tensor, name: str) -> None:
        """Estimate from (N, D) features in float64; `name` is the task's.

        Raises:
            ValueError: all features are the same.
        """
        from sklearn.covariance import LedoitWolf  # slow to import (about 1 s)

        if torch.equal(features, features[:1].expand_as(features)):
            raise ValueError(
                f"{name}: all {len(features)} training images have the same features; add different images"
            )
        estimator = LedoitWolf(store_precision=False).fit(features.cpu().double().numpy())
        whitener = torch.from_numpy(estimator.covariance_)[None]
        whiten_(whitener, divisor=1, eps=0)
        self.mean.copy_(torch.from_numpy(estimator.location_)[None])
        self.whitener.copy_(whitener)
