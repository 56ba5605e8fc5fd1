"""OCGAN: an autoencoder whose whole space of codes decodes to normal images.

Pramuditha Perera, Ramesh Nallapati, Bing Xiang; CVPR 2019, arXiv 1903.08550.

Two discriminators and a classifier are trained beside it: one tells codes from uniform noise, one tells decoded noise
from images, and the classifier finds noise that decodes badly (mining, late in the training). Only the autoencoder is
kept; the score is its mean squared error. There is no anomaly map.

Losses and networks are those of the authors' MXNet code, where it differs from the paper too: codes end in a leaky
ReLU, not tanh (`tanh`); the latent discriminator's sigmoid is followed by another in the loss; the codes that it and
the classifier see come from networks in evaluation mode. Mining there is one step, whose size (`mining_step`) is the
code's of 2019. The epoch is the one with the lowest error on held-out images, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.gan import agree, initialise
from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Epoch, Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

SIDE = 61  # pixels: four unpadded convolutions lead to 1
MOMENTUM = 0.9  # of the norms: MXNet's 0.1 is the weight of the old value


class OCGAN(nn.Module):
    """OCGAN on images of 61 pixels.

    Args:
        epochs, lr, beta, batch: for training with Adam.
        code: elements of a code.
        width: channels of the first layer of autoencoder and classifier.
        critic_width: the same of the visual discriminator.
        noise: standard deviation of what is added to images, which have values in [-1, 1].
        weight: of half the mean squared error in the loss.
        latent_weight: of the latent discriminator in it.
        tanh: whether codes end in tanh, as in the paper; else in a leaky ReLU, as in the authors' code.
        mining: share of the training after which noise is mined.
        mining_step: of gradient descent on the noise.
        held_out: share of the training images that choose the epoch, if the dataset holds out none.
        seed: for this split.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        beta: float = 0.5,
        batch: int = 512,
        code: int = 16,
        width: int = 64,
        critic_width: int = 12,
        noise: float = 0.2,
        weight: float = 10.0,
        latent_weight: float = 10.0,
        tanh: bool = False,
        mining: float = 0.75,
        mining_step: float = 2.0,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.epochs, self.lr, self.beta, self.batch = epochs, lr, beta, batch
        self.code, self.width, self.critic_width, self.tanh = code, width, critic_width, tanh
        self.noise, self.weight, self.latent_weight = noise, weight, latent_weight
        self.mining, self.mining_step, self.held_out, self.seed = mining, mining_step, held_out, seed

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the autoencoder for images of C channels."""
        self.channels, width = shapes[0][0], self.width
        self.encoder = nn.Sequential(
            *(nn.Conv2d(self.channels, width, 5, 2), nn.LeakyReLU(0.2)),
            *convolution(width, 2 * width),
            *convolution(2 * width, 4 * width),
            nn.Conv2d(4 * width, self.code, 5, 2, bias=False),
            nn.Tanh() if self.tanh else nn.LeakyReLU(0.2),
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(self.code, 4 * width, 5, 2, bias=False), norm(4 * width), nn.ReLU()),
            *(nn.ConvTranspose2d(4 * width, 2 * width, 5, 2, bias=False), norm(2 * width), nn.ReLU()),
            *(nn.ConvTranspose2d(2 * width, width, 5, 2, bias=False), norm(width), nn.Dropout(0.5), nn.ReLU()),
            *(nn.ConvTranspose2d(width, self.channels, 5, 2), nn.Tanh()),
        )
        self.apply(initialise)

    def fit(self, normals: TrainingSet) -> None:
        """Train all networks, and keep the autoencoder with the lowest error on held-out images.

        Raises:
            ValueError: fewer than two images and none held out by the dataset, or the loss is not finite.
        """
        trained, held_out = normals.hold_out(self.held_out, self.seed)
        images, others = self.prepared(trained), self.prepared(held_out)
        critics = Critics(self.channels, self.code, self.critic_width, self.width).to(images)
        judges = self.adam([*critics.visual.parameters(), *critics.latent.parameters()])
        classifies, generates = self.adam(critics.classifier.parameters()), self.adam(self.parameters())
        loop = Loop(nn.ModuleList([self, critics]), [judges, classifies, generates], normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(images), self.batch):
                self.step(images[numbers.to(images.device)], critics, epoch)
            loop.keep_best(float(self.held_out_errors(others).mean()), self)
        loop.load_best(self)
        with torch.no_grad():
            loop.spread = output_spread(self.decoder(self.encoder(others[: self.batch])), others[: self.batch])
        self.facts = loop.facts

    def step(self, images: Tensor, critics: Critics, epoch: Epoch) -> None:
        """One step each of the discriminators, the classifier, and the autoencoder."""
        judges, classifies, generates = epoch.loop.optimisers
        noisy = images + self.noise * torch.randn_like(images)
        codes, outputs = self.codes_and_outputs(noisy)
        mined = self.uniform(codes)
        if epoch.progress >= self.mining:
            mined = self.mine(mined, critics)
        made = self.decoder(self.uniform(codes)).detach()
        epoch.step(critics.judge(images, made, codes, self.uniform(codes)), judges)
        epoch.step(critics.classify(outputs, made), classifies)
        epoch.step(self.loss(images, noisy, torch.tanh(mined), critics), generates)

    def loss(self, images: Tensor, noisy: Tensor, drawn: Tensor, critics: Critics) -> Tensor:
        """() loss of the autoencoder: both discriminators are to be deceived, images to be reconstructed."""
        codes = self.encoder(noisy)
        deceived = agree(critics.visual(self.decoder(drawn)), 1)
        uniform = agree(critics.latent(codes), 1)
        return self.latent_weight * uniform + deceived + self.weight * F.mse_loss(self.decoder(codes), images) / 2

    def mine(self, drawn: Tensor, critics: Critics) -> Tensor:
        """Noise, one step of gradient descent closer to what the classifier takes for decoded noise."""
        drawn = drawn.requires_grad_()
        losses = agree(critics.classifier(self.decoder(torch.tanh(drawn))), 0) * len(drawn)
        (gradient,) = torch.autograd.grad(losses, drawn)
        return drawn.detach() - self.mining_step * gradient

    @torch.no_grad()
    def codes_and_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of the autoencoder in evaluation mode."""
        training = self.training
        self.eval()
        codes = self.encoder(images)
        outputs = self.decoder(codes)
        self.train(training)
        return codes, outputs

    def held_out_errors(self, images: Tensor) -> Tensor:
        """(B,) mean squared errors in evaluation mode."""
        parts = [(self.codes_and_outputs(batch)[1] - batch).square() for batch in torch.split(images, self.batch)]
        return torch.cat(parts).mean(dim=(1, 2, 3))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Mean squared reconstruction errors, of images without noise.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        images = 2 * resized(images, (SIDE, SIDE)) - 1
        return Scores((self.decoder(self.encoder(images)) - images).square().mean(dim=(1, 2, 3)), None)

    def prepared(self, normals: TrainingSet) -> Tensor:
        """(N, C, 61, 61) in [-1, 1], all images."""
        return torch.cat([2 * resized(images, (SIDE, SIDE)) - 1 for images in normals.images(self.batch)])

    def adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, self.lr, (self.beta, 0.999), fused=True)

    @staticmethod
    def uniform(codes: Tensor) -> Tensor:
        """Noise in [-1, 1) of the codes' shape."""
        return 2 * torch.rand_like(codes) - 1


