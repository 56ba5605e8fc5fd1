"""FYD: Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly Detection and Localization.

Ye Zheng, Xiang Wang, Rui Deng, Tianpeng Bao, Rui Zhao, Liwei Wu; 2021, arXiv 2110.04538 (ICME 2022).

PaDiM on a network that was trained on the normal images for features that agree at corresponding positions. Spatial
transformers align images (coarsely, by the difference of their pixels) and levels; then non-contrastive learning
brings the features of different images at the same position together (finely).

A reconstruction: there is no code, and only the abstract, the tables and a summary were at hand. They fix the two
alignments, their losses, and where the transformers stand; everything else is a choice of ours, named in the YAML's
`about.evidence` and an argument below. Without training it is PaDiM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import gaussian, upsampling
from anomaly_bench.components.embedding import draw_dimensions, embed
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_count, check_fitted, check_grid
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import TrainingSet


class FYD(nn.Module):
    """FYD.

    Args:
        backbone: a network read at three levels, of which a copy is trained.
        dimensions, seed, eps, sigma: as of PaDiM.
        epochs: 0: no training.
        lr, momentum, batch: for training with SGD; the learning rate falls to 0 along a cosine.
        weight: of the coarse alignment in the loss.
        align: whether images and levels are transformed; None: unless the task is a texture or `unaligned`.
        unaligned: names of tasks.
        angle, shift, scale: most degrees of rotation; most shift of images, as a share of the side; logarithm of the
            most scale of levels.
    """

    chosen: Tensor  # (D,) indices of embedding dimensions, ascending
    mean: Tensor  # (h * w, D)
    whitener: Tensor  # (h * w, D, D), W with W W^T = covariance^-1

    def __init__(
        self,
        backbone: Backbone,
        dimensions: int,
        seed: int,
        epochs: int,
        lr: float = 1e-4,
        momentum: float = 0.9,
        batch: int = 16,
        weight: float = 1.0,
        align: bool | None = None,
        unaligned: Sequence[str] = (),
        angle: float = 45.0,
        shift: float = 0.1,
        scale: float = 0.1,
        eps: float = 0.01,
        sigma: float = 4.0,
    ) -> None:
        if batch < 2:
            raise UsageError(f"method.batch={batch}: expected at least 2, as images are compared with each other")
        super().__init__()
        self.backbone, self.dimensions, self.seed = backbone, dimensions, seed
        self.epochs, self.lr, self.momentum, self.batch, self.weight = epochs, lr, momentum, batch, weight
        self.align, self.unaligned, self.bounds = align, unaligned, (math.radians(angle), shift, scale)
        self.eps, self.sigma = eps, sigma

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Copy the network and create what is trained with it, for these (C, h, w) levels, the largest grid first.

        Raises:
            UsageError: not three levels of one network, or fewer channels than dimensions.
        """
        if len(shapes) != 3:
            raise UsageError(f"method.levels: {len(shapes)} levels; FYD needs three levels of one network")
        self.grid, channels = shapes[0][1:], [shape[0] for shape in shapes]
        self.stages = nn.ModuleList(self.backbone.trainable_stages())
        self.make_transformers(self.align is not False, channels)
        self.projectors = nn.ModuleList(convolutions(count, 3, bias=False) for count in channels)
        self.predictors = nn.ModuleList(convolutions(count, 2, bias=True) for count in channels)
        positions = self.grid[0] * self.grid[1]
        self.register_buffer("chosen", draw_dimensions(self.dimensions, shapes, self.seed))
        self.register_buffer("mean", torch.empty(positions, self.dimensions))
        self.register_buffer("whitener", torch.empty(positions, self.dimensions, self.dimensions))

    def make_transformers(self, aligned: bool, channels: Sequence[int]) -> None:
        """Create those of the image and of each level, or none."""
        angle, shift, scale = self.bounds
        made = [Transformer(3, angle, shift=shift), *(Transformer(count, angle, scale=scale) for count in channels)]
        self.transformers, self.resolved = nn.ModuleList(made if aligned else []), {"align": aligned}

    def fit(self, normals: TrainingSet) -> None:
        """Train the network, and fit PaDiM's Gaussians to its aligned features.

        Raises:
            ValueError: fewer than two images; the loss is not finite; a covariance is singular despite `eps`.
        """
        check_count(normals, 2, "FYD's covariance")
        if self.align is None and (normals.group == "textures" or normals.name in self.unaligned):
            self.make_transformers(False, [])
        self.facts: dict[str, Any] = {**self.resolved}
        if self.epochs != 0:
            self.learn(normals)
        self.eval()
        moments = gaussian.Moments(self.mean, self.whitener)
        with torch.no_grad():
            for images in normals.images(self.batch):
                levels, thetas = self(images)
                moments.add_(embed(in_one_frame(levels[1:], thetas), self.chosen))
        moments.finish()
        gaussian.whiten_task_(moments.scatter, moments.count - 1, self.eps, normals.name)

    def learn(self, normals: TrainingSet) -> None:
        """Train everything together."""
        optimiser = torch.optim.SGD(self.parameters(), self.lr, self.momentum)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, whole=True):
                optimiser.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * epoch.progress)) / 2
                (warped, *levels), _ = self(normals.select(numbers))
                parts = zip(levels, self.projectors, self.predictors, strict=True)
                loss = torch.stack([fine_loss(project(level), predict) for level, project, predict in parts]).mean()
                epoch.step(loss + self.weight * coarse_loss(warped) if self.transformers else loss)
        self.facts |= loop.facts

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W) -> images and levels (B, C, h, w) after their transformers; and the transforms (B, 2, 3)."""
        outputs, thetas = [images], []
        for number in range(1 + len(self.stages)):
            if number > 0:
                outputs.append(self.stages[number - 1](outputs[-1]))
            if self.transformers:
                thetas.append(self.transformers[number](outputs[-1]))
                outputs[-1] = warp(outputs[-1], thetas[-1])
        return outputs, thetas

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Mahalanobis distances, upsampled, turned back into the image's frame, and blurred; the maximum of the map.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        levels, thetas = self(images)
        check_grid(levels[1].shape[-2:], self.grid)
        patches = embed(in_one_frame(levels[1:], thetas), self.chosen)
        distances = gaussian.mahalanobis(patches, self.mean, self.whitener)  # (h * w, B)
        maps, size = distances.T.reshape(-1, *self.grid), images.shape[2:]
        if thetas:
            maps = upsampling.smooth_upsample(maps, size, sigma=0)
            maps = warp(maps[:, None], inverse(thetas[0], thetas[1]), "border")[:, 0]
        maps = upsampling.smooth_upsample(maps, size, self.sigma)
        return Scores(maps.amax(dim=(1, 2)), maps)


class Transformer(nn.Module):
    """A spatial transformer's localisation network: a rotation with shifts or scales, all bounded, at first none.

    Args:
        angle, shift, scale: most radians; most shift, as a share of the side; logarithm of the most scale.
    """

    def __init__(self, channels: int, angle: float, shift: float = 0.0, scale: float = 0.0) -> None:
        super().__init__()
        self.angle, self.shift, self.scale = angle, shift, scale
        last = nn.Linear(1024, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            *(nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
            nn.MaxPool2d(3, 2, padding=1),
            *(nn.Conv2d(64, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.MaxPool2d(3, 2, padding=1), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
            *(nn.Linear(256, 1024), nn.ReLU(), last),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 2, 3): from coordinates of the output, in [-1, 1], to those of the input."""
        angle, first, second = self.network(inputs).tanh().unbind(dim=1)
        cos, sin = (self.angle * angle).cos(), (self.angle * angle).sin()
        across, down = (self.scale * first).exp(), (self.scale * second).exp()
        top = torch.stack([across * cos, -across * sin, 2 * self.shift * first], dim=1)
        return torch.stack([top, torch.stack([down * sin, down * cos, 2 * self.shift * second], dim=1)], dim=1)


