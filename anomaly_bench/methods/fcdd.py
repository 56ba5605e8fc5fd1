"""FCDD: Explainable Deep One-Class Classification.

Philipp Liznerski, Lukas Ruff, Robert A. Vandermeulen, Billy Joe Franks, Marius Kloft, Klaus-Robert Mueller; ICLR 2021,
arXiv 2007.01760.

The first layers of a pretrained network stay as they are, later ones learn to answer normal images with zeros and
images with synthetic anomalies ("confetti") with anything else. The answers at the cells of the feature grid, enlarged
by a Gaussian the size of a cell's receptive field, are the anomaly map.

This is the authors' code for MVTec AD without labelled anomalies; their semi-supervised variant trains on test images
that stay in the test set, and is not built. As in their code, all batch norms use and update batch statistics, the
frozen ones too, images are normalised in contrast, not by ImageNet's statistics, and the Gaussian is not normalised, so
maps are weaker towards the border. Differences: contrast is scaled by extremes that are computed here on the training
images, where the code has a table for MVTec AD's classes; colours are changed in float, not in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from anomaly_bench.components.synthetic_anomalies.confetti import spoiled
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import TrainingSet

JUMP = 8  # pixels between the cells of the level that is read
FIELD, SIGMA = 62, 12.0  # pixels: receptive field of VGG-11-BN's cells, and deviation of the Gaussian
CENTRE = 3  # pixel in the middle of the first cell's receptive field, 3.5 rounded down
CONSTANT = 1e-6  # mean absolute value that rounding alone may give
GUARD = 1e-31  # in the logarithm
BRIGHT_NOISE = 0.1  # of the image's deviation
JITTERS = v2.ColorJitter(0.04, 0.04, 0.04, 0.04), v2.ColorJitter(0.005, 0.0005, 0.0005, 0.0005)


class FCDD(nn.Module):
    """FCDD with confetti.

    Args:
        backbone: a network read at two levels: the first ends the frozen part, the second, of stride 8, is read.
        epochs, lr, momentum, weight_decay, batch: for training with SGD (Nesterov).
        decay: of the learning rate in each epoch.
        repeats: of each image in an epoch.
        confetti: share of the images that get a synthetic anomaly.
        margin: pixels by which the network's input is smaller than the images, which are cropped or scaled down.
    """

    low: Tensor  # (3, 1, 1) smallest and
    span: Tensor  # (3, 1, 1) largest minus smallest value of the training images, normalised in contrast

    def __init__(
        self,
        backbone: Backbone,
        epochs: int,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay: float = 0.985,
        batch: int = 128,
        repeats: int = 10,
        confetti: float = 0.5,
        margin: int = 16,
    ) -> None:
        if margin < 0 or margin % JUMP:
            raise UsageError(f"method.margin={margin}: expected a multiple of {JUMP} pixels, such as 16")
        if not 0 < confetti <= 1:
            raise UsageError(f"method.confetti={confetti}: expected a share above 0 and at most 1")
        super().__init__()
        self.backbone, self.epochs, self.lr, self.decay = backbone, epochs, lr, decay
        self.momentum, self.weight_decay = momentum, weight_decay
        self.batch, self.repeats, self.confetti, self.margin = batch, repeats, confetti, margin

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Copy the network with its weights, and add a convolution to one channel.

        Raises:
            UsageError: not two levels of one network, or images that are smaller than the margin.
        """
        if len(shapes) != 2:
            raise UsageError(f"FCDD: {len(shapes)} levels; expected two of one network, such as method.levels=[1,2]")
        if JUMP * min(shapes[1][1:]) <= self.margin:
            raise UsageError(f"method.margin={self.margin}: nothing is left of the images; expected a smaller margin")
        self.network = self.backbone.trainable_copy(pretrained=True, normalise=False)
        self.network.freeze_first()
        self.head = nn.Conv2d(shapes[1][0], 1, 1)
        self.register_buffer("low", torch.zeros(3, 1, 1))
        self.register_buffer("span", torch.ones(3, 1, 1))

    def fit(self, normals: TrainingSet) -> None:
        """Train on images of which some have synthetic anomalies, newly drawn each time.

        Raises:
            ValueError: the loss is not finite.
        """
        self.set_range(normals)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimiser = torch.optim.SGD(
            trained, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True, fused=True
        )
        loop, count = Loop(self, optimiser, normals, self.epochs), len(normals)
        for epoch in loop:
            for numbers in epoch.batches(count, self.batch, self.repeats * count):
                optimiser.param_groups[0]["lr"] = self.rate(epoch.progress)
                drawn = [self.draw(image) for image in normals.select(numbers).cpu()]
                views = torch.stack([view for view, _ in drawn]).to(self.low)
                anomalous = torch.tensor([anomaly for _, anomaly in drawn], device=views.device)
                epoch.step(loss(enlarged(self.answers(self.scaled(views)), views.shape[2:]), anomalous))
        self.facts = loop.facts

    def rate(self, progress: float) -> float:
        """The learning rate after a share of the training; it changes between epochs of the full one."""
        return self.lr * self.decay ** int(progress * self.epochs + 1e-6)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is the enlarged answers, the image score the mean of the answers.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        answers = self.answers(self.scaled(self.shrunk(images)))
        maps = enlarged(answers, tuple(side - self.margin for side in images.shape[2:]))
        maps = F.interpolate(maps[:, None], images.shape[2:], mode="nearest")[:, 0]
        return Scores(answers.mean(dim=(1, 2)), maps)

    def answers(self, inputs: Tensor) -> Tensor:
        """Pseudo-Huber values (B, h, w) of the network's outputs."""
        outputs: Tensor = self.head(self.network(inputs)[1])[:, 0]
        return (outputs.square() + 1).sqrt() - 1

    @torch.no_grad()
    def set_range(self, normals: TrainingSet) -> None:
        """The extremes of each channel over the training images."""
        batches = [contrast_normalised(self.shrunk(images)) for images in normals.images(self.batch)]
        low = torch.stack([batch.amin(dim=(0, 2, 3)) for batch in batches]).amin(dim=0)
        high = torch.stack([batch.amax(dim=(0, 2, 3)) for batch in batches]).amax(dim=0)
        self.low.copy_(low.view(3, 1, 1))
        self.span.copy_((high - low).clamp(min=1e-12).view(3, 1, 1))

    def scaled(self, views: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> normalised in contrast; training images then lie in [0, 1]."""
        return (contrast_normalised(views) - self.low) / self.span

    def shrunk(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), scaled down by the margin, with nearest pixels."""
        height, width = images.shape[2:]
        return F.interpolate(images, (height - self.margin, width - self.margin), mode="nearest-exact")

    def draw(self, image: Tensor) -> tuple[Tensor, bool]:
        """A (3, H, W) image -> a random view of it, smaller by the margin, and whether it got an anomaly."""
        anomalous = float(torch.rand(())) < self.confetti
        view = spoiled(image) if anomalous else image
        if float(torch.rand(())) < 0.5:
            height, width = (side - self.margin for side in image.shape[1:])
            top, left = (int(torch.randint(self.margin + 1, ())) for _ in range(2))
            view = view[:, top : top + height, left : left + width]
        else:
            view = self.shrunk(view[None])[0]
        view = JITTERS[int(torch.randint(2, ()))](view)
        if float(torch.rand(())) < 0.5:
            view = (view + BRIGHT_NOISE * view.std() * torch.randn_like(view)).clamp(0, 1)
        return view, anomalous


def loss(maps: Tensor, anomalous: Tensor) -> Tensor:
    """() of maps (B, H, W): their means for normal images, -log(1 - exp(-mean)) for anomalous ones (B,)."""
    means = maps.mean(dim=(1, 2))
    far = -torch.log(1 - torch.exp(-means[anomalous]) + GUARD)
    return torch.cat([means[~anomalous], far]).mean()


def contrast_normalised(images: Tensor) -> Tensor:
    """(B, 3, H, W): minus the image's mean, divided by the mean of the absolute values."""
    images = images - images.mean(dim=(1, 2, 3), keepdim=True)
    scale = images.abs().mean(dim=(1, 2, 3), keepdim=True)
    return images / torch.where(scale > CONSTANT, scale, 1.0)


def enlarged(answers: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h, w) -> (B, *size): the sum of the cells' Gaussians, which is a transposed convolution."""
    if not all(0 <= side - JUMP * cells <= JUMP for cells, side in zip(answers.shape[1:], size, strict=True)):
        found = f"{answers.shape[1]} rows for {size[0]} pixels"
        raise UsageError(f"method.levels: FCDD's last level has {found}; expected level 2, of stride {JUMP}")
    rows, columns = (gaussians(cells, side).to(answers) for cells, side in zip(answers.shape[1:], size, strict=True))
    return rows @ answers @ columns.T


def gaussians(cells: int, side: int) -> Tensor:
    """(side, cells): each column holds a cell's Gaussian; of an even length, its peak counts twice and half as much."""
    half = (FIELD - 2) // 2
    places = torch.arange(side)[:, None] - JUMP * torch.arange(cells) - CENTRE
    places = torch.where(places > 0, places - 1, places)  # twice the peak
    return torch.where(places.abs() <= half, torch.exp(-0.5 * (places / SIGMA) ** 2) / 2, 0.0)