class Critics(nn.Module):
    """The networks that only training needs: two discriminators and a classifier."""

    def __init__(self, channels: int, code: int, width: int, classifier_width: int) -> None:
        super().__init__()
        self.visual, self.classifier = critic(channels, width), critic(channels, classifier_width)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise((code, 128, 64, 32, 16)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.latent = nn.Sequential(*layers[:-1], nn.Sigmoid())
        self.apply(initialise)

    def judge(self, images: Tensor, made: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
        """() loss of the discriminators: images and noise are real, decoded noise and codes are not."""
        real = agree(self.visual(images), 1) + agree(self.latent(noise), 1)
        return (real + agree(self.visual(made), 0) + agree(self.latent(codes), 0)) / 2

    def classify(self, outputs: Tensor, made: Tensor) -> Tensor:
        """() loss of the classifier: reconstructions are real, decoded noise is not."""
        return (agree(self.classifier(outputs), 1) + agree(self.classifier(made), 0)) / 2


def critic(channels: int, width: int) -> nn.Sequential:
    """(B, C, 61, 61) -> (B, 1, 1, 1)."""
    layers = [*convolution(width, 2 * width), *convolution(2 * width, 4 * width), nn.Conv2d(4 * width, 1, 5, 2)]
    return nn.Sequential(nn.Conv2d(channels, width, 5, 2), nn.LeakyReLU(0.2), *layers)


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 5, 2, bias=False), norm(outputs), nn.LeakyReLU(0.2)]


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=MOMENTUM)
