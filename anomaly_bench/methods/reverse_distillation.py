"""Reverse Distillation: Anomaly Detection via Reverse Distillation from One-Class Embedding (RD4AD).

Hanqiu Deng, Xingyu Li; 2022, arXiv 2201.10703.

A decoder learns to reconstruct the teacher's features of normal images from a compact one-class embedding; where the
decoder's features differ from the teacher's, the image is anomalous.

Where the authors' code differs from the paper, this follows the code: the loss compares whole feature maps as vectors,
while the paper averages cosine distances over positions. The authors' bottleneck declares a 1 x 1 convolution from 4096
to 2048 channels that is never called; its 8.39 M parameters (on WRN50), counted in the paper's memory, are omitted.

The authors use ResNets, whose levels end in a ReLU, as do the decoder's stages. On other networks (EfficientNets, whose
levels are linear) a stage ends as its level does; otherwise half of the teacher's values could not be reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_choice, check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

EXPANSIONS = {"basic": 1, "bottleneck": 4}  # output channels over planes


class ReverseDistillation(nn.Module):
    """Reverse Distillation as in section 3.

    Args:
        backbone: the teacher, a frozen network read at three levels, each with half the side of the previous one.
        epochs, lr, batch: for training with Adam.
        block: "basic" or "bottleneck", as in the ResNet that the decoder mirrors.
        blocks: number per decoder stage, the deepest first.
        embedding_blocks: number in the one-class embedding.
        base_width: of a bottleneck, for 64 planes; 128 in a Wide ResNet.
        sigma: of the map's Gaussian blur, in pixels.
        ends: "relu" or "linear" for each level's decoder stage; None: relu where the teacher's features of the training
            images are never negative.
    """

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        lr: float = 0.005,
        batch: int = 16,
        block: str = "basic",
        blocks: Sequence[int] = (2, 2, 2),
        embedding_blocks: int = 2,
        base_width: int = 64,
        sigma: float = 4.0,
        ends: Sequence[str] | None = None,
    ) -> None:
        check_choice("block", block, EXPANSIONS)
        for end in ends or ():
            check_choice("ends", end, ("relu", "linear"))
        super().__init__()
        self.backbone, self.epochs, self.lr, self.batch = backbone, epochs, lr, batch
        self.block, self.blocks, self.embedding_blocks, self.base_width = block, blocks, embedding_blocks, base_width
        self.sigma, self.ends = sigma, ends

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create bottleneck and decoder for three (C, h, w) levels, the largest grid first.

        Raises:
            UsageError: unsuitable levels, or grids that cannot be halved.
        """
        check_levels(shapes)
        channels = [shape[0] for shape in shapes]
        expansion, width = EXPANSIONS[self.block], self.base_width / 64
        self.bottleneck = Bottleneck(channels, self.embedding_blocks, expansion, width)
        self.decoder = Decoder(channels, self.blocks, expansion, width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # transposed ones keep torch's initialisation, as in the authors' code
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.end_stages(["relu"] * 3 if self.ends is None else self.ends)

    def end_stages(self, ends: Sequence[str]) -> None:
        """Set how the decoder's stages end, for each level.

        Raises:
            UsageError: not one end for each level.
        """
        if len(ends) != len(self.decoder.stages):
            raise UsageError(f"method.ends={list(ends)}: expected 3, one for each level, or null")
        self.resolved = {"ends": list(ends)}
        for decode, end in zip(reversed(self.decoder.stages), ends, strict=True):
            *_, last = (block for block in decode.children() if isinstance(block, Residual))
            last.rectified = end == "relu"

    def fit(self, normals: TrainingSet) -> None:
        """Train bottleneck and decoder; the teacher processes every image once.

        Raises:
            ValueError: the loss is not finite.
        """
        teacher = normals.feature_array(self.backbone, self.batch)
        if self.ends is None:
            self.end_stages(["linear" if bool((level < 0).any()) else "relu" for level in teacher.levels])
        optimiser = torch.optim.Adam(self.parameters(), self.lr, betas=(0.5, 0.999), fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                levels = teacher[numbers]
                epoch.step(distance(levels, self.decode(levels)))
        self.facts = {**loop.facts, **self.resolved}

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The sum of the levels' cosine distances, upsampled and blurred; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        levels = self.backbone(images)
        size = images.shape[2:]
        total = images.new_zeros(images.shape[0], *size)
        for theirs, ours in zip(levels, self.decode(levels), strict=True):
            cosine = 1 - F.cosine_similarity(theirs, ours)[:, None]  # (B, 1, h, w)
            total += F.interpolate(cosine, size, mode="bilinear", align_corners=True)[:, 0]
        maps = upsampling.smooth_upsample(total, size, self.sigma)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def decode(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's features, with the shapes of the levels."""
        decoded: list[Tensor] = self.decoder(self.bottleneck(levels))
        return decoded


def distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The loss (): cosine distances between whole feature maps, batch mean, summed over levels."""
    pairs = zip(teacher, student, strict=True)
    cosines = [F.cosine_similarity(theirs.flatten(1), ours.flatten(1)) for theirs, ours in pairs]
    return torch.stack([1 - cosine.mean() for cosine in cosines]).sum()


def check_levels(shapes: Sequence[tuple[int, int, int]]) -> None:
    """Raise UsageError unless there are three grids, each half of the previous one, and the last can be halved."""
    grids = [shape[1:] for shape in shapes]
    halved = all((2 * low[0], 2 * low[1]) == high for high, low in itertools.pairwise(grids))
    if len(shapes) != 3 or not halved or grids[-1][0] % 2 or grids[-1][1] % 2:
        raise UsageError(
            f"method.levels: grids {', '.join(f'{h} x {w}' for h, w in grids)}; Reverse Distillation needs three "
            "levels, each with half the side of the previous one, the last with even sides: levels 1, 2, 3 of a CNN "
            "and input sides that are multiples of 32, such as 224 or 256"
        )


class Bottleneck(nn.Module):
    """Multi-scale feature fusion, and one-class embedding whose first block halves the grid (section 3.3).

    Args:
        channels, blocks: of the three levels; residual blocks in the embedding. The others are those of `Residual`.
    """

    def __init__(self, channels: Sequence[int], blocks: int, expansion: int, width: float) -> None:
        super().__init__()
        low, middle, deep = channels
        self.first = nn.Sequential(*halving(low, middle), *halving(middle, deep))
        self.second = nn.Sequential(*halving(middle, deep))
        self.embed = stage(3 * deep, 2 * deep, blocks, expansion, width, up=False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Three (B, C, h, w) levels -> (B, 2 C_3, h_3 / 2, w_3 / 2)."""
        embedded: Tensor = self.embed(torch.cat([self.first(levels[0]), self.second(levels[1]), levels[2]], dim=1))
        return embedded


class Decoder(nn.Module):
    """Mirrors the teacher: three stages, each doubling the grid (section 3.2). Arguments as in `Bottleneck`."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], expansion: int, width: float) -> None:
        super().__init__()
        inputs = [2 * channels[2], channels[2], channels[1]]
        stages = zip(inputs, reversed(channels), blocks, strict=True)
        self.stages = nn.ModuleList([stage(*sizes, expansion, width, up=True) for sizes in stages])

    def forward(self, embedded: Tensor) -> list[Tensor]:
        """The embedding -> the three levels, the largest grid first."""
        levels = []
        for decode in self.stages:
            embedded = decode(embedded)
            levels.append(embedded)
        return levels[::-1]


def halving(inputs: int, outputs: int) -> list[nn.Module]:
    return [*resize(inputs, outputs, 3, "down"), nn.ReLU(inplace=True)]


def stage(inputs: int, outputs: int, blocks: int, expansion: int, width: float, up: bool) -> nn.Sequential:
    """Residual blocks; the first doubles (`up`) or halves the grid."""
    first = Residual(inputs, outputs, expansion, width, "up" if up else "down")
    return nn.Sequential(first, *(Residual(outputs, outputs, expansion, width, "same") for _ in range(blocks - 1)))


class Residual(nn.Module):
    """ResNet's basic block (expansion 1) or bottleneck (expansion 4).

    Args:
        inputs, outputs: channels.
        width: inner channels of a bottleneck, as a multiple of outputs / expansion.
        grid: "up" (by 2 x 2 transposed convolutions), "down" or "same".
    """

    rectified = True  # whether it ends in a ReLU

    def __init__(self, inputs: int, outputs: int, expansion: int, width: float, grid: str) -> None:
        super().__init__()
        planes = max(1, outputs // expansion)
        if expansion == 1:
            layers = [resize(inputs, planes, 3, grid), nn.ReLU(inplace=True), resize(planes, outputs, 3, "same")]
        else:
            inner = int(planes * width)
            layers = [resize(inputs, inner, 1, "same"), nn.ReLU(inplace=True), resize(inner, inner, 3, grid)]
            layers += [nn.ReLU(inplace=True), resize(inner, outputs, 1, "same")]
        self.layers = nn.Sequential(*layers)
        plain = grid == "same" and inputs == outputs
        self.shortcut = nn.Identity() if plain else resize(inputs, outputs, 1, grid)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, outputs, h', w')."""
        total: Tensor = self.layers(maps) + self.shortcut(maps)
        return F.relu(total) if self.rectified else total


def resize(inputs: int, outputs: int, kernel: int, grid: str) -> nn.Sequential:
    """A convolution with batch normalisation; "up": transposed, 2 x 2, regardless of `kernel`."""
    if grid == "up":
        layer: nn.Module = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    else:
        stride = 2 if grid == "down" else 1
        layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))
