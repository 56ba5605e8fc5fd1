"""ITAE, later ARNet: Attribute Restoration Framework for Anomaly Detection.

Fei Ye, Chaoqin Huang, Jinkun Cao, Maosen Li, Ya Zhang, Cewu Lu; IEEE Transactions on Multimedia 2020, arXiv 1911.10676.

Colour and orientation are erased: a U-Net sees a grey image, turned by a quarter, half or three quarters or not at all,
and restores the upright image in colour. The score is the mean absolute error of the restored image, for each of the
four turns divided by its mean over the training images, and averaged over the turns.

A reconstruction: of the paper we know the abstract, of the network and its training an unofficial implementation for
CIFAR-10. That one chooses the epoch on test images, which is not done here, and its inputs are scrambled, as values in
[-1, 1] are read as [0, 1]. The map is ours: errors averaged over channels and turns, of which the score is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

TURNS = 4
STRIDE = 16  # of the deepest stage
PARTS = 10  # of the training, after each of which the learning rate is halved


class ITAE(nn.Module):
    """ITAE with the U-Net of the unofficial implementation.

    Args:
        epochs, lr, batch: for training with SGD; each image is turned at random once an epoch.
        width: channels of the first stage.
    """

    means: Tensor  # (4,) errors of the training images, for each turn

    def __init__(self, epochs: int, lr: float = 0.1, batch: int = 32, width: int = 64) -> None:
        super().__init__()
        self.epochs, self.lr, self.batch, self.width = epochs, lr, batch, width

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for images of the given (C, H, W) shape.

        Raises:
            UsageError: images that are not square, or a side that cannot be halved four times.
        """
        channels, height, width = shapes[0]
        if height != width:
            raise UsageError(f"ITAE turns images: {height} x {width} pixels found; expected square ones")
        check_sides("ITAE", (height, width), STRIDE)
        self.network = UNet(channels, self.width)
        self.register_buffer("means", torch.ones(TURNS))

    def fit(self, normals: TrainingSet) -> None:
        """Train the network, and measure its errors on the training images.

        Raises:
            ValueError: the loss is not finite.
        """
        optimiser = torch.optim.SGD(self.parameters(), self.lr, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, whole=True):
                optimiser.param_groups[0]["lr"] = self.lr / 2 ** int(PARTS * epoch.progress + 1e-6)
                images = scaled(normals.select(numbers))
                turns = torch.randint(TURNS, (len(images),)).tolist()
                turned = torch.stack([turn(image, count) for image, count in zip(erased(images), turns, strict=True)])
                epoch.step(F.mse_loss(self.network(turned), images))
        with torch.no_grad():
            sums = [self.errors(scaled(images)).mean(dim=(2, 3)).sum(dim=1) for images in normals.images(self.batch)]
            self.means.copy_(torch.stack(sums).sum(dim=0) / len(normals))
            loop.spread = self.spread(normals)
        self.facts = loop.facts

    def spread(self, normals: TrainingSet) -> float | None:
        """See `output_spread`, of the first training images."""
        images = scaled(normals.select(torch.arange(min(self.batch, len(normals)))))
        return output_spread(self.network(erased(images)), images)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is the mean over turns of the errors, the image score the map's mean: 1 over the training images.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        maps = (self.errors(scaled(images)) / self.means[:, None, None, None]).mean(dim=0)
        return Scores(maps.mean(dim=(1, 2)), maps)

    def errors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (4, B, H, W) absolute errors for each turn, averaged over channels."""
        inputs = erased(images)
        restored = [self.network(turn(inputs, count)) for count in range(TURNS)]
        return torch.stack([(each - images).abs().mean(dim=1) for each in restored])


def scaled(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return 2 * images - 1


def erased(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): the channels' mean."""
    return images.mean(dim=1, keepdim=True)


def turn(images: Tensor, count: int) -> Tensor:
    """Turn (..., H, H) counter-clockwise by so many quarters."""
    return images.rot90(count, (-2, -1)).contiguous()


class UNet(nn.Module):
    """(B, 1, H, W) -> (B, channels, H, W) in [-1, 1]; its input stays visible to the last stages at the same place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        pairs = zip([1, *sizes], sizes, strict=False)
        self.down = nn.ModuleList([double(inputs, outputs) for inputs, outputs in pairs])
        ends = [4 * width, 2 * width, width, width]
        joined = zip([8 * width, *ends], sizes[-2::-1], ends, strict=False)
        self.up = nn.ModuleList([double(deep + shallow, outputs) for deep, shallow, outputs in joined])
        self.last = nn.Conv2d(width, channels, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        stages = [self.down[0](images)]
        for stage in list(self.down)[1:]:
            stages.append(stage(F.max_pool2d(stages[-1], 2)))
        result = stages.pop()
        for stage in self.up:
            larger = F.interpolate(result, scale_factor=2, mode="bilinear", align_corners=True)
            result = stage(torch.cat([stages.pop(), larger], dim=1))
        return torch.tanh(self.last(result))


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each with a norm and a ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        convolution = nn.Conv2d(before, outputs, 3, padding=1)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)  # the norm takes it out again
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
