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


def starts(side: int, patch: int, stride: int) -> Sequence[int]:
    """Where patches begin along an axis: every `stride` pixels, plus a last one at the far border."""
    return sorted({*range(0, side - patch + 1, stride), side - patch})
