"""Augmentations of training images that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Each image (B, C, H, W) turned counter-clockwise by its own angle (B,); nearest pixels, corners black."""
    height, width = images.shape[2:]
    angles = torch.deg2rad(degrees.to(images))
    cosine, sine, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = [cosine, -sine * height / width, none, sine * width / height, cosine, none]  # of coordinates in [-1, 1]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
