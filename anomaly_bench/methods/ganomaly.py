"""GANomaly: an image's code should be the code of its reconstruction, too.

Samet Akcay, Amir Atapour-Abarghouei, Toby P. Breckon; ACCV 2018, arXiv 1805.06725.

An encoder, a decoder and a second encoder are trained together, against a discriminator whose features of an image and
of its reconstruction are to agree. The score is the mean squared difference of the two codes. There is no anomaly map.

Networks, losses and their order follow the authors' code, without its two leaks: there, weights are kept whenever the
AUROC of the test set rises, and batch norms use the statistics of the test batch while scoring. Here the last step
counts, and norms use the statistics of the training. A set smaller than a batch is a batch, which the code would drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.gan import agree, frozen, initialise, shrinking
from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Epoch, Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

BETAS = 0.5, 0.999  # of Adam
COLLAPSED = 1e-5  # loss of the discriminator below which it starts again from random weights


class GANomaly(nn.Module):
    """GANomaly on images of `size` pixels.

    Args:
        epochs, lr, batch: for training with Adam.
        samples: images per epoch; each is drawn as often as needed.
        size: of the network's square input, in pixels: 16, 32, 64, ...; images are resized to it.
        latent: elements of a code.
        width: channels of the first layer.
        adversarial, contextual, encoded: weights of the three parts of the loss.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        batch: int = 64,
        samples: int = 43200,
        size: int = 64,
        latent: int = 100,
        width: int = 64,
        adversarial: float = 1.0,
        contextual: float = 50.0,
        encoded: float = 1.0,
    ) -> None:
        if size < 16 or size.bit_count() != 1:
            raise UsageError(f"method.size={size}: expected a power of two of at least 16, such as 64")
        super().__init__()
        self.epochs, self.lr, self.batch, self.samples = epochs, lr, batch, samples
        self.size, self.latent, self.width = size, latent, width
        self.adversarial, self.contextual, self.encoded = adversarial, contextual, encoded

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create encoders and decoder for images of C channels."""
        self.channels = shapes[0][0]
        self.encoder = shrinking(self.channels, self.size, self.latent, self.width)
        self.decoder = growing(self.latent, self.size, self.channels, self.width)
        self.second = shrinking(self.channels, self.size, self.latent, self.width)
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train against a discriminator, one step of each per batch; smaller last batches are dropped.

        Raises:
            ValueError: the loss is not finite.
        """
        images = torch.cat([self.prepared(images) for images in normals.images(self.batch)])
        critic = shrinking(self.channels, self.size, 1, self.width).to(images).to(memory_format=torch.channels_last)
        generates, judges = (
            torch.optim.Adam(network.parameters(), self.lr, BETAS, fused=True) for network in (self, critic)
        )
        loop = Loop(nn.ModuleList([self, critic]), [generates, judges], normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(images), self.batch, self.samples, whole=True):
                self.step(images[numbers.to(images.device)], critic, epoch)
        with torch.no_grad():
            loop.spread = output_spread(self.reconstruct(images[: self.batch])[1], images[: self.batch])
        self.facts = loop.facts

    def step(self, images: Tensor, critic: nn.Sequential, epoch: Epoch) -> None:
        """One step of the generator, and one of the discriminator, whose loss is that of before the generator's."""
        generates, judges = epoch.loop.optimisers
        codes, outputs, others = self.reconstruct(images)
        with frozen(critic):
            imitated = critic[:-1](outputs)
        features = critic[:-1](images)
        judged = (agree(critic[-1](features), 1) + agree(critic(outputs.detach()), 0)) / 2
        parts = F.mse_loss(imitated, features.detach()), F.l1_loss(outputs, images), F.mse_loss(others, codes)
        epoch.step(self.loss(*parts), generates)
        epoch.step(judged, judges)
        if judged < COLLAPSED:
            critic.apply(initialise)

    def loss(self, features: Tensor, outputs: Tensor, codes: Tensor) -> Tensor:
        """() weighted sum of the three differences between images and reconstructions."""
        return self.adversarial * features + self.contextual * outputs + self.encoded * codes

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, latent, 1, 1), reconstructions (B, C, size, size) in (-1, 1), and the codes of those."""
        codes = self.encoder(images)
        outputs = self.decoder(codes)
        return codes, outputs, self.second(outputs)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Mean squared differences of the codes.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        codes, _, others = self.reconstruct(self.prepared(images))
        return Scores((codes - others).square().mean(dim=(1, 2, 3)), None)

    def prepared(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, size, size) in [-1, 1]."""
        return 2 * resized(images, (self.size, self.size)) - 1


def growing(latent: int, side: int, channels: int, width: int) -> nn.Sequential:
    """Transposed convolutions (B, latent, 1, 1) -> (B, channels, side, side) in (-1, 1): `shrinking` in reverse."""
    widest = width * side // 8
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widest, 4, bias=False), nn.BatchNorm2d(widest), nn.ReLU()]
    while widest > width:
        layers.append(nn.ConvTranspose2d(widest, widest // 2, 4, 2, padding=1, bias=False))
        widest //= 2
        layers += [nn.BatchNorm2d(widest), nn.ReLU()]
    layers.append(nn.ConvTranspose2d(width, channels, 4, 2, padding=1, bias=False))
    return nn.Sequential(*layers, nn.Tanh()).apply(initialise)
