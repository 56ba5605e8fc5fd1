"""STFPM: Student-Teacher Feature Pyramid Matching for Anomaly Detection.

Guodong Wang, Shumin Han, Errui Ding, Di Huang; 2021, arXiv 2103.04257.

A student with the teacher's architecture learns to match the teacher's features on normal images; large differences
indicate anomalies.

Where the authors' code differs from the paper, this follows the code: the loss has no factor 1/2, and the levels' maps
are multiplied on the first level's grid, not at image size. Their student has a last stage that is never read; here it
is removed. Every norm of the student starts with a scale of one, as in torchvision, which they use; timm's start at
zero at the end of a block. anomalib sums the loss over the batch, so its step size grows with the batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import FeatureArray, TrainingSet


class STFPM(nn.Module):
    """STFPM as in section 3.

    Args:
        backbone: the teacher, a frozen network read at three levels.
        epochs, lr, momentum, weight_decay, batch: for training with SGD.
        held_out: fraction of the training images held out to choose the best epoch, unless the dataset has a validation
            set: then that one chooses, and all training images are trained on.
        seed: for this split.
    """

    def __init__(
        self,
        backbone: Backbone,
        epochs: int,
        lr: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        batch: int = 32,
        held_out: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.epochs = backbone, epochs
        self.lr, self.momentum, self.weight_decay, self.batch = lr, momentum, weight_decay, batch
        self.held_out, self.seed = held_out, seed

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the student, with random weights."""
        self.student = self.backbone.trainable_copy()

    def fit(self, normals: TrainingSet) -> None:
        """Train on most images and keep the epoch with the lowest maps on the held-out ones, as in the authors' code.

        Raises:
            ValueError: fewer than two images, or the loss is not finite.
        """
        trained, held_out = normals.hold_out(self.held_out, self.seed)
        teacher = trained.feature_array(self.directions, self.batch)
        targets = held_out.feature_array(self.directions, self.batch)
        optimiser = torch.optim.SGD(
            self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay, fused=True
        )
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(trained), self.batch):
                distances = self.distances(trained.select(numbers), teacher[numbers])
                epoch.step(torch.stack([distance.mean() for distance in distances]).sum())
            loop.keep_best(self.eval().mean_map(held_out, targets), self)
            self.train()
        loop.load_best(self)
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The product of the levels' squared distances, upsampled; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        product = self.product(self.distances(images, self.directions(images)))
        maps = F.interpolate(product[:, None], images.shape[2:], mode="bilinear")[:, 0]
        return Scores(maps.amax(dim=(1, 2)), maps)

    def directions(self, images: Tensor) -> list[Tensor]:
        """The teacher's features, normalised to unit length, (B, C, h, w) per level."""
        return [F.normalize(level, dim=1) for level in self.backbone(images)]

    def distances(self, images: Tensor, teacher: Sequence[Tensor]) -> list[Tensor]:
        """Squared distances (B, h, w) between unit features per level (twice equation 1)."""
        pairs = zip(self.student(images), teacher, strict=True)
        return [(F.normalize(ours, dim=1) - theirs).square().sum(dim=1) for ours, theirs in pairs]

    def product(self, distances: Sequence[Tensor]) -> Tensor:
        """(B, h, w): product of the levels' maps on the first level's grid."""
        grid = distances[0].shape[1:]
        maps = [F.interpolate(distance[:, None], grid, mode="bilinear")[:, 0] for distance in distances]
        return torch.stack(maps).prod(dim=0)

    @torch.no_grad()
    def mean_map(self, held_out: TrainingSet, targets: FeatureArray) -> float:
        """The mean score over all patches of held-out images."""
        total = 0.0
        for numbers in torch.split(torch.arange(len(held_out)), self.batch):
            maps = self.product(self.distances(held_out.select(numbers), targets[numbers]))
            total += float(maps.mean(dim=(1, 2)).sum())
        return total / len(held_out)
