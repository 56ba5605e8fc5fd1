"""GEOM: a network that tells geometric transformations of normal images apart.

Izhak Golan, Ran El-Yaniv; NeurIPS 2018, arXiv 1805.10917: Deep Anomaly Detection Using Geometric Transformations. Also
known as GT and GeoTrans.

Each image is flipped, shifted and turned in all combinations, and a wide residual network (Zagoruyko and Komodakis
2016, arXiv 1605.07146) is trained to name the combination. For each of them, a Dirichlet distribution is fitted to the
network's softmax outputs on the training images. The score is the negative log-density of an image's outputs without
the normalising constants, averaged over the combinations. There is no anomaly map.

As in the authors' code, weight decay is part of the loss (0.00025 times the sum of squares, here Adam's gradient of
0.0005 times the weights). Differences: convolutions of stride 2 are padded on all sides, where TensorFlow pads the
right and the bottom; logarithms are those of the logits, so no probability is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Loop
from anomaly_bench.components.upsampling import mirrored
from anomaly_bench.components.validation import check_count, check_fitted, check_positive
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware.torch_setup import float64_device
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

STRIDE = 4  # of the network's last stage
EPS = 1e-7  # of Keras's Adam
SCORED = 1024  # transformed images per forward pass
ROUNDS, TOLERANCE = 1000, 1e-9  # of the fixed-point iteration
Transform = Callable[[Tensor], Tensor]


class GEOM(nn.Module):
    """GEOM, sections 4 and 5.

    Args:
        epochs, lr, weight_decay, batch: for training with Adam, on all transformed images.
        seed: for drawing the images.
        shift: in pixels, along each axis and in both directions: 72 transformations; 0: none, 8 transformations.
        images: of the training set that are used, drawn at random; None, or more than there are: all.
        size: images are resized to this many pixels a side.
        depth, width: of the wide residual network; the depth is 6 n + 4.
    """

    alpha: Tensor  # (T, T) of the Dirichlet distributions, a row for each transformation

    def __init__(
        self,
        epochs: int,
        seed: int,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        batch: int = 128,
        shift: int = 8,
        images: int | None = None,
        size: int = 32,
        depth: int = 10,
        width: int = 4,
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise UsageError(f"method.depth={depth}: expected 10, 16, 22 and so on")
        check_positive(width=width)
        if size < STRIDE or size % STRIDE or not 0 <= shift <= size:
            raise UsageError(
                f"method.size={size}, method.shift={shift}: expected a size that is a multiple of {STRIDE}, and a "
                "shift of 0 to that size"
            )
        if images is not None and images < 2:
            raise UsageError(f"method.images={images}: expected at least 2, or null for all")
        super().__init__()
        self.epochs, self.seed, self.lr, self.weight_decay, self.batch = epochs, seed, lr, weight_decay, batch
        self.images, self.size, self.depth, self.width = images, size, depth, width
        self.transforms = transformations(shift)

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for images of C channels."""
        count = len(self.transforms)
        network = wide_residual_network(shapes[0][0], count, (self.depth - 4) // 6, self.width)
        self.network = network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.register_buffer("alpha", torch.empty(count, count))

    def fit(self, normals: TrainingSet) -> None:
        """Train the network, and fit the Dirichlet distributions to its outputs.

        Raises:
            ValueError: fewer than two images, or the loss is not finite.
        """
        check_count(normals, 2, "GEOM's Dirichlet distribution")
        images = self.prepared(normals)
        optimiser = torch.optim.Adam(self.parameters(), self.lr, eps=EPS, weight_decay=self.weight_decay, fused=True)
        loop, count = Loop(self, optimiser, normals, self.epochs), len(self.transforms)
        for epoch in loop:
            for numbers in epoch.batches(len(images) * count, self.batch):
                batch, labels = self.transformed(images, numbers.to(images.device))
                epoch.step(F.cross_entropy(self.network(batch), labels))
        with torch.no_grad():
            self.alpha.copy_(fit_dirichlet(self.log_softmax(images)))
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Minus the mean over transformations of the sum of (alpha - 1) log p (equation 2).

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        logarithms = self.log_softmax(self.scaled(images))  # (T, B, T)
        return Scores(-((self.alpha[:, None] - 1) * logarithms).sum(dim=2).mean(dim=0), None)

    def log_softmax(self, images: Tensor) -> Tensor:
        """(N, C, size, size) -> (T, N, T) logarithms of the outputs, a row for each transformation and image."""
        if torch.compiler.is_compiling():  # a graph has no loops: the network once, on all views
            views = torch.cat([transform(images) for transform in self.transforms])
            outputs: Tensor = self.network(views)
            return outputs.log_softmax(dim=1).view(len(self.transforms), -1, len(self.transforms))
        found = []
        for transform in self.transforms:
            parts = [self.network(transform(part)) for part in torch.split(images, SCORED)]
            found.append(torch.cat(parts).log_softmax(dim=1))
        return torch.stack(found)

    def transformed(self, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, size, size) and their transformations (B,), by numbers (B,) of all N * T of them."""
        count = len(self.transforms)
        batch, labels = images[numbers // count], numbers % count
        for label, transform in enumerate(self.transforms):
            chosen = labels == label
            batch[chosen] = transform(batch[chosen])
        return batch, labels

    def prepared(self, normals: TrainingSet) -> Tensor:
        """(N, C, size, size) the images that are used, in [-1, 1]."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers = torch.randperm(len(normals), generator=generator)[: self.images].sort().values
        return torch.cat([self.scaled(normals.select(part)) for part in torch.split(numbers, self.batch)])

    def scaled(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, size, size) in [-1, 1]."""
        return 2 * resized(images, (self.size, self.size)) - 1


def transformations(shift: int) -> list[Transform]:
    """Flip, shift and turn (B, C, S, S) images, in the order of the authors' code."""
    shifts = (0, -shift, shift) if shift else (0,)
    return [transformation(*parts) for parts in itertools.product((False, True), shifts, shifts, range(4))]


def transformation(flip: bool, down: int, right: int, turns: int) -> Transform:
    """One of them: mirrored left to right, moved by so many pixels, and turned counter-clockwise."""

    def transform(images: Tensor) -> Tensor:
        if flip:
            images = images.flip(3)
        return shifted(shifted(images, down, 2), right, 3).rot90(turns, (2, 3))

    return transform


def shifted(images: Tensor, pixels: int, axis: int) -> Tensor:
    """Move images along an axis; what comes in is their reflection, which repeats the border pixel."""
    if not pixels:
        return images
    side = images.shape[axis]
    return images.index_select(axis, mirrored(torch.arange(side, device=images.device) - pixels, side))


def fit_dirichlet(logarithms: Tensor) -> Tensor:
    """Maximum-likelihood Dirichlet distributions (Minka 2000, "Estimating a Dirichlet distribution", equation 9).

    Args:
        logarithms: (T, N, K) of N probabilities over K classes, for each of T distributions.

    Returns:
        (T, K), float64.
    """
    logarithms = logarithms.to(float64_device(logarithms.device), torch.float64)
    mean, mean_logarithm = logarithms.exp().mean(dim=1), logarithms.mean(dim=1)
    gap = (mean * (mean.clamp(min=1e-300).log() - mean_logarithm)).sum(dim=1, keepdim=True)
    gamma = -float(torch.digamma(torch.ones((), dtype=torch.float64)))  # Euler's constant
    alpha = mean * (mean.shape[1] - 1) * gamma / gap.clamp(min=1e-12)  # the start of Wicker et al. 2008
    for _ in range(ROUNDS):
        before = alpha
        alpha = inverse_digamma(torch.digamma(alpha.sum(dim=1, keepdim=True)) + mean_logarithm)
        if (alpha - before).norm(dim=1).max() < TOLERANCE:
            break
    return alpha


def inverse_digamma(values: Tensor) -> Tensor:
    """The x > 0 with digamma(x) = values, by five steps of Newton's method (Minka 2000, appendix C)."""
    gamma = -torch.digamma(torch.ones_like(values))
    found = torch.where(values >= -2.22, values.exp() + 0.5, -1 / (values + gamma))
    for _ in range(5):
        found = found - (torch.digamma(found) - values) / torch.polygamma(1, found)
    return found


def wide_residual_network(channels: int, classes: int, blocks: int, width: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, classes) logits; three stages of so many blocks."""
    layers: list[nn.Module] = [convolution(channels, 16, 3)]
    inputs = 16
    for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for number in range(blocks):
            layers.append(Block(inputs, outputs, 1 if number else stride))
            inputs = outputs
    head = nn.Linear(inputs, classes)
    nn.init.uniform_(head.weight, -(inputs**-0.5), inputs**-0.5)
    nn.init.zeros_(head.bias)
    pooled = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, head)


class Block(nn.Module):
    """Two convolutions, each after a norm and a ReLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        middle = [nn.BatchNorm2d(outputs), nn.ReLU(), convolution(outputs, outputs, 3)]
        self.layers = nn.Sequential(convolution(inputs, outputs, 3, stride), *middle)
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        active = F.relu(self.norm(images))
        passed = images if self.shortcut is None else self.shortcut(active)
        added: Tensor = passed + self.layers(active)
        return added


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, with He's initial weights."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return layer
