"""Stains: small discs and rectangles of random colours.

All random numbers come from torch's global CPU generator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stained(patches: Tensor, most: int = 3, sides: tuple[int, int] = (3, 8)) -> Tensor:
    """(B, 3, H, W) in [0, 1] with one to `most` discs or rectangles each, of random colours and opacities.

    Args:
        sides: smallest and largest, in pixels.
    """
    count, _, height, width = patches.shape
    offsets = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    drawn = torch.randint(1, most + 1, (count, 1, 1, 1))
    for number in range(most):
        lengths = torch.randint(sides[0], sides[1] + 1, (count, 2, 1, 1))
        centres = torch.rand(count, 2, 1, 1) * torch.tensor([height, width]).view(2, 1, 1)
        away = (offsets - centres).abs() * 2 / lengths  # in half sides
        is_disc = torch.rand(count, 1, 1) < 0.5
        inside = torch.where(is_disc, away.square().sum(dim=1).sqrt(), away.amax(dim=1)) <= 1
        opacity = (0.5 + 0.5 * torch.rand(count, 1, 1, 1)) * (inside[:, None] & (number < drawn))
        patches = patches + opacity * (torch.rand(count, 3, 1, 1) - patches)
    return patches
