"""Tensor maths that methods share: feature grids, smooth upsampling, Gaussians."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def align(levels: Sequence[Tensor], channels: Sequence[Tensor] | None = None) -> Tensor:
    """Bring feature levels to the grid of the first by replication and concatenate their channels.

    Args:
        levels: one (B, C_l, h_l, w_l) per level, the largest grid first.
        channels: of each level, the channels to keep (before anything is copied); None: all.

    Returns:
        (h * w, B, D) contiguous, D the number of channels kept: one row of patches per grid position.
    """
    height, width = levels[0].shape[-2:]
    batch = len(levels[0])
    widths = [level.shape[1] for level in levels] if channels is None else [len(each) for each in channels]
    grid = levels[0].new_empty(height, width, batch, sum(widths))
    start = 0
    for index, level in enumerate(levels):
        kept = level if channels is None else level.index_select(1, channels[index])
        if kept.shape[-2:] != (height, width):
            kept = F.interpolate(kept, size=(height, width), mode="nearest")
        grid[..., start : start + widths[index]] = kept.permute(2, 3, 0, 1)
        start += widths[index]
    return grid.view(height * width, batch, -1)


def smooth_upsample(maps: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """Bilinear upsampling (align_corners=False), then Gaussian blur as scipy's gaussian_filter.

    Both are linear and act on rows and columns apart, so together they are one small matrix from each side.

    Args:
        maps: (B, h, w).
        size: (H, W) of the result.
        sigma: of the Gaussian in pixels of the result, truncated at 4 sigma, borders mirrored; 0: no blur.

    Returns:
        (B, H, W).
    """
    rows = upsampler(maps.shape[-2], size[0], sigma).to(maps)
    columns = upsampler(maps.shape[-1], size[1], sigma).to(maps)
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=32)
def upsampler(length: int, size: int, sigma: float) -> Tensor:
    """The matrix (size, length) of `smooth_upsample` along one axis, float32."""
    unit = torch.eye(length, dtype=torch.float64)
    matrix = F.interpolate(unit[None], size=size, mode="linear", align_corners=False)[0].T  # (size, length)
    if sigma > 0:
        matrix = gaussian(size, sigma) @ matrix
    return matrix.float()


def gaussian(size: int, sigma: float) -> Tensor:
    """The (size, size) float64 matrix of a Gaussian blur; the mirror repeats the border pixel."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    source = (torch.arange(size)[:, None] + offsets).remainder(2 * size)  # of the line and its mirror image
    source = torch.where(source < size, source, 2 * size - 1 - source)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, weights.expand(size, -1).contiguous())


class Moments:
    """Means and scatter matrices of many positions, streamed batch by batch (Chan et al. 1979).

    Args:
        mean: (P, D) and
        scatter: (P, D, D), float32, overwritten: no second copy of the large one is ever made.
    """

    def __init__(self, mean: Tensor, scatter: Tensor) -> None:
        self.mean, self.scatter, self.count = mean.zero_(), scatter.zero_(), 0

    def add(self, patches: Tensor) -> None:
        """Take in (P, B, D) patches: scatter += sum of (x - batch mean)^2 + n m / (n + m) (difference of means)^2."""
        batch = patches.shape[1]
        total = self.count + batch
        batch_mean = patches.mean(dim=1)
        shift = batch_mean - self.mean
        rows = torch.cat([patches - batch_mean[:, None], math.sqrt(self.count * batch / total) * shift[:, None]], 1)
        self.scatter.baddbmm_(rows.transpose(1, 2), rows)
        self.mean += shift * (batch / total)
        self.count = total


def whiten_(scatter: Tensor, divisor: float, eps: float, block_bytes: int = 64_000_000) -> None:
    """Replace scatter matrices S (P, D, D) by W with W W^T = (S / divisor + eps I)^-1, in place.

    With the Cholesky factor L of the covariance, W = L^-T: the squared Mahalanobis distance of a row x - mean is
    then the squared length of (x - mean) W. Blocks of positions are factorised in float64.

    Raises:
        torch.linalg.LinAlgError: a covariance is not positive definite.
    """
    dimensions = scatter.shape[-1]
    device = "cpu" if scatter.device.type == "mps" else scatter.device  # MPS has no float64
    unit = torch.eye(dimensions, dtype=torch.float64, device=device)
    step = max(1, block_bytes // (8 * dimensions**2))
    for start in range(0, len(scatter), step):
        block = scatter[start : start + step]
        factor = torch.linalg.cholesky(block.to(device, torch.float64).div_(divisor).add_(eps * unit))
        block.copy_(torch.linalg.solve_triangular(factor.mT, unit.expand_as(factor), upper=True))


def mahalanobis(patches: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """Distances (P, B) of (P, B, D) patches to the Gaussian of their position; `whitener` as `whiten_` leaves it."""
    return torch.bmm(patches - mean[:, None], whitener).square_().sum(dim=-1).sqrt_()
