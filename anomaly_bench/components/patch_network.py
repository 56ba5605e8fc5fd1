"""Networks that describe all of an image's patches at once (Bergmann et al. 2020, arXiv 1911.02357).

Kernels that the paper prints and that do not fit its patches are corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.small_images import resized

LAYERS: dict[int, tuple[tuple[int, int] | None, ...]] = {  # by patch: kernels, and channels / width; None: a pool
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), None, (5, 2), None, (2, 2), (4, 1)),
    65: ((5, 1), None, (5, 1), None, (5, 1), None, (4, 2), (1, 1)),
}
FIELDS = {17: 17, 33: 32, 65: 60}  # pixels that a descriptor depends on: pools drop the last ones of a patch
SLOPE = 0.005  # of the leaky ReLUs


class PatchNetwork(nn.Module):
    """Describes every patch of an image in one pass: pools keep the grid, and layers after them are dilated instead.

    Leaky ReLUs follow all convolutions but the last.

    Args:
        patch: side in pixels, 17, 33 or 65.
        width: channels of descriptors; other layers have as many or twice that.

    Attributes:
        most: the stride at which all pools are ordinary ones, so that a patch has one descriptor.
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch, self.layers, inputs = patch, nn.ModuleList(), 3
        for layer in LAYERS[patch]:
            if layer is None:
                self.layers.append(nn.Identity())  # a pool
                continue
            kernel, factor = layer
            self.layers.append(nn.Conv2d(inputs, factor * width, kernel))
            inputs = factor * width
        self.most = 2 ** LAYERS[patch].count(None)

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

    def dense(self, images: Tensor, stride: int) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w): descriptors of the patches around the middle of cells of `stride` pixels."""
        return self.forward(*self.view(images, stride))

    def view(
        self, images: Tensor, stride: int, shift: Sequence[int] | None = None, crop: int | None = None
    ) -> tuple[Tensor, int]:
        """(B, 3, H, W) images padded by reflection for the network, and the stride it then takes.

        Descriptors are of the patches around pixels shift, shift + stride, and so on, below shift + crop; by default
        around the middle of cells of that size. Images no larger than a patch are resized to it: one descriptor.
        """
        if max(images.shape[2:]) <= self.patch:
            return resized(images, (self.patch, self.patch)), self.most
        top, left = (stride // 2, stride // 2) if shift is None else shift
        before = self.patch // 2
        after = FIELDS[self.patch] - 1 - before
        padded = F.pad(images, (before, after, before, after), mode="reflect")[:, :, top:, left:]
        return padded if crop is None else padded[:, :, : crop + before + after, : crop + before + after], stride
