"""SMAI: Superpixel Masking and Inpainting for Self-Supervised Anomaly Detection.

Zhenyu Li, Ning Li, Kaitao Jiang, Zhiheng Ma, Xing Wei, Xiaopeng Hong, Yihong Gong; BMVC 2020.

A network learns to restore random superpixels of normal images that are hidden from it. When scoring, each superpixel
is hidden and restored by itself; the error within it is the map.

Only the abstract is known, and there is no public code: a reconstruction. Ours are the superpixels (SLIC, of two sizes,
whose maps are averaged, as a defect larger than its superpixel shows the network how to restore it), the network (a
U-Net that is told where the hole is), the loss, and how errors are measured and smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import slic
from torch import Tensor, nn

from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

COMPACTNESS, SIGMA = 10.0, 1.0  # of SLIC: weight of distances in space, and deviation of the blur before
STRIDE = 16  # of the network's deepest stage
CHUNK = 16  # superpixels that are restored at once


class SMAI(nn.Module):
    """SMAI.

    Args:
        epochs, lr, batch: for training with Adam.
        segments: about how many superpixels an image is divided into, for each of the maps that are averaged.
        share: of an image's superpixels that are hidden at most in training.
        anchor: weight of the error at visible pixels in the loss.
        width: channels of the network's first stage.
        window: side of the mean filter that smooths the map, in pixels; odd.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-3,
        batch: int = 8,
        segments: Sequence[int] = (64, 16),
        share: float = 0.25,
        anchor: float = 0.1,
        width: int = 16,
        window: int = 7,
    ) -> None:
        if not segments or min(segments) < 1:
            raise UsageError(f"method.segments={list(segments)}: expected numbers of at least 1, such as [64,16]")
        if not 0 < share <= 1:
            raise UsageError(f"method.share={share}: expected a share above 0 and at most 1")
        if window < 1 or window % 2 == 0:
            raise UsageError(f"method.window={window}: expected an odd number of pixels, such as 7")
        super().__init__()
        self.epochs, self.lr, self.batch, self.segments = epochs, lr, batch, segments
        self.share, self.anchor, self.width, self.window = share, anchor, width, window

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for (3, H, W) images.

        Raises:
            UsageError: a side that cannot be halved four times.
        """
        check_sides("SMAI", shapes[0][1:], STRIDE)
        network = Inpainting(self.width)
        self.network = network.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to restore random superpixels; each image is divided once.

        Raises:
            ValueError: the loss is not finite.
        """
        labels = torch.cat([self.divided(images) for images in normals.images(self.batch)])
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                images = normals.select(numbers)
                epoch.step(self.loss(images, self.draw(labels[numbers]).to(images)))
        loop.spread = self.spread(normals, labels)
        self.facts = loop.facts

    @torch.no_grad()
    def spread(self, normals: TrainingSet, labels: Tensor) -> float | None:
        """See `output_spread`, of the first training images with random superpixels hidden."""
        numbers = torch.arange(min(self.batch, len(normals)))
        images = normals.select(numbers)
        return output_spread(self.restore(images, self.draw(labels[numbers]).to(images)), images)

    def divided(self, images: Tensor) -> Tensor:
        """(B, S, H, W) int16: the superpixel of each pixel, for each of the numbers of segments."""
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        return torch.stack([torch.stack([superpixels(image, count) for count in self.segments]) for image in pixels])

    def draw(self, labels: Tensor) -> Tensor:
        """(B, S, H, W) superpixels -> (B, 1, H, W) bool: some of one of the divisions of each image."""
        masks = []
        for each in labels:
            division = each[int(torch.randint(len(each), ()))].long()
            count = int(division.max()) + 1
            hidden = torch.zeros(count, dtype=torch.bool)
            hidden[torch.randperm(count)[: int(torch.randint(max(1, int(self.share * count)), ())) + 1]] = True
            masks.append(hidden[division])
        return torch.stack(masks)[:, None]

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Mean absolute error () of hidden pixels, and, with a small weight, that of visible ones.

        Args:
            images: (B, 3, H, W).
            masks: (B, 1, H, W) float, 1: hidden.
        """
        errors = (self.restore(images, masks) - images).abs().mean(dim=1, keepdim=True)
        hidden = (errors * masks).sum() / masks.sum()
        return hidden + self.anchor * (errors * (1 - masks)).sum() / (1 - masks).sum().clamp(min=1)

    def restore(self, images: Tensor, masks: Tensor) -> Tensor:
        """(B, 3, H, W) from what is visible of them, and from the masks (B, 1, H, W) float."""
        restored: Tensor = self.network(torch.cat([images * (1 - masks), masks], dim=1))
        return restored

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Each superpixel's error when it alone is hidden, smoothed; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that are not multiples of 16.
        """
        check_fitted(self)
        check_sides("SMAI", images.shape[2:], STRIDE)
        divided = self.divided(images).to(images.device)
        errors = torch.stack(
            [
                torch.stack([self.errors(image, labels) for labels in divisions]).mean(dim=0)
                for image, divisions in zip(images, divided, strict=True)
            ]
        )
        maps = F.avg_pool2d(errors, self.window, 1, self.window // 2, count_include_pad=False)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def errors(self, image: Tensor, labels: Tensor) -> Tensor:
        """(H, W) mean absolute errors of a (3, H, W) image, whose superpixels (H, W) are hidden in turn."""
        total = torch.zeros_like(image[0])
        for numbers in torch.split(torch.arange(int(labels.max()) + 1, device=image.device), CHUNK):
            masks = (labels == numbers[:, None, None])[:, None].to(image)
            restored = self.restore(image.expand(len(masks), -1, -1, -1), masks)
            total += ((restored - image).abs().mean(dim=1) * masks[:, 0]).sum(dim=0)
        return total


def superpixels(image: np.ndarray[tuple[int, ...], np.dtype[np.float32]], count: int) -> Tensor:
    """(H, W, 3) in [0, 1] -> (H, W) int16: about `count` superpixels, numbered from 0."""
    found = slic(image, count, COMPACTNESS, sigma=SIGMA, start_label=0)
    return torch.from_numpy(found.astype(np.int16))


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Inpainting(nn.Module):
    """U-Net: (B, 4, H, W) image with a hole and the hole's mask -> (B, 3, H, W) in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.first, self.last = double(4, width), nn.Conv2d(width, 3, 1)
        self.down = nn.ModuleList(double(*pair) for pair in pairwise(widths))
        self.up = nn.ModuleList(double(deep + skipped, skipped) for skipped, deep in reversed([*pairwise(widths)]))

    def forward(self, images: Tensor) -> Tensor:
        stages = [self.first(images)]
        for stage in self.down:
            stages.append(stage(F.max_pool2d(stages[-1], 2)))
        result = stages.pop()
        for stage in self.up:
            result = stage(torch.cat([F.interpolate(result, scale_factor=2, mode="bilinear"), stages.pop()], dim=1))
        restored: Tensor = self.last(result).sigmoid()
        return restored
