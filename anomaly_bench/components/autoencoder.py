"""The convolutional autoencoder of AE-L2 and AE-SSIM, and how both are trained and scored.

Paul Bergmann et al.: Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders,
2019, arXiv 1807.02011; settings of The MVTec Anomaly Detection Dataset, CVPR 2019 and IJCV 2021.

The authors published no code. Ours are, as they do not say it: how far objects are shifted and rotated, where the extra
convolutions for larger images go, and the initial weights. Those are He's (2015, arXiv 1502.01852) with biases of zero:
with torch's default, 20 layers without normalisation make the output of unlike images the same, and no gradient reaches
the encoder. Weight decay is decoupled (AdamW), so that it cannot outweigh small gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.patches import starts
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

PATCH = 128  # pixels: side of the patches of textures
STEP = 30  # pixels: stride of the patches when scoring
SLOPE = 0.2  # of the leaky ReLUs
TURN, SHIFT = 10.0, 0.05  # largest rotation (degrees) and shift (fraction of the side) of objects
Compare = Callable[[Tensor, Tensor], Tensor]  # two (B, C, H, W) -> (B, H, W)


class AutoEncoder(nn.Module):
    """Table 1 of arXiv 1807.02011, with one more convolution at each end for sides of about 256, two for 512.

    Args:
        channels: of the images, 1 or 3.
        side: of the square images, in pixels.
        latent: size of the latent code.
        variational: whether the encoder makes means and logarithms of variances; the decoder takes the means.

    Raises:
        UsageError: a side that cannot be halved often enough.
    """

    def __init__(self, channels: int, side: int, latent: int, variational: bool = False) -> None:
        super().__init__()
        self.variational = variational
        extra = max(0, round(math.log2(side / PATCH)))
        check_sides("the autoencoder", (side, side), 2 ** (4 + extra))
        grid = side // 2 ** (4 + extra)
        layers = [(channels, 32, 4, 2), *[(32, 32, 4, 2)] * extra, (32, 32, 4, 2), (32, 32, 3, 1), (32, 64, 4, 2)]
        layers += [(64, 64, 3, 1), (64, 128, 4, 2), (128, 64, 3, 1), (64, 32, 3, 1)]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for inputs, outputs, kernel, stride in layers:
            down += [nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.LeakyReLU(SLOPE)]
        for outputs, inputs, kernel, stride in reversed(layers):
            up += [nn.LeakyReLU(SLOPE), nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding=1)]
        self.encode = nn.Sequential(*down, nn.Conv2d(32, latent * (2 if variational else 1), grid))
        self.decode = nn.Sequential(nn.ConvTranspose2d(latent, 32, grid), *up, nn.Sigmoid())
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, SLOPE)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, side, side) in [0, 1] -> the same shape."""
        codes = self.encode(images)
        decoded: Tensor = self.decode(codes.chunk(2, dim=1)[0] if self.variational else codes)
        return decoded


