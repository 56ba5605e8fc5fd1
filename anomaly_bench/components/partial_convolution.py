"""Partial convolutions (Liu et al. 2018, arXiv 1804.07723), and a network that predicts what it cannot see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (3, 16, 32, 32, 64, 64, 128, 128, 128)  # channels of the network's layers
KERNELS = (5, 3, 3, 3, 3, 3, 3, 3)
POOLED = (0, 2, 4)  # layers before a pool
STRIDE = 16  # of all layers: 2 of the first one, and of the pools


class GlobalNetwork(nn.Module):
    """Predicts the descriptions of hidden squares from the image around them.

    Pixels of the squares are multiplied by zero, and cells that saw nothing else stay hidden, so that what is in the
    squares cannot change the predictions. They are read where each square is, beside the mean over the image.

    Args:
        code: dimensions of the description.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        sizes = zip(WIDTHS[:-1], WIDTHS[1:], KERNELS, strict=True)
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride=2 if number == 0 else 1, padding=kernel // 2)
            for number, (inputs, outputs, kernel) in enumerate(sizes)
        )
        self.last = nn.Linear(2 * WIDTHS[-1], code)

    def forward(self, images: Tensor, corners: Tensor, side: int) -> Tensor:
        """(B, 3, H, W) normalised images, (B, n, 2) corners of what is hidden -> (B * n, code), image by image."""
        visible = 1 - holes(images, corners, side)
        cells = images
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Conv2d)
            cells, visible = partial_convolution(cells, visible, layer)
            cells = F.relu(cells)
            if number in POOLED:
                cells, visible = F.max_pool2d(cells, 2), F.max_pool2d(visible, 2)
        centres = ((corners.flatten(0, 1) + side // 2) // STRIDE).to(images.device)
        rows, columns = (centres[:, axis].clamp(max=cells.shape[2 + axis] - 1) for axis in (0, 1))
        numbers = torch.arange(len(cells), device=cells.device).repeat_interleave(corners.shape[1])
        here = cells[numbers, :, rows, columns]
        everywhere = (cells.sum(dim=(2, 3)) / visible.sum(dim=(2, 3)).clamp(min=1))[numbers]
        predicted: Tensor = self.last(torch.cat([here, everywhere], dim=1))
        return predicted


def partial_convolution(cells: Tensor, visible: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Convolve what is visible (B, 1, h, w), scaled by the window's share of it; and where anything was.

    Cells whose window saw nothing are 0, without bias. Padding is hidden.
    """
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    share = F.avg_pool2d(visible, kernel, stride, padding)
    seen = (share > 0).to(share)
    sums = F.conv2d(cells * visible, layer.weight, None, stride, padding)
    return (sums / share.clamp(min=1 / (2 * kernel**2)) + layer.get_parameter("bias")[:, None, None]) * seen, seen


def holes(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """(B, 1, H, W) float: 1 in the squares at each image's corners (B, n, 2)."""
    tops, lefts = corners.to(images.device)[..., None].unbind(dim=2)
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    down = (rows >= tops) & (rows < tops + side)
    across = (columns >= lefts) & (columns < lefts + side)
    return (down[..., :, None] & across[..., None, :]).any(dim=1).to(images)[:, None]
