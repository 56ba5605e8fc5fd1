"""Means, covariances and Mahalanobis distances."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from anomaly_bench.hardware.torch_setup import float64_device


class Moments:
    """Means and scatter matrices of many positions, accumulated batch by batch, in place.

    The sums are of differences from the first batch's mean: it is close to the true mean, so no digits are lost.

    Args:
        mean: (P, D) float32, overwritten.
        scatter: (P, D, D) float32, overwritten; this large array is never copied.
    """

    def __init__(self, mean: Tensor, scatter: Tensor) -> None:
        self.mean, self.scatter, self.count = mean.zero_(), scatter.zero_(), 0

    def add_(self, patches: Tensor) -> None:
        """Add (P, B, D) patches, which are overwritten."""
        if self.count == 0:
            self.origin = patches.mean(dim=1, keepdim=True)
        patches -= self.origin
        self.mean += patches.sum(dim=1)
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