class Reconstruction(nn.Module):
    """Common base of AE-L2, AE-SSIM and VAE-Grad, which define the network's input and how outputs are compared.

    Args:
        epochs, lr, weight_decay, batch: for training with AdamW.
        samples: random views of the training images per epoch.
        latent: size of the latent code of an image or patch.
        patches: True: 128-pixel patches, as published for textures; False: whole images, as for objects; None: chosen
            by the task's group, whole images if it has none.
    """

    channels: int  # of the network's input
    variational = False
    prepare: Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, channels, H, W)
    loss: Callable[[Tensor, Tensor], Tensor]  # of outputs and inputs (B, channels, side, side): ()
    residual: Compare  # of outputs and inputs, per pixel

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
        """Create the network for images of the given (3, H, W) shape.

        Raises:
            UsageError: unsupported image size.
        """
        self.shape = shapes[0]
        self.make_network(self.shape, bool(self.patches))

    def make_network(self, shape: tuple[int, int, int], patches: bool) -> None:
        """Create the network for whole images of this shape, or for patches of them."""
        self.resolved = {"patches": patches}
        network = AutoEncoder(self.channels, side_of(shape, patches), self.latent, self.variational)
        self.network = network.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def fit(self, normals: TrainingSet) -> None:
        """Train the network to reconstruct its input, on `samples` random views of the images per epoch.

        Raises:
            ValueError: the loss is not finite.
        """
        if self.patches is None and normals.group == "textures":
            torch.manual_seed(torch.initial_seed())  # for the same weights as with patches=true
            self.make_network(self.shape, patches=True)
            self.to(normals.device)
        optimiser = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.samples):
                views = self.prepare(view(normals.select(numbers), self.resolved["patches"]))
                epoch.step(self.training_loss(views))
        loop.spread = self.spread(normals)
        self.facts = {**loop.facts, **self.resolved}

    def training_loss(self, views: Tensor) -> Tensor:
        """() loss of (B, channels, side, side) views."""
        return self.loss(self.network(views), views)

    @torch.no_grad()
    def spread(self, normals: TrainingSet) -> float | None:
        """See `output_spread`, of views of the first training images."""
        numbers = torch.arange(min(self.batch, len(normals)))
        views = self.prepare(view(normals.select(numbers), self.resolved["patches"]))
        return output_spread(self.network(views), views)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The residual at every pixel; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        inputs = self.prepare(images)
        maps = residual_map(self.network, inputs, self.residual, self.resolved["patches"], self.batch)
        return Scores(maps.amax(dim=(1, 2)), maps)


def side_of(shape: tuple[int, int, int], patches: bool) -> int:
    """The side of the network's input for images of a (3, H, W) shape.

    Raises:
        UsageError: images smaller than a patch, or whole images that are not square.
    """
    _, height, width = shape
    if patches and min(height, width) < PATCH:
        raise UsageError(
            f"method.patches=true: images of {height} x {width} pixels; expected at least {PATCH} x {PATCH}"
        )
    if not patches and height != width:
        raise UsageError(f"the autoencoder cannot take images of {height} x {width} pixels; expected square ones")
    return PATCH if patches else height


def view(images: Tensor, patches: bool, turn: float = TURN, shift: float = SHIFT) -> Tensor:
    """Random views (B, 3, side, side) of (B, 3, H, W) images, drawn from torch's global generator.

    Patches are rotated by any angle and lie inside the image if it is large enough. Whole images are shifted by up to
    `shift` of their sides and rotated by up to `turn` degrees. Beyond its border the image is reflected.
    """
    count, _, height, width = images.shape
    side = torch.tensor([width, height], dtype=torch.float32)
    angle = (2 * torch.rand(count) - 1) * math.radians(180 if patches else turn)
    scale = PATCH / side if patches else torch.ones(2)
    room = (1 - math.sqrt(2) * scale).clamp(min=0) if patches else torch.full((2,), 2 * shift)
    centre = (2 * torch.rand(count, 2) - 1) * room  # in units of half the side, as in grid_sample
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
    """(B, H, W): the residual of whole (B, C, H, W) images, or its mean over all patches that contain a pixel."""
    return mean_map(lambda part: residual(network(part), part), images, patches, batch)


def mean_map(make: Callable[[Tensor], Tensor], images: Tensor, patches: bool, batch: int, step: int = STEP) -> Tensor:
    """(B, H, W): what `make` makes of whole (B, C, H, W) images, or its mean over all patches that contain a pixel."""
    if not patches:
        return make(images)
    total = images.new_zeros(images.shape[0], *images.shape[2:])
    counts = images.new_zeros(images.shape[2:])
    for top, left in places(images.shape[2], images.shape[3], step):
        part = images[:, :, top : top + PATCH, left : left + PATCH]
        chunks = (part,) if torch.compiler.is_compiling() else torch.split(part, batch)  # a graph has no loops
        errors = torch.cat([make(chunk) for chunk in chunks])
        total[:, top : top + PATCH, left : left + PATCH] += errors
        counts[top : top + PATCH, left : left + PATCH] += 1
    return total / counts


def places(height: int, width: int, step: int = STEP) -> Iterator[tuple[int, int]]:
    """Top-left corners of patches every `step` pixels, plus a last one at the far border."""
    for top in starts(height, PATCH, step):
        for left in starts(width, PATCH, step):
            yield top, left
