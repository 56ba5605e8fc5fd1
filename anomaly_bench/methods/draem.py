"""DRAEM: A discriminatively trained reconstruction embedding for surface anomaly detection.

Vitjan Zavrtanik, Matej Kristan, Danijel Skocaj; 2021, arXiv 2108.07610.

One network learns to remove simulated anomalies from an image, another to locate them from the original and the result.

Where the authors' code differs from the paper, this follows the code: noise threshold 0.5, rotations of up to 90
degrees, and a learning rate that drops at 80 and 90 % of the epochs. Differences from the code: channels are RGB, not
BGR; the data range of the structural similarity is 1, not guessed from the data; each epoch uses every image once
instead of sampling with replacement; a texture's brightness and saturation are scaled in RGB and HSV, where imgaug
draws a colour space and adds to the saturation; without a folder of photographs (DTD), textures are generated, as
records and tables show. Other changes of textures have imgaug's ranges: sharpness 0 to 2, 1 to 8 bits, 0 to 20 % cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.losses import focal_loss, ssim_map
from anomaly_bench.components.synthetic_anomalies import perlin
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

WINDOW = 21  # pixels: side of the mean filter applied before taking the image score's maximum
STRIDE = 32  # of the deepest stage
MILESTONES = 0.8, 0.9  # shares of the training after which the learning rate drops


class DRAEM(nn.Module):
    """DRAEM as in section 3.

    Args:
        epochs, lr, batch: for training with Adam.
        accumulate: parts of a batch processed one after the other to save memory; this changes the result, as batch
            normalisation sees one part at a time.
        anomaly_source: a folder of textures; None: generated textures.
        width, discriminative_width: channels of the networks' first stages.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 8,
        accumulate: int = 1,
        anomaly_source: str | None = None,
        width: int = 128,
        discriminative_width: int = 64,
    ) -> None:
        if not 1 <= accumulate <= batch:
            raise UsageError(f"method.accumulate={accumulate}: expected 1 to method.batch={batch} parts")
        super().__init__()
        self.epochs, self.lr, self.batch, self.accumulate = epochs, lr, batch, accumulate
        self.widths = width, discriminative_width
        self.texture: perlin.Texture = perlin.generated_texture
        if anomaly_source is not None:
            self.texture = perlin.folder_texture(Path(str(anomaly_source)).expanduser())
        self.facts: dict[str, object] = {"anomaly_source": "generated" if anomaly_source is None else "folder"}

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create both networks for images of the given (3, H, W) shape.

        Raises:
            UsageError: a side that cannot be halved five times.
        """
        check_sides("DRAEM", shapes[0][1:], STRIDE)
        self.reconstruct, self.discriminate = Reconstructive(self.widths[0]), Discriminative(self.widths[1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def fit(self, normals: TrainingSet) -> None:
        """Train both networks on images with simulated anomalies, newly drawn in every epoch.

        Raises:
            ValueError: the loss is not finite.
        """
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                drops = sum(epoch.progress >= milestone for milestone in MILESTONES)
                optimiser.param_groups[0]["lr"] = self.lr * 0.2**drops
                epoch.step(self.losses(normals.select(numbers)))
        loop.spread = self.spread(normals)
        self.facts |= loop.facts

    @torch.no_grad()
    def spread(self, normals: TrainingSet) -> float | None:
        """See `output_spread`, of the first training images."""
        images = normals.select(torch.arange(min(self.batch, len(normals))))
        return output_spread(self.reconstruct(images), images)

    def losses(self, images: Tensor) -> Iterator[Tensor]:
        """The parts () of a batch's loss (equation 6); backpropagate each before requesting the next."""
        for part in torch.tensor_split(images, min(self.accumulate, len(images))):
            drawn = [self.draw(image) for image in part.cpu()]
            clean, dirty, mask = (torch.stack(tensors).to(images.device) for tensors in zip(*drawn, strict=True))
            yield self.loss(clean, dirty, mask) * len(part) / len(images)

    def draw(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A (3, H, W) image, sometimes rotated; the same, sometimes with an anomaly; the anomaly's (H, W) mask."""
        clean = turned(image)
        return clean, *perlin.simulate(clean, self.texture)

    def loss(self, clean: Tensor, dirty: Tensor, mask: Tensor) -> Tensor:
        """Squared error and SSIM loss of the reconstruction (equation 2), plus focal loss of the map (equation 5).

        Args:
            clean, dirty: (B, 3, H, W) in [0, 1].
            mask: (B, H, W) bool, where they differ.
        """
        repaired = self.reconstruct(dirty)
        logits = self.discriminate(torch.cat([repaired, dirty], dim=1))
        likeness = ssim_map(repaired, clean, zeros=True).mean()
        return F.mse_loss(repaired, clean) + 1 - likeness + focal_loss(logits, mask.long())

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The log-odds of an anomaly at each pixel: same ranking as the probability, without saturation.

        The image score is the maximum of the probability map after a 21 x 21 mean filter (section 3.4).

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        logits = self.discriminate(torch.cat([self.reconstruct(images), images], dim=1))
        odds = logits[:, 1] - logits[:, 0]
        smooth = F.avg_pool2d(odds.sigmoid()[:, None], WINDOW, stride=1, padding=WINDOW // 2)
        return Scores(smooth.amax(dim=(1, 2, 3)), odds)


def turned(image: Tensor) -> Tensor:
    """Rotate a (3, H, W) image by up to 90 degrees, with probability 0.3."""
    if float(torch.rand(())) >= 0.3:
        return image
    return perlin.rotated(image, perlin.uniform(-90, 90))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def double(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, middle), convolution(middle, outputs))


def enlarging(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), convolution(inputs, outputs))


class Reconstructive(nn.Sequential):
    """Encoder-decoder without skip connections: (B, 3, H, W) -> (B, 3, H, W); `width`: channels of its first stage."""

    def __init__(self, width: int) -> None:
        w = width
        down = [double(3, w, w)]
        for inputs, outputs in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w)):
            down += [nn.Sequential(nn.MaxPool2d(2), double(inputs, outputs, outputs))]
        up: list[nn.Module] = []
        for inputs, outputs in ((8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)):
            up += [enlarging(inputs, inputs), double(inputs, inputs, outputs)]
        super().__init__(*down, *up, nn.Conv2d(w, 3, 3, padding=1))


class Discriminative(nn.Module):
    """U-Net: (B, 6, H, W) reconstruction and image -> (B, 2, H, W) logits; `width`: channels of its first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        self.first = double(6, width, width)
        pairs = itertools.pairwise(sizes)
        self.down = nn.ModuleList([double(inputs, outputs, outputs) for inputs, outputs in pairs])
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        outputs = [8 * width, 4 * width, 2 * width, width, width]
        inputs = [8 * width, *outputs[:-1]]
        for deep, shallow, skipped in zip(inputs, outputs, sizes[-2::-1], strict=True):
            self.up.append(enlarging(deep, shallow))
            self.join.append(double(shallow + skipped, shallow, shallow))
        self.last = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        stages = [self.first(images)]
        for stage in self.down:
            stages.append(stage(F.max_pool2d(stages[-1], 2)))
        result = stages.pop()
        for enlarge, join in zip(self.up, self.join, strict=True):
            result = join(torch.cat([enlarge(result), stages.pop()], dim=1))
        logits: Tensor = self.last(result)
        return logits
