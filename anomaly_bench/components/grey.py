"""Grey values of colour images."""

from __future__ import annotations

import torch
from torch import Tensor


def to_grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), with the weights of ITU-R BT.601; three equal channels give their value."""
    red, green, blue = torch.split(images, 1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
