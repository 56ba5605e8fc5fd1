"""Square patches of images, and networks that describe all of an image's patches at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.005  # of the leaky ReLUs


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


class PatchNetwork(nn.Module):
    """Describes every patch of an image in one pass: pools keep the grid, and layers after them are dilated instead.

    Leaky ReLUs follow all convolutions but the last.

    Args:
        layers: kernels, and channels divided by `width`, of the convolutions; None: a pool of 2 x 2.
        width: channels.

    Attributes:
        most: the stride at which all pools are ordinary ones, so that a patch has one descriptor.
    """

    def __init__(self, layers: Sequence[tuple[int, int] | None], width: int) -> None:
        super().__init__()
        self.layers, inputs = nn.ModuleList(), 3
        for layer in layers:
            if layer is None:
                self.layers.append(nn.Identity())  # a pool
                continue
            kernel, factor = layer
            self.layers.append(nn.Conv2d(inputs, factor * width, kernel))
            inputs = factor * width
        self.most = 2 ** list(layers).count(None)

    def forward(self, images: Tensor, stride: int) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w): descriptors of patches whose corners are `stride` pixels apart, not padded."""
        step = dilation = 1
        for number, layer in enumerate(self.layers):
            if isinstance(layer, nn.Conv2d):
                last = number == len(self.layers) - 1
                left = stride // step if last else 1
                images = F.conv2d(images, layer.weight, layer.bias, left, dilation=dilation)
                images = images if last else F.leaky_relu(images, SLOPE)
            elif step < stride:
                images, step = F.max_pool2d(images, 2), 2 * step
            else:
                images, dilation = F.max_pool2d(images, 2, stride=1, dilation=dilation), 2 * dilation
        return images
