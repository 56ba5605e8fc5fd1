"""Tensor maths that methods share: feature grids, smooth upsampling, Gaussians."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
        patches = level.permute(0, 2, 3, 1)  # (B, h_l, w_l, C_l): what a channels-last tensor is in memory
        if channels is not None:  # gather takes a third of index_select's time
            patches = patches.gather(3, channels[index].expand(*patches.shape[:3], -1))
        kept = patches.permute(1, 2, 0, 3)
        rows, columns = (torch.arange(side, device=level.device) for side in (height, width))
        rows, columns = rows * kept.shape[0] // height, columns * kept.shape[1] // width
        part = grid[..., start : start + widths[index]]
        part.copy_(kept if kept.shape[:2] == (height, width) else kept[rows[:, None], columns])
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
    """Means and scatter matrices of many positions, streamed batch by batch, in place.

    Sums are taken of differences to the first batch's mean: near the true one, they lose no digits to it.

    Args:
        mean: (P, D) and
        scatter: (P, D, D), float32, overwritten: no second copy of the large one is ever made.
    """

    def __init__(self, mean: Tensor, scatter: Tensor) -> None:
        self.mean, self.scatter, self.count = mean.zero_(), scatter.zero_(), 0

    def add_(self, patches: Tensor) -> None:
        """Take in (P, B, D) patches, which are overwritten."""
        if self.count == 0:
            self.origin = patches.mean(dim=1, keepdim=True)
        patches -= self.origin
        self.mean += patches.sum(dim=1)
        self.scatter.baddbmm_(patches.transpose(1, 2), patches)
        self.count += patches.shape[1]

    def finish(self) -> None:
        """From sums to the mean and to the scatter around it."""
        self.scatter.baddbmm_(self.mean[:, :, None], self.mean[:, None], alpha=-1 / self.count)
        self.mean.div_(self.count).add_(self.origin[:, 0])


def whiten_(scatter: Tensor, divisor: float, eps: float, block_bytes: int | None = None) -> None:
    """Replace scatter matrices S (P, D, D) by W with W W^T = (S / divisor + eps I)^-1, in place.

    With the Cholesky factor L of the covariance, W = L^-T: the squared Mahalanobis distance of a row x - mean is
    then the squared length of (x - mean) W. Blocks of positions are factorised in float64.

    Args:
        block_bytes: of one block; None: what fits a core's cache, or a hundredfold on a GPU.

    Raises:
        torch.linalg.LinAlgError: a covariance is not positive definite.
    """
    dimensions = scatter.shape[-1]
    device = torch.device("cpu") if scatter.device.type == "mps" else scatter.device  # MPS has no float64
    unit = torch.eye(dimensions, dtype=torch.float64, device=device)
    on_cpu = device.type == "cpu"
    block_bytes = block_bytes or (2_000_000 if on_cpu else 200_000_000)

    def factorise_(block: Tensor) -> None:
        factor = torch.linalg.cholesky(block.to(device, torch.float64).div_(divisor).add_(unit, alpha=eps))
        block.copy_(torch.linalg.solve_triangular(factor.mT, unit.expand_as(factor), upper=True))

    blocks = torch.split(scatter, max(1, block_bytes // (8 * dimensions**2)))
    with ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1) as pool:  # LAPACK takes them one by one
        list(pool.map(factorise_, blocks))


def mahalanobis(patches: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """Distances (P, B) of (P, B, D) patches to the Gaussian of their position; `whitener` as `whiten_` leaves it."""
    return torch.bmm(patches - mean[:, None], whitener).square_().sum(dim=-1).sqrt_()


@functools.lru_cache(maxsize=32)
def position_code(channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of a grid's positions, (channels, h, w) float32; not to be changed in place.

    With w_i = 10000^(-4 i / channels), channels 2 i and 2 i + 1 are sin(w_i x) and cos(w_i x) of the column x in the
    first half, and of the row y in the second half (the code of a Transformer, one half for each axis).

    Raises:
        ValueError: a number of channels that is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"a position code of {channels} channels: expected a multiple of 4")
    frequencies = 10000.0 ** (-torch.arange(0, channels // 2, 2, dtype=torch.float64) / (channels // 2))

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (length, channels / 2)

    columns = axis(width).expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).permute(2, 0, 1).float().contiguous()


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Each image (B, C, H, W) turned counter-clockwise by its own angle (B,); nearest pixels, corners black."""
    height, width = images.shape[2:]
    angles = torch.deg2rad(degrees.to(images))
    cosine, sine, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = [cosine, -sine * height / width, none, sine * width / height, cosine, none]  # of coordinates in [-1, 1]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
