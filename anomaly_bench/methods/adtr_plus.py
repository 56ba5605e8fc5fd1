"""ADTR+: ADTR that pushes the errors of anomalies away from zero.

Zhiyuan You, Kai Yang, Wenhan Luo, Lei Cui, Yu Zheng, Xinyi Le; ICONIP 2022, arXiv 2209.01816: Anomaly Detection
Transformer with Feature Reconstruction, the loss for anomalies that are available.

The network, its schedule and the scores are ADTR's. The paper's anomalies are FCDD's confetti on MVTec AD, whose pixels
are known, and images of other classes on CIFAR-10, of which only the image's label is known; it has a loss for either.
So it is here: confetti with the pixel-level loss, or a folder of photographs with the image-level loss, never images
of the test set. One anomaly for each training image is drawn before the training. The paper gives the loss's weight for
CIFAR-10 only; ours is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.feature_transformer import FeatureTransformer, grid_features, scored, tokens
from anomaly_bench.components.synthetic_anomalies.confetti import spoiled
from anomaly_bench.components.synthetic_anomalies.perlin import Texture, folder_texture
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_positive
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import FeatureArray, Features, TrainingSet

LEAST = 1e-12  # of the anomalies' mean error, in its logarithm


class ADTRPlus(nn.Module):
    """ADTR+.

    Args:
        backbone: a frozen network.
        epochs, lr, weight_decay, batch: for training with AdamW; half of the images are anomalies.
        clip: maximum gradient norm.
        drop: share of the training after which the learning rate is a tenth.
        alpha: weight of the anomalies' loss.
        largest: errors of an image that the image-level loss counts.
        anomaly_source: a folder of photographs of other things, labelled as a whole; None: confetti.
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
        alpha: float = 0.003,
        largest: int = 20,
        anomaly_source: str | None = None,
        grid: int = 16,
        width: int = 256,
        heads: int = 8,
        layers: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        check_positive(grid=grid, largest=largest)
        super().__init__()
        self.backbone, self.epochs, self.lr, self.weight_decay = backbone, epochs, lr, weight_decay
        self.batch, self.clip, self.drop, self.grid = batch, clip, drop, grid
        self.alpha, self.largest = alpha, largest
        self.settings = width, heads, layers, hidden, dropout
        self.source: Texture | None = None
        if anomaly_source is not None:
            self.source = folder_texture(Path(str(anomaly_source)).expanduser())

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the transformer for (C, h, w) levels."""
        self.network = FeatureTransformer(sum(shape[0] for shape in shapes), self.grid**2, *self.settings)

    def fit(self, normals: TrainingSet) -> None:
        """Train the transformer to reconstruct the features of normal images and fail on those of anomalies.

        Raises:
            ValueError: the loss is not finite.
        """
        features = normals.feature_array(self.features, self.batch)
        anomalies, masks = self.anomalies(normals)
        optimiser = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs, self.clip)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                optimiser.param_groups[0]["lr"] = self.lr * (0.1 if epoch.progress >= self.drop else 1)
                chosen = torch.rand(len(numbers)) < 0.5
                targets = tokens(torch.cat([features[numbers[~chosen]][0], anomalies[numbers[chosen]][0]]))
                known = torch.cat([torch.zeros_like(masks[numbers[~chosen]]), masks[numbers[chosen]]])
                epoch.step(self.loss(self.network(targets) - targets, known.to(targets.device)))
        self.facts = loop.facts

    def loss(self, errors: Tensor, masks: Tensor) -> Tensor:
        """() of (B, L, C) errors; (B, L) masks: of anomalous pixels, or the image's label at each of them."""
        values = pseudo_huber(errors)
        if self.source is None:
            return pixel_loss(values, masks, self.alpha)
        return image_loss(values, masks.any(dim=1), self.alpha, self.largest)

    def anomalies(self, normals: TrainingSet) -> tuple[FeatureArray, Tensor]:
        """Features of an anomaly for each training image, and the cells (N, L) bool with anomalous pixels."""
        masks: list[Tensor] = []

        def change(images: Tensor) -> Tensor:
            changed = torch.stack([self.anomaly(image) for image in images.cpu()])
            differ = (changed != images.cpu()).any(dim=1, keepdim=True).float()
            cells = F.adaptive_max_pool2d(differ, self.grid).flatten(1) > 0
            masks.append(cells if self.source is None else torch.ones_like(cells))
            return changed.to(images)

        features = normals.feature_array(self.features, self.batch, change)
        return features, torch.cat(masks)

    def anomaly(self, image: Tensor) -> Tensor:
        """A (3, H, W) image -> the same with confetti, or a photograph of that size."""
        if self.source is None:
            return spoiled(image)
        return self.source((image.shape[1], image.shape[2])).to(image) / 255

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


def pseudo_huber(errors: Tensor) -> Tensor:
    """(B, L, C) -> (B, L): of the mean absolute error over channels."""
    return (errors.abs().mean(dim=2).square() + 1).sqrt() - 1


def pixel_loss(values: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """() of errors (B, L) and masks (B, L): means of both parts over all L; images without anomalies have one part."""
    near = (values * ~masks).mean(dim=1)
    far = (values * masks).mean(dim=1)[masks.any(dim=1)]
    return (near.sum() - alpha * log1mexp(far).sum()) / len(values)


def image_loss(values: Tensor, anomalous: Tensor, alpha: float, largest: int) -> Tensor:
    """() of errors (B, L) and labels (B,), from the mean of each image's largest errors."""
    means = values.topk(min(largest, values.shape[1]), dim=1).values.mean(dim=1)
    return (means[~anomalous].sum() - alpha * log1mexp(means[anomalous]).sum()) / len(values)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(-x)), accurate for small x."""
    return torch.log(-torch.expm1(-values.clamp(min=LEAST)))
