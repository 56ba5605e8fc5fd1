"""Parts of one-class methods whose networks take images of a fixed, small size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear with antialiasing; images of that size are returned as they are."""
    if tuple(images.shape[2:]) == size:
        return images
    if torch.compiler.is_compiling():  # a graph: OpenVINO would resize without antialiasing
        rows, columns = (triangles(*pair) for pair in zip(images.shape[2:], size, strict=True))
        return rows @ images @ columns.T
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def triangles(length: int, side: int) -> Tensor:
    """The (side, length) matrix of bilinear resizing with antialiasing: triangles, wider where pixels get fewer."""
    scale = length / side
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) * scale
    positions = torch.arange(length, dtype=torch.float32) + 0.5
    support = torch.clamp(torch.ones(1) * scale, min=1.0)
    weights = (1 - (positions - centres[:, None]).abs() / support).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def contrast_normalised(vectors: Tensor) -> Tensor:
    """(B, D) -> (B, D): minus the row's mean, divided by the sum of the absolute values."""
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    return vectors / vectors.abs().sum(dim=1, keepdim=True).clamp(min=1e-12)


class CodeNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, D) codes; a batch of one code, which has no variance, takes the running statistics."""

    def forward(self, codes: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if self.training and len(codes) == 1:
            return F.batch_norm(codes, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(codes)
