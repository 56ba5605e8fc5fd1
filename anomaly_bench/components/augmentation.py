"""Training-image augmentations that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image (B, C, H, W) counter-clockwise by its own angle (B,); nearest pixels, black corners."""
    height, width = images.shape[2:]
    angles = torch.deg2rad(degrees.to(images))
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]  # for coordinates in [-1, 1]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
