"""Fixed sine-cosine position encoding on a grid."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=32)
def position_code(channels: int, height: int, width: int) -> Tensor:
    """Sine-cosine encoding of a grid, (channels, h, w) float32; cached, so do not modify it in place.

    With w_i = 10000^(-4 i / channels), channels 2 i and 2 i + 1 are sin(w_i x) and cos(w_i x) of the column x in the
    first half, and of the row y in the second half (the Transformer encoding, one half per axis).

    Raises:
        ValueError: the number of channels is not a multiple of 4.
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