def convolutions(channels: int, count: int, bias: bool) -> nn.Sequential:
    """1 x 1 convolutions with batch norms and ReLUs between them; a bias before a norm would have no effect."""
    layers: list[nn.Module] = []
    for _ in range(count - 1):
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, channels, 1, bias=bias))


def coarse_loss(images: Tensor) -> Tensor:
    """Mean distance () of colours (B, 3, H, W) between each image and the next one of the batch."""
    distances: Tensor = torch.linalg.vector_norm(images - images.roll(1, dims=0), dim=1)
    return distances.mean()


def fine_loss(projected: Tensor, predict: nn.Module) -> Tensor:
    """Minus the mean cosine () between predictions of one half of (B, C, h, w) and the other half, both ways.

    No gradient flows through what is predicted, so that the features do not collapse.
    """
    predicted, half = predict(projected), len(projected) // 2
    targets = torch.cat([projected[half : 2 * half], projected[:half]]).detach()
    likeness: Tensor = F.cosine_similarity(predicted[: 2 * half], targets, dim=1).mean()
    return -likeness


def in_one_frame(levels: Sequence[Tensor], thetas: Sequence[Tensor]) -> list[Tensor]:
    """Three levels (B, C, h, w) after their transformers; the last two turned back into the first one's frame."""
    if not thetas:
        return list(levels)
    return [levels[0], warp(levels[1], inverse(thetas[2])), warp(levels[2], inverse(thetas[2], thetas[3]))]


def warp(inputs: Tensor, theta: Tensor, padding: str = "reflection") -> Tensor:
    """(B, C, h, w) read bilinearly at transformed (B, 2, 3) coordinates."""
    grid = F.affine_grid(theta, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def inverse(*thetas: Tensor) -> Tensor:
    """The inverse (B, 2, 3) of the product of transforms (B, 2, 3)."""
    product = thetas[0]
    for theta in thetas[1:]:
        linear, shift = product[:, :, :2], product[:, :, 2:]
        product = torch.cat([linear @ theta[:, :, :2], linear @ theta[:, :, 2:] + shift], dim=2)
    (a, b), (c, d) = (row.unbind(1) for row in product[:, :, :2].unbind(1))
    linear = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -linear @ product[:, :, 2:]], dim=2)
