"""PANDA: Adapting Pretrained Features for Anomaly Detection and Segmentation.

Tal Reiss, Niv Cohen, Liron Bergman, Yedid Hoshen; 2020, arXiv 2010.05903 (CVPR 2021).

The last two stages of a pretrained network are trained to bring the pooled features of the normal images closer to
their mean, for a few small steps, so that they do not collapse; an image's score is the sum of its squared distances
to the nearest normal images. Without training it is DN2: by the author's word, the paper's numbers on MVTec AD are
DN2's, and its maps SPADE's.

This follows the authors' code. Its training loop squeezes a batch of one image, which then fails; here it works. The
continual variant (elastic weight consolidation) needs the Fisher information of ImageNet, which the authors provide for
ResNet-152; here it is that of the loss on the training images. The map is ours too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.neighbours import nearest, take_row_counts
from anomaly_bench.components.patches import patch_rows
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import FeatureArray, TrainingSet

logger = logging.getLogger(__name__)


class PANDA(nn.Module):
    """PANDA with early stopping after a fixed number of epochs (section 3.2), or the continual variant (section 3.3).

    Args:
        backbone: a frozen network read at one level, after which the trained part begins.
        trained_levels: two deeper levels: the last, pooled, describes the image, the first gives the map.
        epochs: 0: no training.
        lr, momentum, weight_decay, batch: for training with SGD.
        clip: maximum norm of the whole gradient, before weight decay is added.
        neighbours: nearest training images.
        penalty: weight of the changes of the weights, scaled by their Fisher information; 0: none.
        sigma: of the map's Gaussian blur, in pixels.
    """

    centre: Tensor  # (D,) mean of the training images' features before training
    bank: Tensor  # (N, D) their features after it
    patches: Tensor  # (N * h * w, C) those of the map

    def __init__(
        self,
        backbone: Backbone,
        trained_levels: Sequence[int | str],
        epochs: int,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-5,
        clip: float = 1e-3,
        batch: int = 32,
        neighbours: int = 2,
        penalty: float = 0.0,
        sigma: float = 4.0,
    ) -> None:
        if len(trained_levels) != 2:
            raise UsageError(f"method.trained_levels={list(trained_levels)}: expected two, such as [3,4]")
        if neighbours < 1 or penalty < 0:
            raise UsageError(
                f"method.neighbours={neighbours}, method.penalty={penalty}: expected at least 1, and at least 0"
            )
        super().__init__()
        self.backbone, self.trained_levels, self.epochs = backbone, trained_levels, epochs
        self.lr, self.momentum, self.weight_decay, self.clip, self.batch = lr, momentum, weight_decay, clip, batch
        self.neighbours, self.penalty, self.sigma = neighbours, penalty, sigma

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Copy the trained part of the network, for the (C, h, w) level before it.

        Raises:
            UsageError: several levels or networks.
        """
        if len(shapes) != 1:
            raise UsageError(f"PANDA: {len(shapes)} levels before the trained part; expected one network, read at one")
        first, second = self.backbone.trainable_stages(self.trained_levels)
        self.stages = nn.ModuleList([first, second])
        self.middle = first.shape(shapes[0])
        channels = second.shape(self.middle)[0]
        self.register_buffer("centre", torch.empty(channels))
        self.register_buffer("bank", torch.empty(0, channels))
        self.register_buffer("patches", torch.empty(0, self.middle[0]))

    def fit(self, normals: TrainingSet) -> None:
        """Adapt the features, and store those of every image.

        Raises:
            ValueError: the loss is not finite.
            TooLarge: the features do not fit in memory.
        """
        features = normals.feature_array(self.backbone, self.batch)
        self.centre.copy_(torch.cat([found for _, found in self.passes(features)]).mean(dim=0))
        self.facts: dict[str, Any] = {"neighbours": min(self.neighbours, len(normals))}
        if len(normals) < self.neighbours:
            logger.warning(
                "%s: method.neighbours=%d reduced to %d, the number of training images",
                *(normals.name, self.neighbours, len(normals)),
            )
        if self.epochs != 0:
            self.adapt(features, normals)
        self.store(features, normals.name)

    def adapt(self, features: FeatureArray, normals: TrainingSet) -> None:
        """Train the stages on the features (N, C, h, w) that they take."""
        before = [parameter.detach().clone() for parameter in self.parameters()]
        fisher = self.fisher(features) if self.penalty else []
        optimiser = torch.optim.SGD(self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        loop = Loop(self, optimiser, normals, self.epochs, self.clip)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                losses = [self.compactness(self(features[numbers][0])[1])]
                if self.penalty:
                    losses.append(self.penalty / 2 * self.change(before, fisher))
                epoch.step(losses)
        self.facts |= loop.facts

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) of the frozen level -> the map's level (B, C', h', w') and the image's features (B, D)."""
        first, second = self.stages
        middle: Tensor = first(inputs)
        return middle, second(middle).mean(dim=(2, 3))

    def compactness(self, features: Tensor) -> Tensor:
        """Mean squared distance () of features (B, D) from the centre, divided by D."""
        return (features - self.centre).square().mean()

    def change(self, before: Sequence[Tensor], fisher: Sequence[Tensor]) -> Tensor:
        """Squared changes of the parameters, weighted by their Fisher information and summed."""
        triples = zip(self.parameters(), before, fisher, strict=True)
        return torch.stack([(weight * (now - then).square()).sum() for now, then, weight in triples]).sum()

    def fisher(self, features: FeatureArray) -> list[Tensor]:
        """Of each parameter: the mean over images of the squared gradient of the image's loss."""
        parameters = list(self.parameters())
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for number in range(len(features)):
            loss = self.compactness(self(features[number : number + 1][0])[1])
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total += gradient.square() / len(features)
        return sums

    @torch.no_grad()
    def passes(self, features: FeatureArray) -> list[tuple[Tensor, Tensor]]:
        """`forward` of all images, batch by batch."""
        starts = range(0, len(features), self.batch)
        return [self(features[start : start + self.batch][0]) for start in starts]

    def store(self, features: FeatureArray, name: str) -> None:
        """Fill the bank and the patches."""
        channels, height, width = self.middle
        memory.require(
            2 * 4 * len(features) * height * width * channels,
            self.bank.device,
            f"{name}: the features of {len(features)} images",
            "use a smaller input.resize or input.crop, or fewer training images",
        )
        maps, pooled = zip(*self.passes(features), strict=True)
        self.bank = torch.cat(pooled)
        self.patches = torch.cat([patch_rows(level) for level in maps])

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Sums of squared distances to the nearest images; the map holds those to the nearest patch, at any position.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        level, pooled = self(self.backbone(images)[0])
        distances = nearest(pooled, self.bank, min(self.neighbours, len(self.bank))).distances
        found = nearest(patch_rows(level), self.patches).distances.view(images.shape[0], *level.shape[2:])
        return Scores(distances.sum(dim=1), upsampling.smooth_upsample(found, images.shape[2:], self.sigma))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
