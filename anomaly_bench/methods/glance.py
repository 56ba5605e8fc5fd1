"""Glance, also Loc-Glo: Glancing at the Patch: Anomaly Localization with Global and Local Feature Comparison.

Shenzhi Wang, Liwei Wu, Lei Cui, Yujun Shen; CVPR 2021. There is no public code, and this is a reconstruction from what
others report of the paper.

A local network, distilled from a pretrained one, describes a patch; a global network predicts that description from
the image without the patch. Both disagree at anomalies: their distance is one score, and the answer of a classifier
that has learnt to tell descriptions of clean patches from those of stained ones is the other.

The global network has partial convolutions, so that the patch cannot change the prediction. Ours are the layers of all
networks, that the prediction is read where the patch is, beside the mean over the image, and that the distilled network
stays as it is afterwards, as both could otherwise agree on a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.distillation import correlations, squared_distance
from anomaly_bench.components.imagenet import normalised
from anomaly_bench.components.partial_convolution import GlobalNetwork
from anomaly_bench.components.patch_maps import between, spread
from anomaly_bench.components.patch_network import SLOPE
from anomaly_bench.components.patches import cut_corners, random_corners
from anomaly_bench.components.synthetic_anomalies.stains import stained
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_positive
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

SEEN = 33  # pixels a side of a patch as the local network sees it
TAUGHT = 64  # pixels a side of a patch as the pretrained network sees it
CODE = 128  # dimensions of a description
EACH = 4  # patches of each training image that are distilled in a step
CALIBRATION = 8  # patches of each training image for the scales of the two scores
HIDDEN = 1 / 12  # of an image at most, in several patches, for which the global network learns at once
CHUNK = 50  # patches that are scored at once


class Glance(nn.Module):
    """Glance.

    Args:
        backbone: a frozen network, whose last level, averaged over the patch, the local network learns.
        epochs, lr, weight_decay, batch: for training with Adam; each epoch has a step's patches of every image once.
        pretraining: share of the training for the local network.
        lessons: random patches of each training image that the local network learns from.
        side: of the patches, in pixels.
        grid: patches along each side of the image when scoring.
        weight: of the distance in the score; the rest is the classifier's.
    """

    code_mean: Tensor  # (CODE,) of the local network's outputs
    code_std: Tensor
    term_mean: Tensor  # (2,) of the distance and of the classifier's score
    term_std: Tensor

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch: int = 32,
        pretraining: float = 0.4,
        lessons: int = 32,
        side: int = 33,
        grid: int = 20,
        weight: float = 0.8,
    ) -> None:
        if not 0 < pretraining < 1 or not 0 <= weight <= 1:
            raise UsageError(f"method.pretraining={pretraining}, method.weight={weight}: expected shares of 1")
        check_positive(lessons=lessons, side=side, grid=grid)
        super().__init__()
        self.backbone, self.epochs, self.lr, self.weight_decay = backbone, epochs, lr, weight_decay
        self.batch, self.pretraining, self.lessons = batch, pretraining, lessons
        self.side, self.grid, self.weight = side, grid, weight

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the networks and the scores' scales; levels do not matter."""
        self.local, self.glancing = local_network(), GlobalNetwork(CODE)
        self.judge = nn.Sequential(nn.Linear(2 * CODE, CODE), nn.ReLU(), nn.Linear(CODE, 1))
        for name, size in (("code", CODE), ("term", 2)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        for layer in (*self.local, *self.glancing.layers):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Distil the local network, train the global one and the classifier, and measure the scores of normal patches.

        Raises:
            UsageError: patches larger than the images.
            ValueError: the loss is not finite.
        """
        height, width = normals.size
        if self.side > min(height, width):
            raise UsageError(f"method.side={self.side}: expected patches within images of {height} x {width} pixels")
        hidden = max(1, int(HIDDEN * height * width / self.side**2))
        corners, wanted = self.teach(normals)
        decoder = nn.Linear(CODE, wanted.shape[2]).to(wanted.device)
        distil = self.adam(nn.ModuleList([self.local, decoder]))
        predict = self.adam(nn.ModuleList([self.glancing, self.judge]))
        loop = Loop(nn.ModuleList([self, decoder]), [distil, predict], normals, self.epochs)
        loop.memo["standardised"] = False
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                images = normals.select(numbers)
                if epoch.progress < self.pretraining:
                    chosen = numbers[:, None], torch.randint(self.lessons, (len(numbers), EACH))
                    codes = self.local(normalised(self.patches(images, corners[chosen])))
                    epoch.step(distillation(codes, decoder(codes), wanted[chosen].flatten(0, 1)), distil)
                    continue
                if not loop.memo["standardised"]:
                    loop.memo["standardised"] = self.standardise(normals, corners)
                epoch.step(self.loss(images, random_corners(normals.size, self.side, len(images), hidden)), predict)
        if not loop.memo["standardised"]:  # a budget of one step
            self.standardise(normals, corners)
        self.eval()
        self.calibrate(normals)
        self.facts = loop.facts

    def adam(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)

    @torch.no_grad()
    def teach(self, normals: TrainingSet) -> tuple[Tensor, Tensor]:
        """Corners (N, n, 2) of random patches, and their standardised features (N, n, C)."""
        corners, found = [], []
        for images in normals.images(self.batch):
            corners.append(random_corners(normals.size, self.side, len(images), self.lessons))
            for each, places in zip(images, corners[-1], strict=True):
                patches = cut_corners(each[None], places[None], self.side)
                level = self.backbone(F.interpolate(patches, (TAUGHT, TAUGHT), mode="bilinear"))[-1]
                found.append(level.mean(dim=(2, 3)))
        wanted = torch.stack(found)
        std, mean = torch.std_mean(wanted, dim=(0, 1), correction=0)
        return torch.cat(corners), (wanted - mean) / std.clamp(min=1e-6)

    def patches(self, images: Tensor, corners: Tensor) -> Tensor:
        """The patches (B * n, 3, SEEN, SEEN) of images at corners (B, n, 2)."""
        patches = cut_corners(images, corners, self.side)
        return patches if self.side == SEEN else F.interpolate(patches, (SEEN, SEEN), mode="bilinear")

    @torch.no_grad()
    def standardise(self, normals: TrainingSet, corners: Tensor) -> bool:
        """Set mean and deviation of the local network's outputs; True."""
        batches = zip(normals.images(self.batch), torch.split(corners, self.batch), strict=True)
        codes = torch.cat([self.local(normalised(self.patches(images, places))) for images, places in batches])
        std, mean = torch.std_mean(codes, dim=0, correction=0)
        self.code_mean.copy_(mean)
        self.code_std.copy_(std.clamp(min=1e-6))
        return True

    def describe(self, patches: Tensor) -> Tensor:
        """(n, 3, SEEN, SEEN) -> (n, CODE), with mean 0 and deviation 1 over training patches."""
        with torch.no_grad():
            codes: Tensor = (self.local(normalised(patches)) - self.code_mean) / self.code_std
        return codes

    def loss(self, images: Tensor, corners: Tensor) -> Tensor:
        """Mean squared distance of both descriptions, and cross-entropy for clean (1) and stained (0) patches."""
        patches = self.patches(images, corners)
        clean, dirty = self.describe(patches), self.describe(stained(patches.cpu()).to(patches))
        predicted = self.glancing(normalised(images), corners, self.side)
        answers = self.judge(torch.cat([torch.cat([clean, dirty]), predicted.repeat(2, 1)], dim=1))[:, 0]
        labels = torch.cat([torch.ones(len(clean)), torch.zeros(len(dirty))]).to(answers)
        return F.mse_loss(predicted, clean) + F.binary_cross_entropy_with_logits(answers, labels)

    def terms(self, images: Tensor, corners: Tensor) -> Tensor:
        """(B, 2) distance of both descriptions, and 1 - the classifier's probability of a clean patch, at (B, 2)."""
        own = self.describe(self.patches(images, corners[:, None]))
        predicted = self.glancing(normalised(images), corners[:, None], self.side)
        answers = self.judge(torch.cat([own, predicted], dim=1))[:, 0]
        return torch.stack([(own - predicted).square().mean(dim=1), torch.sigmoid(-answers)], dim=1)

    @torch.no_grad()
    def calibrate(self, normals: TrainingSet) -> None:
        """Set mean and deviation of both terms over random training patches of the grid."""
        terms, grid = [], self.corners(normals.size)
        for images in normals.images(self.batch):
            for places in grid[torch.randint(len(grid), (CALIBRATION, len(images)))]:
                terms.append(self.terms(images, places))
        std, mean = torch.std_mean(torch.cat(terms), dim=0, correction=0)
        self.term_mean.copy_(mean)
        self.term_std.copy_(std.clamp(min=1e-6))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Scores of a grid of patches, bilinear between their centres; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        size = images.shape[2:]
        grid = self.corners(size)
        terms = torch.stack([torch.cat(list(self.chunks(image, grid))) for image in images])
        terms = (terms - self.term_mean) / self.term_std
        scores = self.weight * terms[..., 0] + (1 - self.weight) * terms[..., 1]
        rows, columns = self.places(size)
        scores = scores.view(images.shape[0], len(rows), len(columns))
        maps = spread(scores, size, (rows, columns), self.side, between)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def chunks(self, image: Tensor, grid: Tensor) -> Iterator[Tensor]:
        """The terms of a (3, H, W) image's patches, some at a time."""
        for corners in torch.split(grid, CHUNK):
            yield self.terms(image.expand(len(corners), -1, -1, -1), corners)

    def corners(self, size: Sequence[int]) -> Tensor:
        """(n, 2) upper left corners of the grid's patches in (H, W) images, row by row."""
        return torch.cartesian_prod(*(torch.tensor(axis) for axis in self.places(size)))

    def places(self, size: Sequence[int]) -> list[Sequence[int]]:
        """Rows and columns at which the grid's patches start."""
        return [starts(length, self.side, self.grid) for length in size]


def local_network() -> nn.Sequential:
    """(n, 3, SEEN, SEEN) -> (n, CODE): the layers of Uninformed Students for patches of 33 pixels, half as wide."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 5), nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 128, 2), nn.LeakyReLU(SLOPE), nn.Conv2d(128, CODE, 4), nn.Flatten())


def distillation(codes: Tensor, decoded: Tensor, wanted: Tensor) -> Tensor:
    """() squared distance of (n, C) features, and squared correlations of different entries of (n, CODE), over CODE."""
    others = correlations(codes, least=1e-6).fill_diagonal_(0)
    return (squared_distance(decoded, wanted) + others.square().sum()) / codes.shape[1]


def starts(length: int, side: int, count: int) -> Sequence[int]:
    """Where patches of this side begin: `count` evenly from border to border, fewer if they would coincide."""
    if count == 1:
        return [(length - side) // 2]
    return sorted({number * (length - side) // (count - 1) for number in range(count)})
