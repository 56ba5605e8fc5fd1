"""SCADN: Learning Semantic Context from Normal Samples for Unsupervised Anomaly Detection.

Xudong Yan, Huaidong Zhang, Xuemiao Xu, Xiaowei Hu, Pheng-Ann Heng; AAAI 2021.

A GAN restores normal images of which every second stripe, vertical or horizontal, is hidden. When scoring, an image is
restored from the stripes of three widths, and from what lies between them.

As in the authors' code: the masks of a fourth, largest width are never used; the last weights are those with the lowest
error on training images, looked at every ten epochs; and a scale's errors are compared with those on training images.
It has no maps: ours is that of the scale that makes the image score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.gan import PatchCritic, agree, initialise
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

BETAS = (0.0, 0.9)
STRIDE = 16  # pixels: the narrowest stripes have a sixteenth of a side
BLOCKS = 8  # residual ones
CHECK = 10  # epochs after which weights are compared
HIDDEN, ADVERSARIAL = 4.0, 0.001  # weights in the loss: of errors in what was hidden, of the discriminator's answers
KINDS = 4  # of masks of one scale: vertical, its complement, horizontal, its complement


class SCADN(nn.Module):
    """SCADN.

    Args:
        epochs, batch: for training with Adam.
        lr, critic_lr: of the generator and of the discriminator.
        scales: each hides that many of twice as many stripes.
        width: channels of the first layers.
    """

    norms: Tensor  # (S,) mean errors on training images

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        critic_lr: float = 1e-5,
        batch: int = 4,
        scales: Sequence[int] = (2, 4, 8),
        width: int = 64,
    ) -> None:
        if not scales or not set(scales) <= {1, 2, 4, 8}:
            raise UsageError(f"method.scales={list(scales)}: expected some of [1,2,4,8]")
        super().__init__()
        self.epochs, self.lr, self.critic_lr, self.batch = epochs, lr, critic_lr, batch
        self.scales, self.width = scales, width

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the generator for (3, H, W) images.

        Raises:
            UsageError: a side that sixteen stripes do not fill.
        """
        check_sides("SCADN", shapes[0][1:], STRIDE)
        self.generator = generator(self.width)
        self.register_buffer("norms", torch.zeros(len(self.scales)))
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train the generator against a discriminator; then measure each scale's error on the training images.

        Raises:
            ValueError: the loss is not finite.
        """
        critic = PatchCritic(norms=False, width=self.width).to(normals.device)
        generates = torch.optim.Adam(self.parameters(), self.lr, BETAS, fused=True)
        judges = torch.optim.Adam(critic.parameters(), self.critic_lr, BETAS, fused=True)
        masks = stripes(normals.size, self.scales).to(normals.device)
        loop = Loop(nn.ModuleList([self, critic]), [generates, judges], normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, whole=True):
                images, drawn = normals.select(numbers), masks[torch.randint(len(masks), (len(numbers),))]
                outputs = self.restore(images, drawn)
                judged = judgement(critic(images)[-1], critic(outputs.detach())[-1])
                deceived = ADVERSARIAL * agree(critic(outputs)[-1], 1)
                epoch.step(errors_of(outputs, images, drawn) + deceived, generates)  # before its discriminator changes
                epoch.step(judged, judges, curve=False)
            if (epoch.number + 1) % CHECK == 0:
                loop.keep_best(self.mean_error(normals), self)
        loop.load_best(self)
        self.measure(normals)
        loop.spread = self.spread(normals)
        self.facts = loop.facts

    def restore(self, images: Tensor, masks: Tensor) -> Tensor:
        """(B, 3, H, W) from images whose masked pixels, (B, 1, H, W) or (1, 1, H, W), are painted white."""
        restored: Tensor = self.generator(images * (1 - masks) + masks)
        return restored

    @torch.no_grad()
    def mean_error(self, normals: TrainingSet) -> float:
        """Mean absolute error over training images, each at the scale where it is largest."""
        parts = [self.maps(images, 1).mean(dim=(2, 3)).amax(dim=1) for images in normals.images(self.batch)]
        return float(torch.cat(parts).mean())

    @torch.no_grad()
    def measure(self, normals: TrainingSet) -> None:
        """Set each scale's mean squared error on the training images."""
        parts = [self.maps(images, 2).mean(dim=(2, 3)) for images in normals.images(self.batch)]
        self.norms.copy_(torch.cat(parts).mean(dim=0))

    @torch.no_grad()
    def spread(self, normals: TrainingSet) -> float | None:
        """See `output_spread`, of the first training images without their first stripes."""
        images = normals.select(torch.arange(min(2 * self.batch, len(normals))))
        return output_spread(self.restore(images, stripes(normals.size, self.scales)[:1].to(images)), images)

    def maps(self, images: Tensor, power: int) -> Tensor:
        """(B, S, H, W): for each scale, the larger of a pixel's errors under vertical and horizontal stripes."""
        found = []
        for masks in torch.split(stripes(images.shape[2:], self.scales).to(images), KINDS):
            errors = [(self.restore(images, mask[None]) - images).abs().pow(power).mean(dim=1) * mask for mask in masks]
            found.append(torch.stack(errors).amax(dim=0))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map of the scale whose mean exceeds that of training images most; its mean is the image score.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that are not multiples of 16.
        """
        check_fitted(self)
        check_sides("SCADN", images.shape[2:], STRIDE)
        maps = self.maps(images, 2)
        means = maps.mean(dim=(2, 3))
        chosen = (means - self.norms).argmax(dim=1)
        rows = torch.arange(len(images), device=images.device)
        return Scores(means[rows, chosen], maps[rows, chosen])


def errors_of(outputs: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """() mean squared error, in which hidden pixels (masks of 1) count four times, divided by the hidden share."""
    errors = (outputs - images).square()
    visible, hidden = ((1 - masks) * errors).mean(), (masks * errors).mean()
    return (visible + HIDDEN * hidden) / masks.mean()


def judgement(real: Tensor, made: Tensor) -> Tensor:
    """() loss of the discriminator, from its logits of images and of outputs."""
    return (agree(real, 1) + agree(made, 0)) / 2


def stripes(size: Sequence[int], scales: Sequence[int]) -> Tensor:
    """(4 S, 1, H, W) masks, 1: hidden: of each scale's equal stripes, twice as many as its number, every second one.

    The vertical ones from the first on, their complement, the horizontal ones from the first on, their complement.
    """
    height, width = size
    masks = []
    for scale in scales:
        columns = (torch.arange(width) * 2 * scale // width % 2 == 0).float().expand(height, width)
        rows = (torch.arange(height) * 2 * scale // height % 2 == 0).float()[:, None].expand(height, width)
        masks += [columns, 1 - columns, rows, 1 - rows]
    return torch.stack(masks)[:, None]


def generator(width: int) -> nn.Sequential:
    """(B, 3, H, W) -> (B, 3, H, W) in (0, 1)."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), *normalised(nn.Conv2d(3, width, 7))]
    for times in (1, 2, 4):
        layers += normalised(nn.Conv2d(times * width, 2 * times * width, 4, 2, padding=1))
    layers += [Residual(8 * width) for _ in range(BLOCKS)]
    for times in (8, 4, 2):
        layers += [nn.Upsample(scale_factor=2), *normalised(nn.Conv2d(times * width, times * width // 2, 3, padding=1))]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), Unit()).apply(initialise)


def normalised(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU()]


class Residual(nn.Module):
    """Adds what two convolutions make, the first of which skips every second pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(2),
            *normalised(nn.Conv2d(channels, channels, 3, dilation=2)),
            nn.ReflectionPad2d(1),
            *normalised(nn.Conv2d(channels, channels, 3))[:-1],
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = images + self.layers(images)
        return result


class Unit(nn.Module):
    """A hyperbolic tangent, moved to (0, 1)."""

    def forward(self, images: Tensor) -> Tensor:
        return (torch.tanh(images) + 1) / 2
