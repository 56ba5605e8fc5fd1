"""NSA: Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization.

Hannah M. Schlueter, Jeremy Tan, Benjamin Hou, Bernhard Kainz; ECCV 2022, arXiv 2109.15222.

Patches of one training image are blended into another, scaled, by Poisson's equation; an encoder-decoder learns to find
them, with labels that grow with the change in grey levels. Its output is the map, its mean the image score.

This follows the authors' code, with its bounds of half sides applied to whole sides of patches, and its blended region
one pixel to the right in boxes of odd width. They set patches and labels for each category of MVTec AD by hand, some to
keep patches on the object. Here one setting is for all categories; theirs are used with protocol=paper
(`method.per_class`). Differences: images are fed whole, where their objects lose a border of 16 pixels whose map is
zero; for training they are shifted by as much as their crops move them. The source of the patches is another random
image, where the code takes the one that a worker drew before. All categories have the same number of epochs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as T

from anomaly_bench.components.imagenet import normalised
from anomaly_bench.components.residual_network import resnet18
from anomaly_bench.components.synthetic_anomalies.blends import Patches, Pixels, blend_patches
from anomaly_bench.components.synthetic_anomalies.perlin import uniform
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

STRIDE = 32  # of the encoder
LEAST_LR = 1e-6  # at the end
MARGIN, SHIFT = 1 / 16, 1 / 64  # of the side: reflected around the image for turns, and the largest shift


@dataclasses.dataclass(frozen=True)
class Views:
    """How training images are changed before patches are blended: largest turn in degrees; whether some are flipped."""

    turn: float = 0.0
    flip: bool = False


class NSA(nn.Module):
    """NSA with logistic labels.

    Args:
        epochs, lr, batch: for training with Adam; the learning rate falls by a cosine, epoch by epoch.
        patches: the fields of `Patches` and `Views` for all categories.
        per_class: take those of `classes` for the categories that it has.
        classes: category -> fields that differ from the defaults of `Patches` and `Views`.
        width: channels of the encoder's first stage, a multiple of 4.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-3,
        batch: int = 64,
        patches: Mapping[str, Any] | None = None,
        per_class: bool = False,
        classes: Mapping[str, Mapping[str, Any]] | None = None,
        width: int = 64,
    ) -> None:
        if width < 4 or width % 4:
            raise UsageError(f"method.width={width}: expected a multiple of 4")
        super().__init__()
        self.epochs, self.lr, self.batch, self.width = epochs, lr, batch, width
        self.settings = make_settings("patches", patches or {})
        self.classes = {name: make_settings(f"classes.{name}", fields) for name, fields in (classes or {}).items()}
        self.per_class = per_class

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for images of the given (3, H, W) shape.

        Raises:
            UsageError: a side that cannot be halved five times.
        """
        check_sides("NSA", shapes[0][1:], STRIDE)
        self.network = nn.Sequential(resnet18(self.width), decoder(self.width))

    def fit(self, normals: TrainingSet) -> None:
        """Train on images with blended patches, newly drawn in every epoch.

        Raises:
            ValueError: the loss is not finite.
        """
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        views, rules = self.classes.get(normals.name, self.settings) if self.per_class else self.settings
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                optimiser.param_groups[0]["lr"] = self.rate(epoch.progress)
                others = torch.randint(len(normals), (len(numbers),))
                images = normals.select(torch.cat([numbers, others]))
                drawn = [view(to_pixels(image), views) for image in images.cpu()]
                pairs = zip(drawn[: len(numbers)], drawn[len(numbers) :], strict=True)
                blended, labels = zip(*(blend_patches(image, other, rules) for image, other in pairs), strict=True)
                inputs = torch.from_numpy(np.stack(blended)).permute(0, 3, 1, 2).to(images.device)
                epoch.step(self.loss(inputs / 255, torch.from_numpy(np.stack(labels)).to(images.device)))
        self.facts = loop.facts

    def rate(self, progress: float) -> float:
        """The learning rate after a share of the training; it changes between epochs of the full one."""
        done = int(progress * self.epochs + 1e-6) / self.epochs
        return LEAST_LR + (self.lr - LEAST_LR) * (1 + math.cos(math.pi * done)) / 2

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy () of (B, 3, H, W) images' logits and (B, H, W) labels."""
        return F.binary_cross_entropy_with_logits(self.logits(images), labels)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The logits: the same ranking as the map of the paper, their logistic function, without saturation.

        The image score is the mean of the map of the paper.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        logits = self.logits(images)
        return Scores(logits.sigmoid().mean(dim=(1, 2)), logits)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, H, W)."""
        logits: Tensor = self.network(normalised(images).contiguous())[:, 0]
        return logits


def make_settings(key: str, fields: Mapping[str, Any]) -> tuple[Views, Patches]:
    """Split fields of both kinds.

    Raises:
        UsageError: an unknown field.
    """
    known = {kind: [field.name for field in dataclasses.fields(kind)] for kind in (Views, Patches)}
    for name in fields:
        if name not in (*known[Views], *known[Patches]):
            near = closest(name, (*known[Views], *known[Patches]))
            raise UsageError(f"method.{key}.{name}: no such setting{near}")
    return (
        Views(**{name: value for name, value in fields.items() if name in known[Views]}),
        Patches(**{name: value for name, value in fields.items() if name in known[Patches]}),
    )


def to_pixels(image: Tensor) -> Pixels:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    pixels: Pixels = (255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def view(image: Pixels, views: Views) -> Pixels:
    """Turn, shift and flip an (H, W, 3) image; its border is reflected."""
    margins = [int(MARGIN * side) for side in image.shape[:2]]
    padded = np.pad(image, [(margin, margin) for margin in margins] + [(0, 0)], "reflect")
    if views.turn:
        turned = T.rotate(torch.from_numpy(padded).permute(2, 0, 1), uniform(-views.turn, views.turn))
        padded = turned.permute(1, 2, 0).numpy()
    box = []
    for margin, side in zip(margins, image.shape[:2], strict=True):
        shift = int(SHIFT * side)
        start = margin + int(torch.randint(-shift, shift + 1, ()))
        box.append(slice(start, start + side))
    moved = padded[box[0], box[1]]
    return moved[::-1] if views.flip and float(torch.rand(())) < 0.5 else moved


def decoder(width: int) -> nn.Sequential:
    """(B, 8 width, H / 32, W / 32) features -> (B, 1, H, W) logits."""
    layers: list[nn.Module] = []
    for inputs in (8 * width, 4 * width):
        layers += [nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.ReLU(inplace=True)]
    layers += [Enlarging(2 * width // part) for part in (1, 2, 4)]
    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
    layers.append(nn.ConvTranspose2d(width // 4, 1, 7, stride=2, padding=3, output_padding=1, bias=False))
    made = nn.Sequential(*layers)
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return made


class Enlarging(nn.Module):
    """A residual block to half the channels on a grid of twice the side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        outputs = inputs // 2
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 1, stride=2, output_padding=1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C / 2, 2 h, 2 w)."""
        return F.relu(self.layers(features) + self.shortcut(features))
