"""CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via Conditional Normalizing Flows.

Denis Gudovskiy, Shun Ishizaka, Kazuki Kozuka; 2021 (WACV 2022), arXiv 2107.12571.

Each level of a frozen network has its own normalising flow over the feature vectors (fibres) at its positions,
conditioned on a position encoding. As in the authors' code: layers with strides 8, 16, 32; the loss
-log sigmoid(log p), where the paper uses the plain likelihood; log p per channel; a single Adam, stepped for one
level's flow at a time (with their torch 1.8, momentum also moved the others); batches and groups of vectors that are
not full are dropped; no blur. Couplings use the clamp of the
FrEIA version that the code pins, 1.9 * tanh(s) (see `anomaly_bench.components.flows`).

Differences:

- The code normalises each level's likelihood by its maximum over the whole test set, so test images affect the weights
  of the levels. Here it is the maximum over the training images, or over the test set with `oracle=true`.
- The code sums exp(log p - largest) over levels; here the logarithm of the sum is taken, which ranks pixels alike but
  does not tie strong anomalies at 0. Between grid points log p is interpolated, not its exp.
- Rotated images: a seeded set of `views` versions, passed through the network once; `views=0` draws new rotations in
  each epoch, as the code does.
- The code tests the model after each of 25 training stages and keeps the best value of each metric, and its input size
  was chosen per category on the test set (128, 256 or 512). Here the last epoch counts, at one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import augmentation, position_code
from anomaly_bench.components.flows import Flow, OneSided, energy, join
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.components.training import Epoch
    from anomaly_bench.protocol import FeatureArray, Features, TrainingSet

_CLAMP = 1.9  # of the couplings' log-scales
MOST_FIBRES = 8192  # most fibres scored at once
PARTS, WARM = 25, 2  # stages of training with one learning rate each, and stages of warm-up


class CFlowAD(nn.Module):
    """CFLOW-AD as in section 4.

    Args:
        backbone: a frozen network.
        epochs: of training; the code has 25 stages of 8 = 200.
        views: rotated versions of the training images, used by the epochs in turn; 0: new rotations in each epoch.
        degrees: largest rotation angle.
        blocks: coupling blocks in each level's flow.
        code: channels of the position encoding, a multiple of 4.
        fibres: vectors per training step.
        batch: images whose fibres are shuffled together.
        lr: the first learning rate after the warm-up, see `rate`.
    """

    largest: Tensor  # (L,) largest log p on the training images, per level

    def __init__(
        self,
        backbone: Features,
        epochs: int,
        views: int = 4,
        degrees: float = 5.0,
        blocks: int = 8,
        code: int = 128,
        fibres: int = 256,
        batch: int = 32,
        lr: float = 2e-4,
    ) -> None:
        if views < 0:
            raise UsageError(f"method.views={views}: expected 0 (new rotations in each epoch) or more")
        if code < 4 or code % 4:
            raise UsageError(f"method.code={code}: expected a multiple of 4")
        super().__init__()
        self.backbone, self.epochs, self.views, self.degrees = backbone, epochs, views, degrees
        self.blocks, self.code, self.fibres, self.batch, self.lr = blocks, code, fibres, batch, lr

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create one flow per (C, h, w) level; drawing rotations takes seconds for levels with many channels."""
        self.channels = [shape[0] for shape in shapes]
        self.flows = self.draw_flows()
        self.register_buffer("largest", torch.zeros(len(shapes)))

    def draw_flows(self) -> nn.ModuleList:
        """One flow per level, with random weights."""
        return nn.ModuleList(
            Flow(OneSided(channels, linear_subnet, _CLAMP, soft=True, condition=self.code) for _ in range(self.blocks))
            for channels in self.channels
        )

    def fit(self, normals: TrainingSet) -> None:
        """Train each flow on shuffled fibres (equation 9, inside -log sigmoid), then find the largest likelihoods."""
        views = None
        if self.views:  # revision 1 draws the angles before the flows
            torch.manual_seed(torch.initial_seed())
            views = normals.feature_array(self.versions, self.batch)
            self.flows = self.draw_flows().to(normals.device)
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, whole=True):
                optimiser.param_groups[0]["lr"] = rate(self.lr, epoch.progress)
                levels = self.fresh(normals, numbers, epoch) if views is None else self.version(views, numbers, epoch)
                for index, level in enumerate(levels):
                    self.train_level(index, level, epoch)
        self.facts = loop.facts
        self.oracle(normals.images(self.batch))

    def versions(self, images: Tensor) -> list[Tensor]:
        """The levels of `views` rotations of each image, version by version."""
        return [level for _ in range(self.views) for level in self.backbone(self.turned(images))]

    def version(self, views: FeatureArray, numbers: Tensor, epoch: Epoch) -> list[Tensor]:
        """The levels of the chosen images in this epoch's version."""
        first = epoch.number % self.views * len(self.flows)
        return [level[numbers].to(views.device) for level in views.levels[first : first + len(self.flows)]]

    def fresh(self, normals: TrainingSet, numbers: Tensor, epoch: Epoch) -> list[Tensor]:
        """The levels of new rotations of the chosen images."""
        images = normals.select(numbers)
        return self.backbone(self.turned(images, epoch.generator))

    def turned(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Each image rotated by up to `degrees` either way, its corners black."""
        return augmentation.rotate_images(images, self.degrees * (2 * torch.rand(len(images), generator=generator) - 1))

    def train_level(self, index: int, level: Tensor, epoch: Epoch) -> None:
        """Step once per `fibres` shuffled vectors of a (B, C, h, w) level; an incomplete last group is dropped."""
        fibres, codes = self.fibres_of(level)
        whole = len(fibres) - len(fibres) % self.fibres or len(fibres)
        order = torch.randperm(len(fibres), generator=epoch.generator)[:whole]
        for part in torch.split(order, self.fibres):
            epoch.step(self.loss(index, fibres[part], codes[part % len(codes)]))

    def loss(self, index: int, fibres: Tensor, codes: Tensor) -> Tensor:
        """Mean of -log sigmoid(log p) over a level's vectors, see `log_likelihood`: ()."""
        return -F.logsigmoid(self.log_likelihood(index, fibres, codes)).mean()

    def fibres_of(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors (B * h * w, C) of a level and the encodings (h * w, code) of its positions."""
        code = position_code.position_code(self.code, level.shape[2], level.shape[3]).to(level.device)
        return level.permute(0, 2, 3, 1).flatten(0, 2), code.permute(1, 2, 0).flatten(0, 1)

    def log_likelihood(self, index: int, fibres: Tensor, codes: Tensor) -> Tensor:
        """log p per channel (M,) of a level's vectors (M, C), given their position encodings (M, code)."""
        z, log_det = self.flows[index](fibres, codes)
        likelihood: Tensor = log_det / fibres.shape[1] - energy(z) - 0.5 * math.log(2 * math.pi)
        return likelihood

    def log_likelihoods(self, images: Tensor) -> Iterator[Tensor]:
        """log p of each level: (B, h, w)."""
        for index, level in enumerate(self.backbone(images)):
            fibres, codes = self.fibres_of(level)
            count = level.shape[0]
            rows = (fibres, codes.repeat(count, 1))
            whole = torch.compiler.is_compiling()  # a graph has no loops
            chunks = [(each,) if whole else torch.split(each, MOST_FIBRES) for each in rows]
            likelihoods = torch.cat([self.log_likelihood(index, *pair) for pair in zip(*chunks, strict=True)])
            yield likelihoods.view(count, *level.shape[2:])

    @torch.no_grad()
    def oracle(self, images: Iterable[Tensor]) -> None:
        """Find each level's largest log p on these batches: training images from `fit`, test images if oracle=true."""
        maxima = [torch.stack([level.amax() for level in self.log_likelihoods(batch)]) for batch in images]
        self.largest = torch.stack(maxima).amax(dim=0)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """-log of the mean of p / largest p over levels, upsampled; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        gaps = [peak - level for level, peak in zip(self.log_likelihoods(images), self.largest, strict=True)]
        maps = join([upsample(gap, images.shape[2:]) for gap in gaps])
        return Scores(maps.amax(dim=(1, 2)), maps)


def linear_subnet(inputs: int, outputs: int) -> nn.Sequential:
    """Predicts scales and shifts of one block."""
    return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


def rate(lr: float, progress: float) -> float:
    """The learning rate at a training progress of 0 to 1.

    Stepwise cosine decay from lr to lr / 1000 in PARTS stages; the first WARM stages are a linear warm-up from lr / 10.
    """

    def cosine(part: int) -> float:
        return lr * (0.001 + 0.999 * (1 + math.cos(math.pi * part / PARTS)) / 2)

    warmed = progress * PARTS / WARM
    return lr / 10 + warmed * (cosine(WARM) - lr / 10) if warmed < 1 else cosine(int(progress * PARTS))


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h, w) -> (B, H, W), bilinear with aligned corners, as in the authors' code."""
    return F.interpolate(maps[:, None], list(size), mode="bilinear", align_corners=True)[:, 0]
