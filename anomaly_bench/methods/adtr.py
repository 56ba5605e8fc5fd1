"""ADTR: Anomaly Detection Transformer with Feature Reconstruction.

Zhiyuan You, Kai Yang, Wenhan Luo, Lei Cui, Yu Zheng, Xinyi Le; ICONIP 2022, arXiv 2209.01816.

A transformer with learnt queries reconstructs the features of a pretrained network, brought to one grid, on normal
images. Where it fails, there is an anomaly.

There is no public code. The network and the loss are the paper's; the schedule (optimiser, learning rate, gradient
clipping, batch) is that of the same authors' code for their next method, UniAD. As there, the squared error is averaged
over channels, where the paper has their sum: learning rate and clipping belong to that scale. That code keeps the
epoch that is best on the test set; here, as always, the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.feature_transformer import FeatureTransformer, grid_features, scored, tokens
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet


class ADTR(nn.Module):
    """ADTR, trained on normal images only.

    Args:
        backbone: a frozen network.
        epochs, lr, weight_decay, batch: for training with AdamW.
        clip: maximum gradient norm.
        drop: share of the training after which the learning rate is a tenth.
        grid: cells along each side of the image; the transformer has a token for each.
        width, heads, layers, hidden, dropout: of the transformer.
    """

    constant_layers = ("network.decoder.0.norms.0",)  # sees the learnt queries only

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        batch: int = 8,
        clip: float = 0.1,
        drop: float = 0.8,
        grid: int = 16,
        width: int = 256,
        heads: int = 8,
        layers: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        if grid < 1:
            raise UsageError(f"method.grid={grid}: expected at least 1 cell")
        super().__init__()
        self.backbone, self.epochs, self.lr, self.weight_decay = backbone, epochs, lr, weight_decay
        self.batch, self.clip, self.drop, self.grid = batch, clip, drop, grid
        self.settings = width, heads, layers, hidden, dropout

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the transformer for (C, h, w) levels."""
        self.network = FeatureTransformer(sum(shape[0] for shape in shapes), self.grid**2, *self.settings)

    def fit(self, normals: TrainingSet) -> None:
        """Train the transformer to reconstruct the features, which are computed once.

        Raises:
            ValueError: the loss is not finite.
        """
        features = normals.feature_array(self.features, self.batch)
        optimiser = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs, self.clip)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                optimiser.param_groups[0]["lr"] = self.lr * (0.1 if epoch.progress >= self.drop else 1)
                targets = tokens(features[numbers][0])
                epoch.step(F.mse_loss(self.network(targets), targets))
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is the error's norm over channels; the image score its highest mean over a window.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        targets = tokens(self.features(images)[0])
        return scored(self.network(targets) - targets, self.grid, images.shape[2:])

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, C, grid, grid) of all levels together; in a list, as a backbone's."""
        return [grid_features(self.backbone(images), self.grid)]
