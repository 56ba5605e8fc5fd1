"""Square patches of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut_patches(images: Tensor, numbers: Tensor, tops: Tensor, lefts: Tensor, side: int) -> Tensor:
    """(n, C, side, side) patches of (N, C, H, W) images, each given by its image and its upper left corner (n,)."""
    offsets = torch.arange(side, device=images.device)
    rows, columns = tops[:, None, None] + offsets[:, None], lefts[:, None, None] + offsets  # (n, side, 1), (n, 1, side)
    return images[numbers[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def cut_corners(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """(B * n, C, side, side) patches of (B, C, H, W) images at upper left corners (B, n, 2), image by image."""
    numbers = torch.arange(images.shape[0]).repeat_interleave(corners.shape[1]).to(images.device)
    tops, lefts = corners.flatten(0, 1).to(images.device).unbind(dim=1)
    return cut_patches(images, numbers, tops, lefts, side)


def random_corners(size: Sequence[int], side: int, *shape: int) -> Tensor:
    """(*shape, 2): rows and columns of upper left corners of patches within (H, W) images, on the CPU."""
    return torch.stack([torch.randint(length - side + 1, shape) for length in size], dim=-1)


def starts(side: int, patch: int, stride: int) -> Sequence[int]:
    """Where patches begin along an axis: every `stride` pixels, plus a last one at the far border."""
    return sorted({*range(0, side - patch + 1, stride), side - patch})


def patch_rows(codes: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C), contiguous."""
    return codes.permute(0, 2, 3, 1).reshape(-1, codes.shape[1]).contiguous()
