"""The convolutional autoencoder of AE-L2 and AE-SSIM, and how both are trained and scored.

Paul Bergmann et al.: Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders,
2019, arXiv 1807.02011; settings of The MVTec Anomaly Detection Dataset, CVPR 2019 and IJCV 2021.

The authors published no code. By how much objects are moved and turned they do not say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

PATCH = 128  # pixels: the side of a texture's patches
STEP = 30  # pixels: between the patches that an image is scored by
TURN, SHIFT = 10.0, 0.05  # degrees, and share of the side: of objects, at most
Compare = Callable[[Tensor, Tensor], Tensor]  # two (B, C, H, W) -> (B, H, W)


class AutoEncoder(nn.Module):
    """Table 1 of arXiv 1807.02011; sides of about 256 have one more convolution on each end, sides of 512 two.

    Args:
        channels: of the images, 1 or 3.
        side: of the square images, in pixels.
        latent: numbers that an image is narrowed down to.

    Raises:
        UsageError: a side that cannot be halved often enough.
    """

    def __init__(self, channels: int, side: int, latent: int) -> None:
        super().__init__()
        more = max(0, round(math.log2(side / PATCH)))
        check_sides("the autoencoder", (side, side), 2 ** (4 + more))
        grid = side // 2 ** (4 + more)
        layers = [(channels, 32, 4, 2), *[(32, 32, 4, 2)] * more, (32, 32, 4, 2), (32, 32, 3, 1), (32, 64, 4, 2)]
        layers += [(64, 64, 3, 1), (64, 128, 4, 2), (128, 64, 3, 1), (64, 32, 3, 1)]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for inputs, outputs, kernel, stride in layers:
            down += [nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.LeakyReLU(0.2)]
        for outputs, inputs, kernel, stride in reversed(layers):
            up += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding=1)]
        self.encode = nn.Sequential(*down, nn.Conv2d(32, latent, grid))
        self.decode = nn.Sequential(nn.ConvTranspose2d(latent, 32, grid), *up, nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, side, side) in [0, 1] -> the same shape."""
        decoded: Tensor = self.decode(self.encode(images))
        return decoded


class Reconstruction(nn.Module):
    """The method that AE-L2 and AE-SSIM are: each says what its network sees, and how output and input are compared.

    Args:
        epochs, lr, weight_decay, batch: of the training by Adam.
        samples: random views of the training images in an epoch.
        latent: numbers that an image or patch is narrowed down to.
        patches: patches of 128 pixels, as published for textures; False: whole images, as for objects; None: as the
            task's group says, whole images where it has none.
    """

    channels: int  # that the network sees
    prepare: Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, channels, H, W)
    loss: Callable[[Tensor, Tensor], Tensor]  # of outputs and inputs (B, channels, side, side): ()
    residual: Compare  # of outputs and inputs, at every pixel

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        weight_decay: float = 1e-5,
        batch: int = 128,
        samples: int = 10000,
        latent: int = 128,
        patches: bool | None = None,
    ) -> None:
        super().__init__()
        self.epochs, self.lr, self.weight_decay, self.batch = epochs, lr, weight_decay, batch
        self.samples, self.latent, self.patches = samples, latent, patches

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make the network for images of the (3, H, W) shape.

        Raises:
            UsageError: a size that it cannot take.
        """
        self.shape = shapes[0]
        self.make_network(self.shape, bool(self.patches))

    def make_network(self, shape: tuple[int, int, int], patches: bool) -> None:
        """The network for patches of images of this shape, or for whole ones."""
        self.resolved = {"patches": patches}
        self.network = AutoEncoder(self.channels, side_of(shape, patches), self.latent)

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to return what it is given, on `samples` random views of the images in every epoch.

        Raises:
            ValueError: a loss that is not finite.
        """
        if self.patches is None and normals.group == "textures":
            torch.manual_seed(torch.initial_seed())  # the weights are those of patches=true
            self.make_network(self.shape, patches=True)
            self.to(normals.device)
        optimiser = torch.optim.Adam(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        rounds = math.ceil(self.samples / len(normals))
        for epoch in loop:
            order = torch.cat([part for _ in range(rounds) for part in epoch.batches(len(normals), self.batch)])
            for numbers in torch.split(order[: self.samples], self.batch):
                views = self.prepare(view(normals.select(numbers), self.resolved["patches"]))
                epoch.step(self.loss(self.network(views), views))
        self.facts = {**loop.facts, **self.resolved}

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The residual at every pixel; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        seen = self.prepare(images)
        maps = residual_map(self.network, seen, self.residual, self.resolved["patches"], self.batch)
        return Scores(maps.amax(dim=(1, 2)), maps)


def side_of(shape: tuple[int, int, int], patches: bool) -> int:
    """The side of what the network sees of images of a (3, H, W) shape.

    Raises:
        UsageError: images that are smaller than a patch, or, as wholes, not square.
    """
    _, height, width = shape
    if patches and min(height, width) < PATCH:
        raise UsageError(
            f"method.patches=true: images of {height} x {width} pixels; expected at least {PATCH} x {PATCH}"
        )
    if not patches and height != width:
        raise UsageError(f"the autoencoder cannot take images of {height} x {width} pixels; expected square ones")
    return PATCH if patches else height


def view(images: Tensor, patches: bool) -> Tensor:
    """Random views (B, 3, side, side) of (B, 3, H, W) images, drawn from torch's global generator.

    Patches lie in any direction, their corners within the image where it is large enough; beyond it is its mirror
    image, as it is around objects that are moved by up to SHIFT and turned by up to TURN.
    """
    count, _, height, width = images.shape
    side = torch.tensor([width, height], dtype=torch.float32)
    angle = (2 * torch.rand(count) - 1) * math.radians(180 if patches else TURN)
    scale = PATCH / side if patches else torch.ones(2)
    room = (1 - math.sqrt(2) * scale).clamp(min=0) if patches else torch.full((2,), 2 * SHIFT)
    centre = (2 * torch.rand(count, 2) - 1) * room  # in units of half the side, as grid_sample has them
    cos, sin = angle.cos(), angle.sin()
    ratio = side[1] / side[0]
    theta = torch.stack(
        [
            torch.stack([cos * scale[0], -sin * scale[1] * ratio, centre[:, 0]], dim=1),
            torch.stack([sin * scale[0] / ratio, cos * scale[1], centre[:, 1]], dim=1),
        ],
        dim=1,
    ).to(images)
    target = [count, 3, PATCH, PATCH] if patches else list(images.shape)
    grid = F.affine_grid(theta, target, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def residual_map(network: nn.Module, images: Tensor, residual: Compare, patches: bool, batch: int) -> Tensor:
    """(B, H, W): the residual of whole (B, C, H, W) images, or the mean of those of all patches that show a pixel."""
    if not patches:
        return residual(network(images), images)
    total = images.new_zeros(len(images), *images.shape[2:])
    shown = images.new_zeros(images.shape[2:])
    for top, left in places(images.shape[2], images.shape[3]):
        part = images[:, :, top : top + PATCH, left : left + PATCH]
        found = torch.cat([residual(network(some), some) for some in torch.split(part, batch)])
        total[:, top : top + PATCH, left : left + PATCH] += found
        shown[top : top + PATCH, left : left + PATCH] += 1
    return total / shown


def places(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Top and left of patches every STEP pixels, with a last one at the far border."""
    for top in starts(height):
        for left in starts(width):
            yield top, left


def starts(side: int) -> Sequence[int]:
    return sorted({*range(0, side - PATCH + 1, STEP), side - PATCH})
