"""CS-Flow: Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection.

Marco Rudolph, Tom Wehrbein, Bodo Rosenhahn, Bastian Wandt; 2021 (WACV 2022), arXiv 2110.02855.

A network reads the image at three sizes; one normalising flow learns the joint density of the three feature maps, with
couplings whose subnets pass information between scales. The image score is the mean of z^2 / 2 over all latent
elements; the map is that of the largest scale. As in the authors' code: the image is downsampled by nearest neighbour,
and the log-determinant enters the training loss but not the score. The code tests the model after each of four training
stages and reports the last and the best; here the last counts.

On EfficientNet-B5 the code's flow has 275,227,288 parameters. Zheng et al. 2022 (Table 3) report 148.2 million without
explanation; the same flow with a kernel of 1 instead of 5 in its last block has 148,218,520.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.flows import Flow, TwoSided
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_kernels, multiples
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

SCALES = 3


class CSFlow(nn.Module):
    """CS-Flow as in section 3.

    Args:
        backbone: a frozen network, read at one level.
        epochs: of training; the code has 4 stages of 60 = 240.
        kernels: kernel size for each coupling block.
        hidden: channels in the subnets.
        clamp: of the log-scales.
        clip: maximum gradient norm.
        batch: images per step.
        lr, eps, weight_decay: of Adam.
    """

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        kernels: Sequence[int] = (3, 3, 3, 5),
        hidden: int = 1024,
        clamp: float = 3.0,
        clip: float = 1.0,
        batch: int = 16,
        lr: float = 2e-4,
        eps: float = 1e-4,
        weight_decay: float = 1e-5,
    ) -> None:
        check_kernels(kernels)
        super().__init__()
        self.backbone, self.epochs, self.kernels, self.hidden, self.clamp = backbone, epochs, kernels, hidden, clamp
        self.clip, self.batch, self.lr, self.eps, self.weight_decay = clip, batch, lr, eps, weight_decay

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the flow for one (C, h, w) level with any grid.

        Raises:
            UsageError: more than one level.
        """
        if len(shapes) != 1:
            raise UsageError(f"method.levels: CS-Flow reads one level at three scales; found {len(shapes)} levels")
        blocks = []
        for kernel in self.kernels:
            subnet = functools.partial(CrossConvolutions, hidden=self.hidden, kernel=kernel)
            blocks.append(TwoSided([shapes[0][0]] * SCALES, subnet, self.clamp))
        self.flow = Flow(blocks)

    def fit(self, normals: TrainingSet) -> None:
        """Train the flow (equation 6) on features from one pass.

        Raises:
            UsageError: image size whose feature grid cannot be halved twice.
        """
        features = normals.feature_array(self.scales, self.batch)
        optimiser = torch.optim.Adam(
            self.parameters(), self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )
        loop = Loop(self, optimiser, normals, self.epochs, self.clip)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                epoch.step(self.loss(features[numbers]))
        self.facts = loop.facts

    def loss(self, maps: Sequence[Tensor]) -> Tensor:
        """The negative log-likelihood per element, without its constant: ()."""
        z, log_det = self.flow(maps)
        elements = flat(z)
        loss: Tensor = (elements.square().sum(dim=1) / 2 - log_det).mean() / elements.shape[1]
        return loss

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Mean of z^2 / 2 over all elements; the map is the mean of z^2 over the largest scale's channels.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: image size whose feature grid cannot be halved twice.
        """
        check_fitted(self)
        z, _ = self.flow(self.scales(images))
        maps = upsampling.smooth_upsample(z[0].square().mean(dim=1), images.shape[2:], sigma=0)
        return Scores(flat(z).square().mean(dim=1) / 2, maps)

    def scales(self, images: Tensor) -> list[Tensor]:
        """Feature maps at full, half and quarter image size: (B, C, h, w), (B, C, h / 2, w / 2), ..."""
        height, width = images.shape[2:]
        maps = self.backbone(images)
        check_size((height, width), maps[0].shape[2:])
        for factor in (2**n for n in range(1, SCALES)):
            maps += self.backbone(F.interpolate(images, (height // factor, width // factor)))
        return maps


class CrossConvolutions(nn.Module):
    """Predicts log-scales and shifts for one half of every scale from the other halves (figure 4).

    Each scale has two convolutions; the output of the second is added to that of a strided convolution of the next
    larger scale and an upsampled one of the next smaller scale. Outputs are multiplied by a factor that starts at 0, so
    the coupling is initially the identity.
    """

    def __init__(self, inputs: list[int], outputs: list[int], hidden: int, kernel: int) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

        self.first = nn.ModuleList(convolution(count, hidden) for count in inputs)
        self.second = nn.ModuleList(convolution(hidden, count) for count in outputs)
        self.up = nn.ModuleList(convolution(hidden, count) for count in outputs[:-1])
        self.down = nn.ModuleList(convolution(hidden, count, stride=2) for count in outputs[1:])
        self.gamma = nn.Parameter(torch.zeros(len(inputs)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """(B, inputs, h, w), (B, inputs, h / 2, w / 2), ... -> the same grids with `outputs` channels."""
        hidden = [F.leaky_relu(layer(x), 0.1) for layer, x in zip(self.first, maps, strict=True)]
        result = [layer(x) for layer, x in zip(self.second, hidden, strict=True)]
        for larger, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            upsampled = F.interpolate(hidden[larger + 1], scale_factor=2, mode="bilinear", align_corners=False)
            result[larger] = result[larger] + up(upsampled)
            result[larger + 1] = result[larger + 1] + down(hidden[larger])
        return [factor * x for factor, x in zip(self.gamma, result, strict=True)]


def flat(maps: Sequence[Tensor]) -> Tensor:
    """All elements of all scales: (B, D)."""
    return torch.cat([x.flatten(1) for x in maps], dim=1)


def check_size(size: Sequence[int], grid: Sequence[int]) -> None:
    """Raise UsageError if the (h, w) feature grid of (H, W) images cannot be halved as often as the images are."""
    pairs, part = list(zip(size, grid, strict=True)), 2 ** (SCALES - 1)
    if all(pixels % cells == 0 and cells % part == 0 for pixels, cells in pairs):
        return
    exact = [pixels // cells for pixels, cells in pairs if pixels % cells == 0]
    stride = exact[0] if exact else 2 ** round(math.log2(size[0] / grid[0]))
    step = part * stride
    expected = multiples(size[0], step)
    if all(pixels % step == 0 for pixels in size):
        expected = f"a backbone with a grid of {size[0] // stride} x {size[1] // stride} here, such as effb5 or lite0"
    raise UsageError(
        "method=cs_flow also reads the image's half and quarter; found images of {} x {} pixels with a grid of "
        "{} x {}; expected {}".format(*size, *grid, expected)
    )
