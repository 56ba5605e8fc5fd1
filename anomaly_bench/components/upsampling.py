"""Alignment of feature grids, and upsampling of score maps with Gaussian blur."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def align(levels: Sequence[Tensor], channels: Sequence[Tensor] | None = None) -> Tensor:
    """Bring feature levels to the first level's grid by replication and concatenate their channels.

    Args:
        levels: one (B, C_l, h_l, w_l) per level, the largest grid first.
        channels: channels of each level to keep (selected before anything is copied); None: all.

    Returns:
        (h * w, B, D) contiguous, D the number of channels kept: one row of patches per grid position.
    """
    height, width = levels[0].shape[-2:]
    batch = levels[0].shape[0]
    widths = [level.shape[1] for level in levels] if channels is None else [len(indices) for indices in channels]
    grid = levels[0].new_empty(height, width, batch, sum(widths))
    start = 0
    for index, level in enumerate(levels):
        patches = level.permute(0, 2, 3, 1)  # (B, h_l, w_l, C_l), the memory layout of channels-last tensors
        if channels is not None:  # gather takes a third of index_select's time
            patches = patches.gather(3, channels[index].expand(*patches.shape[:3], -1))
        cells = patches.permute(1, 2, 0, 3)
        rows, columns = (torch.arange(side, device=level.device) for side in (height, width))
        rows, columns = rows * cells.shape[0] // height, columns * cells.shape[1] // width
        part = grid[..., start : start + widths[index]]
        part.copy_(cells if cells.shape[:2] == (height, width) else cells[rows[:, None], columns])
        start += widths[index]
    return grid.view(height * width, batch, -1)


def smooth_upsample(maps: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """Bilinear upsampling (align_corners=False), then Gaussian blur as in scipy's gaussian_filter.

    Both are linear and separable, so together they are one small matrix on each side.

    Args:
        maps: (B, h, w).
        size: (H, W) of the result.
        sigma: of the Gaussian in output pixels, truncated at 4 sigma, reflected at borders; 0: no blur.

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
    """The (size, size) float64 matrix of a Gaussian blur; reflection repeats the border pixel."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    source = mirrored(torch.arange(size)[:, None] + offsets, size)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, weights.expand(size, -1).contiguous())


def mirrored(places: Tensor, length: int) -> Tensor:
    """Where places beyond an axis of that length are reflected to, which repeats the border pixel."""
    source = places.remainder(2 * length)  # in the line and its mirror image
    return torch.where(source < length, source, 2 * length - 1 - source)
