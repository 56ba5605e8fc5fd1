"""P-Net: Encoding Structure-Texture Relation with P-Net for Anomaly Detection in Retinal Images.

Kang Zhou, Yuting Xiao, Jianlong Yang, Jun Cheng, Wen Liu, Weixin Luo, Zaiwang Gu, Jiang Liu, Shenghua Gao; ECCV 2020,
arXiv 2008.03632.

A small network learns to find the edges of images (its targets are Canny's). Then the images are reconstructed, in a
GAN, from their edges and from the deepest features of an encoder of the image.

Two stages as in the authors' code for MVTec AD. Their third, which compares the edges of the reconstruction, is in
neither of their repositories, and is left out. There the epoch, the power of the errors and the blur were chosen on
test images; here the last epoch counts, and power and blur are those of the one example, for all categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from skimage.feature import canny
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from anomaly_bench.components.gan import PatchCritic, agree
from anomaly_bench.components.training import Epoch, Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

BETAS, WEIGHT_DECAY = (0.1, 0.9), 1e-4
WINDOW = 11  # pixels: side of the blur's window
STRIDE = 16  # of the networks' deepest stage


class PNet(nn.Module):
    """P-Net.

    Args:
        epochs: of which the first half trains the network of edges.
        lr, critic_lr, structure_lr: of the reconstructing networks, their discriminator, and the network of edges.
        batch: of the reconstruction; that of the edges is a third larger.
        adversarial, matching: weights of the discriminator's answers and of its features in the loss.
        sigma: of the blur of what is reconstructed, in pixels; 0: none.
        power: of the absolute errors in the image score.
        width: channels of the first stage of encoders and discriminator.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        critic_lr: float = 2e-5,
        structure_lr: float = 1e-4,
        batch: int = 18,
        adversarial: float = 1.0,
        matching: float = 0.01,
        sigma: float = 1.5,
        power: float = 4.0,
        width: int = 64,
    ) -> None:
        if sigma < 0 or power <= 0:
            raise UsageError(f"method.sigma={sigma}, method.power={power}: expected at least 0, and more than 0")
        if width < 2 or width % 2:
            raise UsageError(f"method.width={width}: expected an even number of channels, such as 64")
        super().__init__()
        self.epochs, self.lr, self.critic_lr, self.structure_lr = epochs, lr, critic_lr, structure_lr
        self.batch, self.adversarial, self.matching = batch, adversarial, matching
        self.sigma, self.power, self.width = sigma, power, width

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the networks for (3, H, W) images.

        Raises:
            UsageError: a side that cannot be halved four times.
        """
        check_sides("P-Net", shapes[0][1:], STRIDE)
        width = self.width
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.edges = EdgeNetwork()
        self.structure_encoder, self.image_encoder = Encoder(1, widths), Encoder(3, widths)
        skipped = [8 * width, 4 * width, 2 * width, 0]
        self.decoder = Decoder(16 * width, skipped, [8 * width, 2 * width, 5 * width // 2, width], 3)
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train the network of edges in the first half, and the reconstruction in the second.

        Raises:
            ValueError: the loss is not finite.
        """
        critic = PatchCritic(norms=True, width=self.width).to(normals.device)
        targets = torch.cat([canny_edges(images) for images in normals.images(self.batch)])
        parts = (self.structure_encoder, self.image_encoder, self.decoder)
        draws, judges = adam(self.edges.parameters(), self.structure_lr), adam(critic.parameters(), self.critic_lr)
        generates = adam(chain.from_iterable(part.parameters() for part in parts), self.lr)
        loop = Loop(nn.ModuleList([self, critic]), [draws, generates, judges], normals, self.epochs)
        for epoch in loop:
            batch = self.batch if epoch.progress >= 0.5 else self.batch * 4 // 3
            for numbers in epoch.batches(len(normals), batch):
                images = normals.select(numbers)
                if epoch.progress < 0.5:
                    draws.param_groups[0]["lr"] = self.structure_lr * (0.1 if epoch.progress >= 0.25 else 1)
                    epoch.step(F.cross_entropy(self.edges(images), targets[numbers].to(images.device)), draws)
                else:
                    self.step(images, critic, epoch)
        with torch.no_grad():
            images = normals.select(torch.arange(min(self.batch, len(normals))))
            loop.spread = output_spread(self.reconstruct(images), images)
        self.facts = loop.facts

    def step(self, images: Tensor, critic: PatchCritic, epoch: Epoch) -> None:
        """One step each of the reconstruction and of its discriminator, from the same outputs of both."""
        _, generates, judges = epoch.loop.optimisers
        for optimiser, rate in ((generates, self.lr), (judges, self.critic_lr)):
            optimiser.param_groups[0]["lr"] = rate * rate_factor(2 * epoch.progress - 1)
        targets, outputs = self.blurred(images), self.reconstruct(images)
        real, made = critic(targets), critic(outputs.detach())
        loss = self.loss(outputs, targets, critic(outputs), real)
        epoch.step(loss, generates)  # first, as its graph has the weights that the other step changes
        epoch.step((agree(real[-1], 1) + agree(made[-1], 0)) / 2, judges, curve=False)

    def loss(self, outputs: Tensor, targets: Tensor, made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """() loss of the reconstruction: squared errors, the discriminator's answers, and those of its features.

        Args:
            made, real: the discriminator's layers for outputs and targets, (B, 3, H, W).
        """
        features = [F.mse_loss(ours, theirs.detach()) for ours, theirs in zip(made, real, strict=True)]
        matched = self.matching * torch.stack(features).sum()
        return F.mse_loss(outputs, targets) + self.adversarial * agree(made[-1], 1) + matched

    @torch.no_grad()
    def structure(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W): 1 at edges, else 0; no gradient passes."""
        classes: Tensor = self.edges(images).argmax(dim=1, keepdim=True)
        return classes.to(images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), from the edges and the deepest features of the images."""
        _, second, third, fourth, deepest = self.structure_encoder(self.structure(images))
        code = torch.cat([deepest, self.image_encoder(images)[-1]], dim=1)
        outputs: Tensor = self.decoder(code, [fourth, third, second, None])
        return outputs

    def blurred(self, images: Tensor) -> Tensor:
        """What is reconstructed of (B, 3, H, W) images."""
        blurred: Tensor = gaussian_blur(images, [WINDOW] * 2, [self.sigma] * 2) if self.sigma else images
        return blurred

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is the mean absolute error over channels; the image score the mean of errors to a power.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that are not multiples of 16.
        """
        check_fitted(self)
        check_sides("P-Net", images.shape[2:], STRIDE)
        errors = (self.reconstruct(images) - self.blurred(images)).abs()
        return Scores(errors.pow(self.power).mean(dim=(1, 2, 3)), errors.mean(dim=1))


class Encoder(nn.Module):
    """(B, C, H, W) -> the outputs of all stages, each of half the sides of the one before."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(double(*pair) for pair in pairwise([inputs, *widths]))

    def forward(self, images: Tensor) -> list[Tensor]:
        first, *others = self.stages
        outputs = [first(images)]
        for stage in others:
            outputs.append(stage(F.max_pool2d(outputs[-1], 2)))
        return outputs


class Decoder(nn.Module):
    """Doubles the sides at every stage, which also sees what skips to it, if anything; values in (0, 1).

    Args:
        inputs: channels of the code.
        skipped, widths: channels of what is skipped to each stage, and of its output.
        outputs: channels of the last output.
    """

    def __init__(self, inputs: int, skipped: Sequence[int], widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        channels = zip([inputs, *widths[:-1]], skipped, widths, strict=True)
        self.stages = nn.ModuleList(double(deep + skip, width) for deep, skip, width in channels)
        self.last = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, code: Tensor, skipped: Sequence[Tensor | None]) -> Tensor:
        for stage, skip in zip(self.stages, skipped, strict=True):
            larger = F.interpolate(code, scale_factor=2, mode="bilinear", align_corners=True)
            code = stage(larger if skip is None else torch.cat([skip, larger], dim=1))
        return torch.sigmoid(self.last(code))


class EdgeNetwork(nn.Module):
    """U-Net: (B, 3, H, W) -> (B, 2, H, W) in (0, 1), for no edge and edge; cross-entropy takes them as logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8, 16, 32, 64, 128]
        self.encoder = Encoder(3, widths)
        self.decoder = Decoder(128, widths[-2::-1], widths[-2::-1], 2)

    def forward(self, images: Tensor) -> Tensor:
        *skipped, deepest = self.encoder(images)
        result: Tensor = self.decoder(deepest, skipped[::-1])
        return result


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def canny_edges(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, H, W) int64: 1 at edges of any channel, else 0.

    As in the authors' code, thresholds are those for values up to 1: nearly each ridge of the gradient is an edge.
    """
    planes = (255 * images).double().cpu().numpy()
    found = [[torch.from_numpy(canny(plane, 1.0, 0.1, 0.2)) for plane in image] for image in planes]
    return torch.stack([torch.stack(edges).any(dim=0) for edges in found]).long()


def rate_factor(progress: float) -> float:
    """Of the learning rate, at a share of the second stage: of 800 epochs, less from the 560th and the 720th."""
    return 1.0 if progress < 0.7 else 0.1 if progress < 0.9 else 0.01


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True)
