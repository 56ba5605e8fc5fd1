"""DFR: Unsupervised Anomaly Segmentation via Deep Feature Reconstruction.

Jie Yang, Yong Shi, Zhiquan Qi; 2020, arXiv 2012.07122 (Neurocomputing 2021).

The levels of a pretrained network are brought to one grid, of a quarter of the image's sides, and concatenated. An
autoencoder of 1 x 1 convolutions learns to reconstruct each position's features on normal images; its error is the map.

The paper and the authors' code differ, and the code has changed; three presets follow them (`PRESETS`). In the paper
and the last code, levels are resized to the image's size and averaged over 4 x 4 pixels. The code pads VGG-19 by
reflection: `backbone=vgg19_reflect`. The authors watch the test set's AUROC during training but keep the last epoch, as
here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_choice, check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

REGION = 4  # pixels: side of a cell of the grid
EXPLAINED = 0.9  # share of the variance, for the size of the code
FIRST = 10  # training images that decide on it


@dataclass(frozen=True)
class Preset:
    """Where the paper and the states of the code differ.

    Attributes:
        nearest: how levels are resized: nearest neighbour, or bilinear with aligned corners.
        pooled: levels are resized to the image's size and averaged over regions, or resized to the grid.
        norms: batch normalisation in the autoencoder.
        corners: whether those of the error map are aligned when it is enlarged.
        root: the error is its L2 norm, or the mean of its squares.
    """

    nearest: bool
    pooled: bool
    norms: bool
    corners: bool
    root: bool


PRESETS = {
    "paper": Preset(nearest=True, pooled=True, norms=False, corners=False, root=True),
    "september_2020": Preset(nearest=True, pooled=False, norms=False, corners=False, root=False),
    "last": Preset(nearest=False, pooled=True, norms=True, corners=True, root=False),
}


class DFR(nn.Module):
    """DFR.

    Args:
        backbone: a frozen network.
        epochs, lr, batch: for training with Adam.
        preset: "paper", or the authors' code of "september_2020" or in its "last" state.
        latent: size of the code; None: the number of principal components that explain 90 % of the variance of the
            features of ten training images.
    """

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 4,
        preset: str = "last",
        latent: int | None = None,
    ) -> None:
        check_choice("preset", preset, PRESETS)
        if latent is not None and latent < 1:
            raise UsageError(f"method.latent={latent}: expected at least 1, or null")
        super().__init__()
        self.backbone, self.epochs, self.lr, self.batch = backbone, epochs, lr, batch
        self.preset, self.latent = PRESETS[preset], latent

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the autoencoder for (C, h, w) levels; one whose code has yet to be sized is replaced by `fit`."""
        self.channels = sum(shape[0] for shape in shapes)
        self.make_network(self.latent or max(1, self.channels // 16))

    def make_network(self, latent: int) -> None:
        """Create the autoencoder with this size of the code."""
        self.resolved = {"latent": latent}
        self.network = autoencoder(self.channels, latent, self.preset.norms)

    def fit(self, normals: TrainingSet) -> None:
        """Choose the size of the code, and train on all positions of each batch of images.

        Raises:
            UsageError: sides that are not multiples of 4.
            ValueError: the loss is not finite.
        """
        check_sides("DFR", normals.size, REGION)
        if self.latent is None:
            first = normals.select(torch.arange(min(FIRST, len(normals))))
            latent = explaining(rows(self.regions(first, replace(self.preset, pooled=True))[0]))
            torch.manual_seed(torch.initial_seed())  # for the same weights as with latent given
            self.make_network(latent)
            self.to(normals.device)
        features = normals.feature_array(lambda images: self.regions(images, self.preset), self.batch)
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                targets = rows(features[numbers][0])
                epoch.step(F.mse_loss(self.network(targets), targets))
        self.facts: dict[str, Any] = {**loop.facts, **self.resolved}

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The error of reconstruction at each position, enlarged; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that are not multiples of 4.
        """
        check_fitted(self)
        check_sides("DFR", images.shape[2:], REGION)
        (regions,) = self.regions(images, self.preset)
        targets = rows(regions)
        squares = (self.network(targets) - targets).square()
        errors = squares.sum(dim=1).sqrt() if self.preset.root else squares.mean(dim=1)
        maps = enlarge(errors.view(images.shape[0], *regions.shape[2:]), images.shape[2:], self.preset.corners)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def regions(self, images: Tensor, preset: Preset) -> list[Tensor]:
        """(B, C, H / 4, W / 4), channels last, of all levels together; in a list, as a backbone's."""
        height, width = (side // REGION for side in images.shape[2:])
        levels, start = self.backbone(images), 0
        whole = images.new_empty(images.shape[0], height, width, sum(level.shape[1] for level in levels))
        for level in levels:
            down = to_regions(level.shape[2], height, preset).to(level)
            across = to_regions(level.shape[3], width, preset).to(level)
            whole[..., start : start + level.shape[1]] = (down @ level @ across.T).permute(0, 2, 3, 1)
            start += level.shape[1]
        return [whole.permute(0, 3, 1, 2)]


@functools.lru_cache(maxsize=64)
def to_regions(length: int, cells: int, preset: Preset) -> Tensor:
    """The matrix (cells, length) that resizes and averages along one side, float32."""
    unit = torch.eye(length, dtype=torch.float64, device="cpu")[None]
    size = cells * REGION if preset.pooled else cells
    if preset.nearest:
        matrix = F.interpolate(unit, size=size, mode="nearest")[0].T
    else:
        matrix = F.interpolate(unit, size=size, mode="linear", align_corners=True)[0].T
    return matrix.reshape(cells, -1, length).mean(dim=1).float()


def rows(level: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return level.permute(0, 2, 3, 1).flatten(0, 2)


def explaining(features: Tensor) -> int:
    """The smallest number of principal components of (n, C) features that explain more than 90 % of the variance."""
    centred = features.double() - features.double().mean(dim=0)
    shares = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0).cumsum(dim=0)
    return min(int((shares <= EXPLAINED * shares[-1]).sum()) + 1, len(shares))


def autoencoder(channels: int, latent: int, norms: bool) -> nn.Sequential:
    """1 x 1 convolutions as linear layers over positions: C, h, 2l, l, 2l, h, C with h = (C + 2l) / 2."""
    hidden = (channels + 2 * latent) // 2
    widths = (channels, hidden, 2 * latent, latent, 2 * latent, hidden, channels)
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs))
        if number not in (2, 5):  # the code and the output
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if norms else [nn.ReLU()]
    return nn.Sequential(*layers)


def enlarge(maps: Tensor, size: Sequence[int], corners: bool) -> Tensor:
    """(B, h, w) -> (B, H, W), bilinear."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=corners)[:, 0]
