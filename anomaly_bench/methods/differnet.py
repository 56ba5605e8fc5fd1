"""DifferNet: Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows.

Marco Rudolph, Bastian Wandt, Bodo Rosenhahn; 2020 (WACV 2021), arXiv 2008.12577.

A network reads the image at three sizes, and its pooled deepest maps form one vector; a normalising flow learns the
density of the normal images' vectors. The image score is the mean of z^2 over many rotations. As in the authors' code:
the image is downsampled by nearest neighbour, and the log-determinant enters the training loss but not the score. The
code tests the model after each of 24 training stages and prints the best; here the last counts. The gradient maps are
not evaluated in the paper or the code, so there is no map.

In training, a batch holds several random rotations of each image. The code rotates and runs the network every time;
`train_views` keeps the vectors of a fixed set of rotations instead, so the network runs only once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import augmentation
from anomaly_bench.components.flows import Flow, TwoSided
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores, to_tensor

if TYPE_CHECKING:
    from anomaly_bench.components.training import Epoch
    from anomaly_bench.protocol import Features, TrainingSet

MOST_IMAGES = 32  # most rotated images per forward pass


class DifferNet(nn.Module):
    """DifferNet as in section 3, without the gradient maps of 3.4.

    Args:
        backbone: a frozen network, read at its deepest level (or at several, whose averages are concatenated).
        epochs: of training; the code has 24 stages of 8 = 192.
        views: rotations of a test image, evenly spaced over 360 degrees.
        train_views: random rotations of each training image whose vectors are kept; 0: new ones in each epoch.
        per_image: rotations of an image in a batch.
        blocks, hidden, clamp: of the flow: coupling blocks, width of the three hidden layers in each of their two
            subnets, and clamp of the log-scales.
        batch: images per step; there are `per_image` times as many vectors.
        lr, betas, eps, weight_decay: of Adam.
    """

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        views: int = 64,
        train_views: int = 16,
        per_image: int = 4,
        blocks: int = 8,
        hidden: int = 2048,
        clamp: float = 3.0,
        batch: int = 24,
        lr: float = 2e-4,
        betas: Sequence[float] = (0.8, 0.8),
        eps: float = 1e-4,
        weight_decay: float = 1e-5,
    ) -> None:
        if views < 1 or train_views < 0:
            raise UsageError(f"method.views={views}, train_views={train_views}: expected at least 1 and at least 0")
        super().__init__()
        self.backbone, self.epochs, self.views, self.train_views = backbone, epochs, views, train_views
        self.per_image, self.blocks, self.hidden, self.clamp, self.batch = per_image, blocks, hidden, clamp, batch
        self.lr, self.betas, self.eps, self.weight_decay = lr, (betas[0], betas[1]), eps, weight_decay

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the flow for the pooled features of these (C, h, w) levels at three image sizes."""
        self.dimensions = 3 * sum(shape[0] for shape in shapes)
        self.flow = self.draw_flow()

    def draw_flow(self) -> Flow:
        """A flow with random weights."""
        return Flow(
            TwoSided([self.dimensions], lambda inputs, outputs: Subnet(inputs[0], outputs[0], self.hidden), self.clamp)
            for _ in range(self.blocks)
        )

    def fit(self, normals: TrainingSet) -> None:
        """Train the flow on rotated images (equation 4).

        Raises:
            UsageError: images whose quarter size is too small for the network.
        """
        self.check(normals)
        views = None
        if self.train_views:  # revision 1 draws the angles before the flow
            torch.manual_seed(torch.initial_seed())
            views = normals.feature_array(self.random_views, self.batch)
            self.flow = self.draw_flow().to(normals.device)
        optimiser = torch.optim.Adam(
            self.parameters(), self.lr, self.betas, self.eps, weight_decay=self.weight_decay, fused=True
        )
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                vectors = self.drawn(views[numbers][0], epoch) if views else self.turned(normals, numbers, epoch)
                epoch.step(self.loss(vectors))
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Mean of z^2 over all dimensions and `views` rotations; there is no map.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        angles = torch.arange(self.views, device=images.device) * (360 / self.views)
        count = images.shape[0]
        total = torch.zeros(count, device=images.device)
        whole = torch.compiler.is_compiling()  # a graph has no loops
        for part in (angles,) if whole else torch.split(angles, max(1, MOST_IMAGES // count)):
            rotated = augmentation.rotate_images(images.repeat(len(part), 1, 1, 1), part.repeat_interleave(count))
            (z,), _ = self.flow([self.vectors(rotated)])
            total += z.square().mean(dim=1).view(len(part), count).sum(dim=0)
        return Scores(total / self.views, None)

    def loss(self, vectors: Tensor) -> Tensor:
        """The negative log-likelihood per dimension, without its constant, of (B, D) vectors: ()."""
        (z,), log_det = self.flow([vectors])
        loss: Tensor = (z.square().sum(dim=1) / 2 - log_det).mean() / z.shape[1]
        return loss

    def vectors(self, images: Tensor) -> Tensor:
        """(B, D): the averages of every level, at full, half and quarter image size."""
        height, width = images.shape[2:]
        scales = [images, *(F.interpolate(images, (height // factor, width // factor)) for factor in (2, 4))]
        return torch.cat([level.mean(dim=(2, 3)) for scale in scales for level in self.backbone(scale)], dim=1)

    def random_views(self, images: Tensor) -> list[Tensor]:
        """The vectors of random rotations, shaped like a feature level: (B, D, train_views, 1)."""
        angles = 360 * torch.rand(self.train_views, len(images))
        return [
            torch.stack([self.vectors(augmentation.rotate_images(images, row)) for row in angles], dim=2)[..., None]
        ]

    def drawn(self, views: Tensor, epoch: Epoch) -> Tensor:
        """Draw `per_image` of each image's (B, D, train_views, 1) vectors: (B * per_image, D)."""
        picked = torch.randint(self.train_views, (len(views), self.per_image), generator=epoch.generator)
        vectors = views[..., 0].transpose(1, 2)  # (B, train_views, D)
        return vectors.take_along_dim(picked.to(views.device)[..., None], dim=1).flatten(0, 1)

    def turned(self, normals: TrainingSet, numbers: Tensor, epoch: Epoch) -> Tensor:
        """The vectors (B * per_image, D) of new rotations of the chosen images."""
        images = normals.select(numbers)
        angles = 360 * torch.rand(self.per_image, len(images), generator=epoch.generator)
        return torch.cat([self.vectors(augmentation.rotate_images(images, row)) for row in angles])

    def check(self, normals: TrainingSet) -> None:
        """Raise UsageError if pooling reduces the smallest scale to nothing."""
        try:
            self.vectors(to_tensor(normals.pixels[:1], normals.device))
        except RuntimeError as error:
            if "too small" not in str(error):
                raise
            height, width = normals.size
            raise UsageError(
                f"method=differnet also reads the image at quarter size; found images of {height} x {width} pixels, "
                "whose quarter is too small for the backbone; expected at least 256 x 256, such as the published "
                "448 x 448: set input.resize"
            ) from error


class Subnet(nn.Module):
    """Predicts log-scales and shifts for one half of a vector from the other, with three hidden layers."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        widths = [inputs, hidden, hidden, hidden]
        layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, outputs))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One (B, inputs) -> one (B, outputs)."""
        return [self.layers(maps[0])]
