"""CAVGA-Ru: an adversarial variational autoencoder whose attention is to cover the whole of a normal image.

Shashanka Venkataramanan, Kuan-Chuan Peng, Rajat Vikram Singh, Abhijit Mahalanobis: Attention Guided Anomaly
Localization in Images; ECCV 2020, arXiv 1911.08616. Here the unsupervised variant on a residual network.

The attention is the sigmoid of Grad-CAM: the features weighted by the mean gradient of the code's means. As a loss
makes it large on normal images, one minus the attention is the anomaly map. With the published form, a linear head on
the last features, the gradient is the same at all positions; `levels: [3, 4]` takes the attention of an earlier level,
through the layers between.

The authors published no code. From the paper are the pretrained encoder, the convolutional code, the losses and their
weights (1, 1, 0.01), and the map. Ours are the decoder, which mirrors ResNet-18, the discriminator (of DCGAN's layers
on images of 64 pixels, not pretrained on Celeb-A), and how losses are reduced: squared errors and divergence are
summed, as in a VAE, and divided by the number of values in an image, so that the attention's weight tells. What is
explained is the mean over the code's channels; its sum would saturate the sigmoid. The encoder's batch norms keep their
statistics: with those of a batch, the code would hardly depend on an earlier level as a whole, and the images of a
batch would share their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.gan import agree, shrinking
from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.components.variational import STRIDE, Heads, decoder, divergence, sample
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import TrainingSet

JUDGED = (64, 64)  # pixels: what the discriminator sees
BETAS = 0.5, 0.999  # of Adam for the discriminator


class Code(NamedTuple):
    """What the encoder makes of images."""

    means: Tensor  # (B, latent, h, w)
    log_variances: Tensor  # (B, latent, h, w)
    lack: Tensor  # (B, h', w') in (0, 1): one minus the attention


class CAVGARu(nn.Module):
    """CAVGA-Ru on a backbone, whose copy is trained further.

    Args:
        backbone: read at the last level, of stride 32; with two levels the attention is that of the first.
        epochs, lr, batch: for training with Adam.
        latent: channels of the code.
        width: channels of the decoder's last layers.
        critic_width: channels of the discriminator's first layer.
        adversarial, attention: weights in the loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        epochs: int,
        lr: float = 1e-4,
        batch: int = 16,
        latent: int = 64,
        width: int = 64,
        critic_width: int = 64,
        adversarial: float = 1.0,
        attention: float = 0.01,
    ) -> None:
        super().__init__()
        self.backbone, self.epochs, self.lr, self.batch = backbone, epochs, lr, batch
        self.latent, self.width, self.critic_width = latent, width, critic_width
        self.adversarial, self.attention = adversarial, attention

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Copy the network with its weights, and create heads and decoder.

        Raises:
            UsageError: more than two levels.
        """
        if len(shapes) > 2:
            raise UsageError(f"CAVGA-Ru: {len(shapes)} levels; expected one or two, such as method.levels=[4]")
        self.stages = nn.ModuleList(self.backbone.trainable_stages())
        self.heads, self.decoder = Heads(shapes[-1][0], self.latent), decoder(self.latent, 3, self.width)
        self.size = STRIDE * shapes[-1][1], STRIDE * shapes[-1][2]
        self.to(memory_format=torch.channels_last)

    def fit(self, normals: TrainingSet) -> None:
        """Train the autoencoder against a discriminator, one step of each per batch.

        Raises:
            UsageError: the decoder does not make images of the given size.
            ValueError: the loss is not finite.
        """
        if self.size != normals.size:
            height, width = self.size
            raise UsageError(
                f"method.levels: the decoder makes {height} x {width} pixels of the last level, the images have "
                f"{normals.size[0]} x {normals.size[1]}; expected a level of stride {STRIDE}, such as method.levels=[4]"
            )
        critic = shrinking(3, JUDGED[0], 1, self.critic_width).to(normals.device)
        judges = torch.optim.Adam(critic.parameters(), self.lr, BETAS, fused=True)
        generates = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        loop = Loop(nn.ModuleList([self, critic]), [judges, generates], normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch):
                images = normals.select(numbers)
                code = self.code(images)
                outputs = self.decoder(sample(code.means, code.log_variances))
                made = resized(outputs, JUDGED)
                epoch.step(agree(critic(resized(images, JUDGED)), 1) + agree(critic(made.detach()), 0), judges)
                epoch.step(self.loss(images, outputs, code, critic(made)), generates)
        with torch.no_grad():
            images = normals.select(torch.arange(min(self.batch, len(normals))))
            loop.spread = output_spread(self.decoder(self.code(images).means), images)
        self.facts = loop.facts

    def loss(self, images: Tensor, outputs: Tensor, code: Code, logits: Tensor) -> Tensor:
        """() weighted sum of the VAE's loss, the discriminator's answers to outputs, and the lack of attention."""
        errors = (outputs - images).square().sum(dim=(1, 2, 3))
        bound = (errors + divergence(code.means, code.log_variances)).mean() / images[0].numel()
        return bound + self.adversarial * agree(logits, 1) + self.attention * code.lack.mean()

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The map is one minus the attention, upsampled; the image score the mean absolute error of the output.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        code = self.code(images)
        errors = (self.decoder(code.means) - images).abs().mean(dim=(1, 2, 3))
        maps = F.interpolate(code.lack[:, None], images.shape[2:], mode="bilinear")[:, 0]
        return Scores(errors, maps)

    def code(self, images: Tensor) -> Code:
        """The code of images and its attention, through which gradients flow in training."""
        first, *others = self.stages
        with torch.enable_grad():
            explained = last = first(images)
            for stage in others:
                last = stage(last)
            means, log_variances = self.heads(last)
            (slopes,) = torch.autograd.grad(means.mean(dim=1).sum(), explained, create_graph=self.training)
        weights = slopes.mean(dim=(2, 3), keepdim=True)
        return Code(means, log_variances, (-weights * explained).sum(dim=1).sigmoid())
