"""KDAD: Multiresolution Knowledge Distillation for Anomaly Detection.

Mohammadreza Salehi, Niousha Sadjadi, Soroosh Baselizadeh, Mohammad H. Rohban, Hamid R. Rabiee; CVPR 2021, arXiv
2011.11108.

A small network, the cloner, learns to give the values of a pretrained one, the source, at several depths on normal
images. The image score is how far apart they are; the map is the gradient of that score with respect to the image,
through both networks.

This follows the authors' code where it differs from the paper: `weight` is that of the squared differences (in the
paper, of the directions), training compares four depths, and scoring the last three. Their code scales maps image by
image, so that they can only be compared within an image that has an anomaly; here they are not scaled. Its `weight`
balances both distances for VGG-16, of images that are not normalised (`conf/tuned/kdad_vgg16.yaml`); here images are
normalised, and so is the size of each level's values, as networks differ in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.training import Loop
from anomaly_bench.components.upsampling import smooth_upsample
from anomaly_bench.components.validation import check_choice, check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import TrainingSet

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of the stages, as in VGG-16
SIDE = 2 ** len(CONVOLUTIONS)  # the sides of images are multiples of it
ENDS = ("relu", "linear")  # of a stage
PART = 8  # images whose gradients are computed at a time


class KDAD(nn.Module):
    """KDAD with the authors' small cloner, or, with other `widths`, their cloner of the source's size.

    Args:
        backbone: the source, a frozen network read at four levels of strides 2, 4, 8 and 16.
        epochs, lr, batch: for training with Adam.
        weight: of the squared differences, beside the cosine distances.
        widths: channels of the five stages' convolutions but their last, which has those of the level.
        guided: maps by guided backpropagation in the cloner; else the plain gradient.
        normalise: images by the backbone's mean and standard deviation; else both networks see values from 0 to 1.
        scaled: divide the source's values by their root mean square over the training images, for each level.
        ends: "relu" or "linear" for each level's stage; None: relu where the source's values of the training images are
            never negative.
        sigma: of the map's Gaussian blur, in pixels.
    """

    mean: Tensor
    std: Tensor
    scales: Tensor  # (4,) that the source's values are divided by

    def __init__(
        self,
        backbone: Backbone,
        epochs: int,
        lr: float = 1e-3,
        weight: float = 0.5,
        batch: int = 64,
        widths: Sequence[int] = (16, 16, 16, 16, 16),
        guided: bool = True,
        normalise: bool = True,
        scaled: bool = True,
        ends: Sequence[str] | None = None,
        sigma: float = 4.0,
    ) -> None:
        if len(widths) != len(CONVOLUTIONS) or min(widths) < 1:
            raise UsageError(f"method.widths={list(widths)}: expected five numbers of channels")
        for end in ends or ():
            check_choice("ends", end, ENDS)
        super().__init__()
        self.backbone, self.epochs, self.lr, self.weight, self.batch = backbone, epochs, lr, weight, batch
        self.widths, self.guided, self.normalise, self.scaled = widths, guided, normalise, scaled
        self.ends, self.sigma = ends, sigma

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the cloner for four (C, h, w) levels.

        Raises:
            UsageError: other levels than four of strides 2 to 16, or images whose sides are no multiples of 32.
        """
        strides = [2 ** (number + 1) for number in range(len(shapes))]
        sides = [(stride * height, stride * width) for stride, (_, height, width) in zip(strides, shapes, strict=True)]
        if len(shapes) != len(CONVOLUTIONS) - 1 or len(set(sides)) > 1:
            raise UsageError(
                f"method.levels: grids of {[shape[1:] for shape in shapes]}; expected four levels of one network, each "
                "grid half as large as the one before, such as [stem,1,2,3]"
            )
        check_sides("KDAD", sides[0], SIDE)
        self.cloner = Cloner([channels for channels, _, _ in shapes], self.widths, self.guided)
        self.register_buffer("mean", self.backbone.mean.clone(), persistent=False)
        self.register_buffer("std", self.backbone.std.clone(), persistent=False)
        self.register_buffer("scales", torch.ones(len(shapes)))
        self.end_stages(["relu"] * len(shapes) if self.ends is None else self.ends)

    def end_stages(self, ends: Sequence[str]) -> None:
        """Set how the cloner's stages end, for each level.

        Raises:
            UsageError: not one end for each level.
        """
        if len(ends) != len(CONVOLUTIONS) - 1:
            raise UsageError(f"method.ends={list(ends)}: expected 4, one for each level, or null")
        self.resolved = {"ends": list(ends)}
        self.cloner.end_stages([end == "relu" for end in ends])

    def fit(self, normals: TrainingSet) -> None:
        """Train the cloner; the source processes every image once.

        Raises:
            ValueError: the loss is not finite.
        """
        source = normals.feature_array(lambda images: pooled(self.backbone(self.shown(images))), self.batch)
        if self.ends is None:
            self.end_stages(["linear" if bool((level < 0).any()) else "relu" for level in source.levels])
        if self.scaled:
            self.scales.copy_(torch.stack([level.square().mean().sqrt() for level in source.levels]))
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(source), self.batch):
                cloned = self.cloned(self.shown(normals.select(numbers)))
                epoch.step(self.distances(source[numbers], cloned).mean(dim=1).sum())
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Distances at the last three depths; the map is the size of their gradient with respect to the image.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        found = [self.explained(part) for part in torch.split(images, PART)]
        scores, maps = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Scores(scores, smooth_upsample(maps, images.shape[2:], self.sigma))

    def explained(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and the sizes (B, H, W) of their gradients, summed over the image's channels."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            shown = self.shown(images)
            source = pooled(self.backbone.differentiable(shown))
            scores = self.distances(source, self.cloned(shown))[1:].sum(dim=0)
            (gradients,) = torch.autograd.grad(scores.sum(), images)
        return scores.detach(), gradients.abs().sum(dim=1)

    def shown(self, images: Tensor) -> Tensor:
        """Images for the backbone, which normalises them; without `normalise`, so that this is undone."""
        return images if self.normalise else images * self.std + self.mean

    def cloned(self, shown: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images for the backbone -> the cloner's values (B, C, h, w) for each level."""
        values: list[Tensor] = self.cloner((shown - self.mean) / self.std)
        return values

    def distances(self, source: Sequence[Tensor], cloned: Sequence[Tensor]) -> Tensor:
        """(4, B): one minus the cosine between all values of a level, plus their weighted mean squared difference."""
        found = []
        for theirs, ours, scale in zip(source, cloned, self.scales, strict=True):
            theirs, ours = theirs.flatten(1) / scale, ours.flatten(1)
            cosine = F.cosine_similarity(theirs, ours, dim=1)
            found.append(1 - cosine + self.weight * (theirs - ours).square().mean(dim=1))
        return torch.stack(found)


class Cloner(nn.Module):
    """A VGG-16 whose convolutions have no biases, but batch norms, except the last one of a stage.

    Args:
        channels: of the levels.
        widths: channels of each stage's other convolutions.
        guided: see `Rectifier`.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], guided: bool) -> None:
        super().__init__()
        self.guided, self.stages, inputs = guided, nn.ModuleList(), 3
        for count, width, last in zip(CONVOLUTIONS, widths, (widths[0], *channels), strict=True):
            layers: list[nn.Module] = []
            for _ in range(count - 1):
                layers += [convolution(inputs, width), nn.BatchNorm2d(width), Rectifier(guided)]
                inputs = width
            layers += [convolution(inputs, last), Rectifier(guided), nn.MaxPool2d(2)]
            self.stages.append(nn.Sequential(*layers))
            inputs = last

    def end_stages(self, rectified: Sequence[bool]) -> None:
        """Set whether the stages of the levels end in a ReLU."""
        for stage, end in zip(self.stages[1:], rectified, strict=True):
            assert isinstance(stage, nn.Sequential)
            stage[-2] = Rectifier(self.guided) if end else nn.Identity()

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, C, h, w) for each level, at the strides 4, 8, 16 and 32."""
        values = []
        for stage in self.stages:
            images = stage(images)
            values.append(images)
        return values[1:]


class Rectifier(nn.ReLU):
    """ReLU; `guided`: in evaluation mode, only positive gradients pass backwards (Springenberg et al. 2015)."""

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided = guided

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        if self.guided and not self.training and outputs.requires_grad:
            outputs.register_hook(F.relu)  # type: ignore[no-untyped-call] # untyped in torch
        return outputs


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(made.weight)
    return made


def pooled(levels: Sequence[Tensor]) -> list[Tensor]:
    """The levels' largest values of 2 x 2 cells, as the pooling that follows them in a VGG."""
    return [F.max_pool2d(level, 2) for level in levels]
