"""Maps from the scores of a grid of patches.

A pixel's value is a weighted mean of the patches' scores. A weight is the product of two, one for each axis: a
(length, n) matrix for n patches along an axis of that many pixels, whose rows sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Weights = Callable[[int, Sequence[int], int], Tensor]  # of an axis' length, where its patches start, and their side


def spread(scores: Tensor, size: Sequence[int], places: Sequence[Sequence[int]], side: int, weights: Weights) -> Tensor:
    """(B, h, w) scores of patches -> (B, H, W).

    Args:
        scores: of h x w patches.
        size: (H, W) of the images.
        places: where the patches start, h rows and w columns.
        side: of the patches, in pixels.
        weights: `covering`, `gaussian` or `between`.
    """
    down, across = (weights(*axis, side).to(scores) for axis in zip(size, places, strict=True))
    return down @ scores @ across.T


def covering(length: int, starts: Sequence[int], side: int) -> Tensor:
    """Equal weights for the patches that cover a pixel."""
    offsets = torch.arange(length)[:, None] - torch.tensor(starts)
    covers = ((offsets >= 0) & (offsets < side)).float()
    return covers / covers.sum(dim=1, keepdim=True)


def gaussian(length: int, starts: Sequence[int], side: int) -> Tensor:
    """A Gaussian over each patch, whose deviation is a quarter of the side, divided by the sum of all.

    On both axes, that is a transposed convolution divided by that of a map of ones.
    """
    centres = torch.tensor(starts) + (side - 1) / 2
    distances = torch.arange(length)[:, None] - centres
    weights = torch.exp(-0.5 * (distances / (side / 4)) ** 2) * (distances.abs() < side / 2)
    return weights / weights.sum(dim=1, keepdim=True)


def between(length: int, starts: Sequence[int], side: int) -> Tensor:
    """Linear interpolation between the patches' centres, constant beyond the first and the last."""
    centres = np.array(starts) + (side - 1) / 2
    rows = [np.interp(np.arange(length), centres, unit) for unit in np.eye(len(starts))]
    return torch.from_numpy(np.stack(rows, axis=1)).float()
