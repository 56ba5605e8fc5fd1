"""Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation.

Jihun Yi, Sungroh Yoon; ACCV 2020, arXiv 2006.16067.

An encoder of patches is trained from scratch on two tasks: patches that nearly coincide have similar codes, and the
codes of two neighbouring patches tell which of eight neighbours the second is. A patch is as anomalous as its code is
far from the nearest one of the training images, for patches of 64 and of 32 pixels; a pixel, as the patches that cover
it are on average, multiplied over both sizes.

This follows the authors' code, also in what classifiers learn. Neighbours are exact, where it searches a graph of
patches of 32 pixels. The codes of larger patches come from those of their quadrants, so one pass of an image gives all.
`weight` is that of the README's command, for every category; the authors' settings for each are not known. Their loader
repeats its crops; this does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.neighbours import nearest, take_row_counts
from anomaly_bench.components.patch_maps import covering, spread
from anomaly_bench.components.patches import cut_corners, patch_rows, random_corners, starts
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_grid, check_positive, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

LARGE, SMALL = 64, 32  # sides of the patches
STRIDES = (2, 4, 8)
FACTORS = (1, 2, 4, 4, 2, 1, 1)  # channels of the encoder's convolutions but the last, divided by `width`
SLOPE = 0.1  # of the leaky ReLUs
NOISE = 0.02  # deviation of the noise for each channel of a patch, and for each of its values
HIDDEN = 128
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows and columns


class PatchSVDD(nn.Module):
    """Patch SVDD with the hierarchical encoder.

    Args:
        epochs, lr, batch: for training with Adam.
        repeats: of each image in an epoch.
        weight: of the distances between patches that nearly coincide.
        stride: pixels between scored patches of 32 pixels; those of 64 are four times as far apart.
        width: channels of the encoder's first convolution.
        code: dimensions.
    """

    mean: Tensor  # (3, H, W) of the training images
    large: Tensor  # (M, D) codes of their patches
    small: Tensor

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 64,
        repeats: int = 100,
        weight: float = 1e-3,
        stride: int = 4,
        width: int = 32,
        code: int = 64,
    ) -> None:
        if stride not in STRIDES:
            raise UsageError(f"method.stride={stride}: expected 2, 4 or 8 pixels")
        check_positive(repeats=repeats, width=width, code=code)
        super().__init__()
        self.epochs, self.lr, self.batch, self.repeats = epochs, lr, batch, repeats
        self.weight, self.stride, self.width, self.code = weight, stride, width, code

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the encoder for images of this (3, H, W) shape.

        Raises:
            UsageError: images that are smaller than a patch, or that the patches do not cover.
        """
        channels, *self.size = shapes[0]
        check_sides("Patch SVDD", self.size, 4 * self.stride)
        if min(self.size) < LARGE:
            raise UsageError(
                f"Patch SVDD cannot take images of {self.size[0]} x {self.size[1]} pixels; expected at least {LARGE} "
                "on each side: set input.resize"
            )
        strides = {LARGE: 4 * self.stride, SMALL: self.stride}
        self.places = {side: [starts(length, side, step) for length in self.size] for side, step in strides.items()}
        self.encoder = Encoder(channels, self.width, self.code)
        self.register_buffer("mean", torch.zeros(channels, *self.size))
        for name in ("large", "small"):
            self.register_buffer(name, torch.empty(0, self.code))

    def fit(self, normals: TrainingSet) -> None:
        """Train the encoder, and store the codes of all patches.

        Raises:
            ValueError: the loss is not finite.
            TooLarge: the codes do not fit in memory.
        """
        self.reserve(normals)
        self.mean.zero_()
        for images in normals.images(self.batch):
            self.mean += images.sum(dim=0) / len(normals)
        classifiers = nn.ModuleList([Classifier(self.code) for _ in (LARGE, SMALL)]).to(self.mean.device)
        trained = [value for part in (self, classifiers) for value in part.parameters() if value.requires_grad]
        optimiser = torch.optim.Adam(trained, self.lr, fused=True)
        loop = Loop(nn.ModuleList([self, classifiers]), optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.repeats * len(normals)):
                epoch.step(self.loss(normals.select(numbers) - self.mean, classifiers))
        self.store(normals)
        self.facts = loop.facts

    def loss(self, images: Tensor, classifiers: nn.ModuleList) -> Tensor:
        """() for a batch: cross-entropies of both sizes' positions, plus weighted distances of near patches (B)."""
        pairs = [draw(images, side) for side in (LARGE, SMALL) for draw in (neighbouring_pairs, near_pairs)]
        (positions, labels), (near, _), (small_positions, small_labels), (small_near, _) = pairs
        large = self.encoder.large(torch.cat([positions, near])).chunk(4)
        small = self.encoder.small(torch.cat([small_positions, small_near])).flatten(1).chunk(4)
        total = torch.zeros((), device=images.device)
        for codes, truth, classifier in zip((large, small), (labels, small_labels), classifiers, strict=True):
            distances = torch.linalg.vector_norm(codes[2] - codes[3], dim=1)
            total = total + F.cross_entropy(classifier(codes[0] - codes[1]), truth) + self.weight * distances.mean()
        return total

    def reserve(self, normals: TrainingSet) -> None:
        """Require memory for the codes."""
        rows = sum(len(down) * len(across) for down, across in self.places.values())
        memory.require(
            4 * len(normals) * rows * self.code,
            self.mean.device,
            f"{normals.name}: the codes of {len(normals)} images",
            "use a smaller input.resize or a larger method.stride, or fewer training images",
        )

    @torch.no_grad()
    def store(self, normals: TrainingSet) -> None:
        """Fill the banks of codes."""
        found = [self.encoder.dense(images - self.mean, self.stride) for images in normals.images(1)]
        self.large, self.small = (torch.cat([patch_rows(each) for each in codes]) for codes in zip(*found, strict=True))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The product of both sizes' maps, whose maximum is the image score.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        check_grid(images.shape[2:], self.size)
        maps = []
        for part in torch.split(images, 1):  # as in `store`, so that equal patches have equal codes
            product = torch.ones((), device=images.device)
            codes = self.encoder.dense(part - self.mean, self.stride)
            for found, bank, (side, places) in zip(codes, (self.large, self.small), self.places.items(), strict=True):
                distances = nearest(patch_rows(found), bank).distances.sqrt().view(1, *found.shape[2:])
                product = product * spread(distances, self.size, places, side, covering)
            maps.append(product)
        whole = torch.cat(maps)
        return Scores(whole.amax(dim=(1, 2)), whole)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Encoder(nn.Module):
    """Codes of patches: `small` of 32 pixels; `large` of 64, from the codes of their quadrants."""

    def __init__(self, channels: int, width: int, code: int) -> None:
        super().__init__()
        sizes = [channels, *(factor * width for factor in FACTORS)]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2 if number == 0 else 1), nn.LeakyReLU(SLOPE)]
        self.small = nn.Sequential(*layers, nn.Conv2d(sizes[-1], code, 3), nn.Tanh())
        self.join, self.last = nn.Conv2d(code, HIDDEN, 2), nn.Conv2d(HIDDEN, code, 1)

    def large(self, patches: Tensor) -> Tensor:
        """(B, C, 64, 64) -> (B, D)."""
        quadrants = patches.unfold(2, SMALL, SMALL).unfold(3, SMALL, SMALL)  # (B, C, 2, 2, 32, 32)
        codes = self.small(quadrants.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))  # of top left, top right, and so on
        return self.joined(codes.view(-1, 2, 2, codes.shape[1]).permute(0, 3, 1, 2)).flatten(1)

    def joined(self, codes: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        """(B, D, h, w) codes of small patches -> those of large ones."""
        joined = F.conv2d(codes, self.join.weight, self.join.bias, stride, dilation=dilation)
        found: Tensor = self.last(F.leaky_relu(joined, SLOPE)).tanh()
        return found

    def dense(self, images: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Codes (B, D, h, w) of the large patches, 4 * stride pixels apart, and of the small ones, stride apart."""
        last = self.small[-2]
        assert isinstance(last, nn.Conv2d)
        codes = F.conv2d(self.small[:-2](images), last.weight, last.bias, stride // 2).tanh()
        return self.joined(codes, 4, SMALL // stride), codes


class Classifier(nn.Sequential):
    """Tells the direction of a neighbour. Weights of the last layer stay as drawn, with columns of unit length."""

    def __init__(self, code: int) -> None:
        layers = [nn.Linear(code, HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Linear(HIDDEN, len(DIRECTIONS)))
        self[-1].weight.requires_grad_(False)

    def forward(self, differences: Tensor) -> Tensor:
        """(B, D) differences of codes -> (B, 8) logits of `DIRECTIONS`."""
        *hidden, last = self
        assert isinstance(last, nn.Linear)
        return F.linear(nn.Sequential(*hidden)(differences), F.normalize(last.weight, dim=0), last.bias)


def neighbouring_pairs(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Patches (2B, C, side, side) with noise, the first ones and their neighbours, and the directions (B,)."""
    labels = torch.randint(len(DIRECTIONS), (len(images),))
    away = 3 * side // 4 + torch.randint(side // 4, (len(images), 2))
    patches = pairs(images, side, torch.tensor(DIRECTIONS)[labels] * away)
    noise = torch.randn(*patches.shape[:2], 1, 1) + torch.randn(patches.shape)
    return patches + NOISE * noise.to(patches), labels.to(images.device)


def near_pairs(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Patches (2B, C, side, side) that are at most side / 32 pixels apart on each axis, and how far (B, 2)."""
    reach = side // SMALL
    places = torch.randint((2 * reach + 1) ** 2 - 1, (len(images),))
    places = places + (places >= (2 * reach + 1) ** 2 // 2).long()  # all but the middle one
    shifts = torch.stack([places // (2 * reach + 1), places % (2 * reach + 1)], dim=1) - reach
    return pairs(images, side, shifts), shifts


def pairs(images: Tensor, side: int, shifts: Tensor) -> Tensor:
    """(2B, C, side, side): a random patch of each image, then those shifted by (B, 2) pixels and moved into it."""
    limits = torch.tensor(images.shape[2:]) - side
    first = random_corners(images.shape[2:], side, len(images))
    second = (first + shifts).clamp(min=torch.zeros(2, dtype=torch.long), max=limits)
    return torch.cat([cut_corners(images, corners[:, None], side) for corners in (first, second)])
